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


def directory() -> Path:
    """A new one, by a short path: sockets' paths are bounded."""
    return Path(tempfile.mkdtemp(prefix=_MINE))


def word() -> str:
    """A name for namespaces and the like: not in use, and known as ours."""
    return _MINE + secrets.token_hex(3)


def is_of_others(name: str) -> bool:
    """Whether a test made it that runs in another process."""
    made = _ANYBODYS.match(name)
    return made is not None and made[0] != _MINE
