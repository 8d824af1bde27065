# SPDX-License-Identifier: Apache-2.0
"""What tests of every kind share: `@pytest.mark.feature(engine, name, ...)` says which features of an engine a test shows.

With `--features FILE` their outcomes are written there, as JSON lines; `tests.support.matrix` makes docs/engines.md of them.

Run in several processes (`pytest -n 2`, as scripts/test does), the tests of one container engine stay together, and so do
those of one file with virtual machines; the longest begin. What they make on the host is named by the process that made it
(`tests.support.names`). Unit tests that look at the host as a whole stay together as well, and the pure ones run beside.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

_OF_THE_HOST = tuple(f"unit/{name}/" for name in ("cli", "effects", "shim", "supervisor", "survey"))
_ENGINES = {"cri": "containerd"}  # its daemon


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--features", metavar="FILE", default=None, help="append the outcome of every engine's feature")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "feature(engine, *names, refused=False): what a test shows of an engine")


class Outcomes:
    """Appends {"engine", "feature", "outcome", "refused"} for each feature of each test that ran."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item):  # type: ignore[no-untyped-def]  # a generator
        report = yield
        mark = item.get_closest_marker("feature")
        if mark is not None and (report.when == "call" or report.outcome != "passed"):
            engine, *names = mark.args
            refused = bool(mark.kwargs.get("refused"))
            with self.path.open("a", encoding="utf-8") as file:
                for name in names:
                    line = {"engine": engine, "feature": name, "outcome": report.outcome, "refused": refused}
                    file.write(json.dumps(line) + "\n")
        return report


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """See the head of this file; the properties of one file count together what they have reached. Not by `--dist
    loadgroup`: xdist 3.8 tells groups by an attribute of tests that pytest 9.2 no longer has."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            name = nodeid.removeprefix("tests/")
            if name.startswith("clients/test_"):
                engine = re.split(r"[_.]", name.removeprefix("clients/test_"))[0]
                return _ENGINES.get(engine, engine)
            if name.startswith(("integration/", "property/")):
                return name.partition("::")[0]
            return "host" if name.startswith(_OF_THE_HOST) else nodeid

    config.option.loadscopereorder = False  # by their number of tests, the longest would be the last
    return Scheduling(config, log)


def pytest_sessionstart(session: pytest.Session) -> None:
    path = session.config.getoption("--features")
    if path is not None:
        session.config.pluginmanager.register(Outcomes(Path(path)))
