# SPDX-License-Identifier: Apache-2.0
"""A container's cgroup (version 2): its processes, freezing, killing, removing. Documentation/admin-guide/cgroup-v2.rst."""

from __future__ import annotations

import os

from . import files
from .errors import from_os_error, internal
from .loop import pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from .loop import Wait

PARENT = "/kata"  # of all containers' cgroups, so that no id can collide with a file of the root's
_FREEZE_TIMEOUT_S = 10.0
_REMOVE_TIMEOUT_S = 10.0
_POLL_S = 0.002


def path_for(container_id: str) -> str:
    """As `linux.cgroupsPath` has it: relative to the root of the hierarchy."""
    return f"{PARENT}/{container_id}"


def keyed(text: str) -> dict[str, int]:
    """Flat keyed files, such as `memory.stat`: a word and a number on every line."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if value.isdigit():
            found[key] = int(value)
    return found


def number(text: str) -> int:
    """Single values; `max`, and nothing, are 0."""
    value = text.strip()
    return int(value) if value.isdigit() else 0


def subtree(directory: str) -> Iterator[str]:
    """The cgroup and all below it, the deepest first."""
    try:
        with os.scandir(directory) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    for path in below:
        yield from subtree(path)
    yield directory


def pids(directory: str) -> list[int]:
    """Every process in the cgroup and below, in rising order. Empty when there is no such cgroup."""
    found: set[int] = set()
    for path in subtree(directory):
        found.update(int(line) for line in files.read_or(f"{path}/cgroup.procs", "").split())
    return sorted(found)


def oom_kills(directory: str) -> int:
    """How many processes the OOM killer took here; 0 without a memory controller."""
    return keyed(files.read_or(f"{directory}/memory.events", "")).get("oom_kill", 0)


def kill_all(directory: str) -> None:
    """SIGKILL to every process, atomically, frozen ones as well. Nothing to do without the cgroup."""
    try:
        files.write(f"{directory}/cgroup.kill", "1")
    except FileNotFoundError:
        pass


def freeze(directory: str, frozen: bool) -> Generator[Wait, bool, None]:
    """Freeze or thaw, and wait until it has happened. Raises NOT_FOUND, INTERNAL."""
    wanted = int(frozen)
    try:
        files.write(f"{directory}/cgroup.freeze", str(wanted))
        waited_s = 0.0
        while keyed(files.read(f"{directory}/cgroup.events")).get("frozen", wanted) != wanted:
            if waited_s >= _FREEZE_TIMEOUT_S:
                raise internal(f"cgroup `{directory}` did not become `frozen {wanted}` in `{_FREEZE_TIMEOUT_S:.0f}` s")
            waited_s += _POLL_S
            yield pause(_POLL_S)
    except OSError as error:
        raise from_os_error(error, f"cannot freeze or thaw cgroup `{directory}`") from None


def remove(directory: str) -> Generator[Wait, bool, None]:
    """Remove the cgroup and all below it, killing what is left in it. Raises INTERNAL when that takes too long."""
    waited_s = 0.0
    while True:
        try:
            for path in subtree(directory):
                os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if waited_s >= _REMOVE_TIMEOUT_S:
                raise internal(f"cannot remove cgroup `{directory}`: {error.strerror}") from None
        kill_all(directory)
        waited_s += _POLL_S
        yield pause(_POLL_S)
