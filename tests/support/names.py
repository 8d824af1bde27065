# SPDX-License-Identifier: Apache-2.0
"""Names of what tests make on the host, so that tests which run beside one another tell theirs from the others'."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from pathlib import Path

_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")  # `gw0`, `gw1`, ...; nothing where all tests run in one process
_MINE = f"kf{_WORKER}-"
_ANYBODYS = re.compile(r"kf(gw\d+)?-")
_made: list[str] = []


def directory() -> Path:
    """A new one, by a short path: sockets' paths are bounded."""
    path = Path(tempfile.mkdtemp(prefix=_MINE))
    _made.append(path.name)
    return path


def word() -> str:
    """A name for namespaces and the like: not in use, and known as ours."""
    made = _MINE + secrets.token_hex(3)
    _made.append(made)
    return made


def is_of_others(name: str) -> bool:
    """Whether a test made it that runs in another process, perhaps of another run."""
    return _ANYBODYS.match(name) is not None and not name.startswith(tuple(_made))
