# SPDX-License-Identifier: Apache-2.0
"""The pid file: containerd and conmon take its appearance for the end of `create`, so it comes last and whole."""

from __future__ import annotations

import os


def write(path: str, pid: int) -> None:
    """Write `pid` in decimal, without a newline, atomically."""
    temporary = f"{path}.{os.getpid()}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, str(pid).encode("ascii"))
    finally:
        os.close(fd)
    os.replace(temporary, path)
