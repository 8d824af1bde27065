# SPDX-License-Identifier: Apache-2.0
"""Real virtual machines through the installed command, and a check after every test that nothing was left behind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_fsm.testing.bundle import make_rootfs
from tests.support import names
from tests.support.kata import COMMAND, GONE_S, Kata, Traces, clean_up_by_force, kill_rest, leaks, wait_until


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vm)


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rootfs(tmp_path_factory.mktemp("rootfs"))


@pytest.fixture
def kata(rootfs: Path) -> Iterator[Kata]:
    """An installation of one's own. After the test nothing of it may be left on the host."""
    if not COMMAND.exists():
        pytest.fail(f"`{COMMAND}` is not there: run scripts/setup")
    base = names.directory()
    traces = Traces(base)
    before = traces.snapshot()
    installation = Kata(base, rootfs)
    try:
        yield installation
        left: list[str] = []

        def clean() -> bool:
            left[:] = leaks(installation, traces, before)
            return not left

        try:
            wait_until(clean, "nothing left behind", GONE_S)
        except pytest.fail.Exception:
            pytest.fail("left behind:\n" + "\n".join(left) + "\n" + installation.logs(), pytrace=False)
    finally:
        clean_up_by_force(installation)
        kill_rest(installation)
        shutil.rmtree(base, ignore_errors=True)
