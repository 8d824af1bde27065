# SPDX-License-Identifier: Apache-2.0
"""Loop devices for tests: block devices of the host that are files."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.engines import NO_SKIP

MIB = 1 << 20


class Loop(NamedTuple):
    """A loop device: its node, its numbers on the host, the file behind it."""

    node: str
    major: int
    minor: int
    file: Path

    def device(self, path: str, **more: Any) -> dict[str, Any]:
        """As `linux.devices` names it."""
        return {"type": "b", "path": path, "major": self.major, "minor": self.minor, **more}

    def rule(self, access: str) -> dict[str, Any]:
        """As `linux.resources.devices` allows it."""
        return {"allow": True, "type": "b", "major": self.major, "minor": self.minor, "access": access}

    def read(self, offset: int, count: int) -> bytes:
        """What is on it, as the host reads it."""
        with open(self.node, "rb", buffering=0) as file:
            return os.pread(file.fileno(), count, offset)

    def write(self, offset: int, data: bytes) -> None:
        """Write on it from the host."""
        with open(self.node, "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), data, offset)
            os.fsync(file.fileno())

    def holders(self) -> list[int]:
        """Pids of processes that have it open."""
        number = os.makedev(self.major, self.minor)
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):  # it is gone
                if any(_is(f"/proc/{pid}/fd/{fd}", number) for fd in os.listdir(f"/proc/{pid}/fd")):
                    found.append(int(pid))
        return found


def _is(path: str, number: int) -> bool:
    try:
        return os.stat(path).st_rdev == number
    except OSError:
        return False  # closed meanwhile


@contextmanager
def loop(directory: Path, *, mib: int = 8, options: tuple[str, ...] = ()) -> Iterator[Loop]:
    """A loop device of `mib` MiB of zeros. At the end it is detached, which fails nobody who still has it open.

    Where the host has none the test is skipped, or fails where nothing may be skipped.
    """
    if not os.path.exists("/dev/loop-control"):
        (pytest.fail if os.environ.get(NO_SKIP) else pytest.skip)("this host has no loop devices")
    file = directory / f"disk{len(list(directory.glob('disk*')))}"
    with open(file, "wb") as made:
        made.truncate(mib * MIB)
    command = ["losetup", "--find", "--show", *options, str(file)]
    node = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        number = os.stat(node).st_rdev
        yield Loop(node, os.major(number), os.minor(number), file)
    finally:
        subprocess.run(["losetup", "--detach", node], check=True)
        file.unlink()
