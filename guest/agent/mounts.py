# SPDX-License-Identifier: Apache-2.0
"""Storages: what the host asks to have mounted in the guest.

Python has no `mount`, and `ctypes` is dear; busybox's costs 10 ms. A mount point that is mounted already is
left alone, and goes with whoever mounted it.
"""

from __future__ import annotations

import os

from . import files
from .errors import internal, invalid
from .loop import pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from typing import Any

    from .agent import Agent
    from .loop import Wait

    Storage = dict[str, Any]

_DEVICE_TIMEOUT_S = 10.0  # a hot-plugged device was seen after 0.05 to 0.26 s under emulation
_POLL_S = 0.005
_MESSAGE_BYTES = 2000
_VIRTIO_FS = "0x001a"  # virtio device id 26

# driver -> file system type, where the request has none
_TYPES = {
    "virtio-fs": "virtiofs",
    "ephemeral": "tmpfs",
    "9p": "9p",
    "overlayfs": "overlay",
    "blk": "ext4",
    "bind": "bind",
}
DRIVERS = (*_TYPES, "local")


def mount_storages(agent: Agent, storages: list[Storage]) -> Generator[Wait, bool, list[str]]:
    """Mount them in order; returns the new mount points. If one fails, those before it are unmounted again."""
    done: list[str] = []
    try:
        for storage in storages:
            if (yield from _mount_storage(agent, storage)):
                done.append(storage["mount_point"])
    except Exception:
        yield from unmount_all(agent, done)
        raise
    return done


def unmount_all(agent: Agent, mount_points: list[str]) -> Generator[Wait, bool, None]:
    """In reverse. What is busy is detached, and goes when its last user does."""
    for mount_point in reversed(mount_points):
        if is_mounted(agent, mount_point):
            yield from _run(agent, "umount", mount_point, retry=("umount", "-l", mount_point))


def is_mounted(agent: Agent, path: str) -> bool:
    """Is something mounted exactly there?"""
    return bool(mounted(agent, [path]))


def mounted(agent: Agent, paths: Iterable[str]) -> list[str]:
    """Those of `paths` exactly at which something is mounted."""
    lines = files.read_or(f"{agent.settings.procfs}/self/mountinfo", "").splitlines()
    points = {line.split(" ", 5)[4] for line in lines}
    return [path for path in paths if _as_told(path) in points]


def _as_told(path: str) -> str:
    return path.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011").replace("\n", "\\012")


def _mount_storage(agent: Agent, storage: Storage) -> Generator[Wait, bool, bool]:
    driver, target = storage.get("driver", ""), storage.get("mount_point", "")
    if driver not in DRIVERS:
        raise invalid(f"storage driver `{driver}` is not known; legal are {', '.join(f'`{name}`' for name in DRIVERS)}")
    if not target.startswith("/") or ".." in target.split("/"):
        raise invalid(f"storage has the mount point `{target}`; it must be an absolute path without `..`")
    source = storage.get("source", "")
    if driver == "local":  # a directory that lives as long as the sandbox
        os.makedirs(target, exist_ok=True)
        return False
    if is_mounted(agent, target):
        return False
    fstype = storage.get("fstype") or _TYPES[driver]
    if fstype == "bind" and not os.path.isdir(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        files.write(target, b"", 0o644)
    else:
        os.makedirs(target, exist_ok=True)
    options = list(storage.get("options") or [])
    words = ["-o", ",".join(options)] if options else []
    command = ["mount", *(["-o", "bind"] if fstype == "bind" else ["-t", fstype]), *words, source or fstype, target]
    if driver == "virtio-fs":
        yield from _wait_for_virtiofs(agent)
        yield from _run(agent, *command, patience_s=_DEVICE_TIMEOUT_S)
    elif driver == "blk":
        yield from _wait_for_path(source)
        yield from _run(agent, *command)
    else:
        yield from _run(agent, *command)
    return True


def _wait_for_virtiofs(agent: Agent) -> Generator[Wait, bool, None]:
    """Until there is such a device: looking is cheaper than starting `mount` in vain, which loads the driver."""
    directory = f"{agent.settings.sysfs}/bus/virtio/devices"
    waited_s = 0.0
    while waited_s < _DEVICE_TIMEOUT_S:
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            names = []
        if any(files.read_or(f"{directory}/{name}/device", "").strip() == _VIRTIO_FS for name in names):
            return
        waited_s += _POLL_S
        yield pause(_POLL_S)


def _wait_for_path(path: str) -> Generator[Wait, bool, None]:
    waited_s = 0.0
    while not os.path.exists(path):
        if waited_s >= _DEVICE_TIMEOUT_S:
            raise internal(f"device `{path}` did not appear in `{_DEVICE_TIMEOUT_S:.0f}` s")
        waited_s += _POLL_S
        yield pause(_POLL_S)


def _run(
    agent: Agent, *command: str, patience_s: float = 0.0, retry: tuple[str, ...] = ()
) -> Generator[Wait, bool, None]:
    """A busybox applet; tried again for `patience_s`, or once as `retry`. Raises INTERNAL with its words."""
    waited_s = 0.0
    pause_s = _POLL_S
    while True:
        status, words = yield from _run_once(agent, command)
        if status == 0:
            return
        if waited_s < patience_s:
            yield pause(pause_s)
            waited_s += pause_s
            pause_s = min(pause_s * 2, 0.25)
        elif retry:
            command, retry = retry, ()
        else:
            raise internal(f"`{' '.join(command)}` failed: {words or f'status {status}'}")


def _run_once(agent: Agent, command: tuple[str, ...]) -> Generator[Wait, bool, tuple[int, str]]:
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        try:
            child = agent.children.spawn([agent.settings.busybox, *command], {1: write_end, 2: write_end})
        finally:
            os.close(write_end)
        end = yield from child.wait()
        try:
            words = os.read(read_end, _MESSAGE_BYTES).decode(errors="replace")
        except BlockingIOError:
            words = ""
        return end.status, " ".join(words.split())
    finally:
        os.close(read_end)
