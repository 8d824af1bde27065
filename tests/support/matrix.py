# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.support.matrix FILE`: docs/engines.md from what `pytest tests/clients --features FILE` wrote.

A feature works when every test that shows it has passed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "engines.md"
TITLES = {
    "podman": "podman",
    "docker": "Docker",
    "containerd": "containerd (`ctr`, through its runc shim)",
    "cri": "Kubernetes' CRI (containerd's plugin, through its runc shim)",
}

_HEAD = """# Container engines

What the tests in `tests/clients` show of each engine, with the versions of Debian 12: real engines, started privately, and a
real virtual machine behind every container. Written by `python -m tests.support.matrix` from the outcomes of

    .venv/bin/python -m pytest tests/clients --features FILE
"""

_IMPOSSIBLE = """
## Not possible in a virtual machine

| feature | why | what happens |
|---|---|---|
| `--network host`, `--network container:` of another machine | the guest has a network stack of its own | refused, by name |
| host devices but block devices (`--device`, `--privileged`) | the guest's kernel has no such device | refused, by name; \
with `[runtime] privileged_without_host_devices` a privileged container goes without them |
| joining a user, mount or time namespace of the host | the process is in another kernel | refused, by name |
| mounts that a createContainer hook makes | the hook runs on the host, beside the container's files | the hook's own; what \
it writes the container sees |
| id-mapped mounts | the share does not map ids | refused, by name |
| seccomp's user notification to a listener on the host | the listener cannot serve another kernel | refused, by name |
| sockets of the host in a volume | connecting would need the same kernel | a warning; files beside them work |
| `crictl stats` of a pod's containers | containerd's shim reads cgroups of the host, and the guest's processes are not in \
them | each shows its shim; the pod's own (`statsp`) shows the machine, `kata-fsm events --stats ID` the container |
| `podman cp` with a tmpfs of the container | it is in the guest's memory | reaches the directory below it |
| `podman top` without options | podman reads processes of the host | shows the one that stands for the container |
| &nbsp; | | `podman top ID -ef` shows the guest's |
| stats of engines | they read cgroups of the host | show what the machine costs, with the first container of a pod; \
`kata-fsm events --stats` shows the guest's |
| `--dns` on a network made by `docker network create`, for names outside | dockerd would ask from the pod's namespace \
| the host's name servers are asked |
| names by TCP at Docker's 127.0.0.11 | only UDP is carried | no answer: long ones come shortened |
| `docker network connect` to a running container | nobody tells the runtime | `[netmon] enable_netmon` has the \
supervisor watch, or `kata-fsm network rescan ID` |
"""


def page(outcomes: Iterable[dict[str, Any]]) -> str:
    """The page. `outcomes` as tests/conftest.py writes them; of several for one feature the worst counts."""
    found: dict[str, dict[str, tuple[bool, bool]]] = {}
    for each in outcomes:
        features = found.setdefault(each["engine"], {})
        passed, refused = features.get(each["feature"], (True, each["refused"]))
        features[each["feature"]] = (passed and each["outcome"] == "passed", refused)
    parts = [_HEAD]
    for engine, title in TITLES.items():
        if engine in found:
            rows = [f"| {name} | {_word(*found[engine][name])} |" for name in sorted(found[engine])]
            parts.append("\n".join([f"\n## {title}\n", "| feature | |", "|---|---|", *rows, ""]))
    return "".join(parts) + _IMPOSSIBLE


def _word(passed: bool, refused: bool) -> str:
    if not passed:
        return "does not work"
    return "refused with a message" if refused else "works"


def main(argv: list[str]) -> int:
    """Write the page."""
    lines = Path(argv[0]).read_text(encoding="utf-8").splitlines()
    PAGE.write_text(page(json.loads(line) for line in lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
