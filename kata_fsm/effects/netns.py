# SPDX-License-Identifier: Apache-2.0
"""The sandbox's network namespace: making, holding, entering and removing it.

A namespace that the spec names is the caller's: it is checked, and never removed. Without one, ours is made, holding
nothing but `lo`, and kept by a bind mount (`paths.netns`), as `ip netns` does; shims enter it, because engines take
`/proc/PID/ns/net` of the pid they hold. Joining a namespace changes the calling thread for good, so it happens in threads
that end with it.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import TypeVar

from kata_fsm import errors
from kata_fsm.effects import mounts, tree

_NS_GET_NSTYPE = 0xB703  # ioctl_ns(2)
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_IFREQ = struct.Struct("16sH22x")

T = TypeVar("T")


def is_network_namespace(path: str) -> bool:
    """Whether `path` names a network namespace (a bound or /proc namespace file). Raises OSError if it is not there."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == mounts.CLONE_NEWNET
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL):
            return False
        raise
    finally:
        os.close(fd)


def _in_own_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread that ends afterwards, and answer or raise what it did."""
    answer: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            answer.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="netns", daemon=True)  # see bounded.py: it may never end
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return answer[0]


def _flags(control: socket.socket, name: str) -> int:
    request = array.array("B", _IFREQ.pack(name.encode(), 0))
    fcntl.ioctl(control, _SIOCGIFFLAGS, request)
    return int(_IFREQ.unpack(request)[1])


def _bring_up(name: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ.pack(name.encode(), _flags(control, name) | _IFF_UP))


def make(path: str) -> None:
    """Make a network namespace with `lo` up and keep it at `path`. Blocks. Raises OSError; then nothing is left."""

    def work() -> None:
        mounts.unshare(mounts.CLONE_NEWNET)
        _bring_up("lo")
        mounts.mount(f"/proc/self/task/{threading.get_native_id()}/ns/net", path, mounts.MS_BIND)

    tree.make_place(path, directory=False)
    try:
        _in_own_thread(work)
    except OSError:
        tree.unlink(path)
        raise


def inside(path: str, work: Callable[[], T]) -> T:
    """Run `work` in the network namespace at `path`, and answer or raise what it did. Blocks. Raises OSError."""

    def joined() -> T:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            mounts.setns(fd, mounts.CLONE_NEWNET)
        finally:
            os.close(fd)
        return work()

    return _in_own_thread(joined)


def pin(given: str, path: str) -> None:
    """Hold the given namespace at `path` as well, so that it can be cleaned up when the given name is gone. Blocks.

    Raises OSError.
    """
    if mounts.at(path):
        return
    tree.make_place(path, directory=False)
    # Through a descriptor: the given name may be a symbolic link of /proc, which ends with the process it belongs to.
    fd = os.open(given, os.O_RDONLY | os.O_CLOEXEC)
    try:
        mounts.mount(f"/proc/self/fd/{fd}", path, mounts.MS_BIND)
    finally:
        os.close(fd)


def remove(path: str) -> bool:
    """Unmount and remove the namespace file of ours at `path`; whether one was there. Repeatable. Blocks."""
    there = bool(mounts.unmount_below(path)) or os.path.lexists(path)
    tree.unlink(path)
    return there


def check_given(path: str) -> None:
    """Raises EffectError unless there is a network namespace at `path`."""
    try:
        right = is_network_namespace(path)
    except OSError as error:
        raise errors.EffectError("netns", f"the network namespace `{path}` cannot be used: {error.strerror}") from error
    if not right:
        raise errors.EffectError("netns", f"`{path}` is not a network namespace")


def is_own(path: str) -> bool:
    """Whether `path` names the network namespace of this process: the host's, as far as we are concerned."""
    try:
        return os.path.samestat(os.stat(path), os.stat("/proc/self/ns/net"))
    except OSError:
        return False
