# SPDX-License-Identifier: Apache-2.0
"""The sandbox's network namespace, with network model `none`: it exists, and holds nothing but `lo`.

A namespace that the spec names is the caller's: it is checked, looked into, and left alone. Without one, ours is made
and kept by a bind mount (`paths.netns`), as `ip netns` does; shims enter it, because engines take `/proc/PID/ns/net` of
the pid they hold. Joining a namespace changes the calling thread for good, so it happens in threads that end with it.
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
from typing import Any, TypeVar

import trio

from kata_fsm import errors
from kata_fsm.effects import mounts, tree
from kata_fsm.effects.protocols import Intent, Observed
from kata_fsm.world import Paths

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

    thread = threading.Thread(target=run, name="netns")
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


def interfaces(path: str) -> list[str]:
    """The interfaces in the namespace at `path` that are up, without `lo`. Blocks. Raises OSError.

    Down ones do not count: many kernels put unused tunnel devices into every namespace. pyroute2 takes 0.17 s to import,
    so it is imported here: only for a namespace that somebody gave us, and while the guest boots.
    """
    from pyroute2 import NetNS, netlink

    try:
        with NetNS(path, flags=0) as namespace:
            links = list(namespace.get_links())
    except netlink.exceptions.NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code), path) from error
    names = {str(link.get_attr("IFLA_IFNAME")) for link in links if link["flags"] & _IFF_UP}
    return sorted(names - {"lo"})


def remove(path: str) -> bool:
    """Unmount and remove the namespace file of ours at `path`; whether one was there. Repeatable. Blocks."""
    there = bool(mounts.unmount_below(path)) or os.path.lexists(path)
    tree.unlink(path)
    return there


def _check_given(path: str) -> None:
    try:
        right = is_network_namespace(path)
    except OSError as error:
        raise errors.EffectError("netns", f"the network namespace `{path}` cannot be used: {error.strerror}") from error
    if not right:
        raise errors.EffectError("netns", f"`{path}` is not a network namespace")


class _NetworkHandler:
    def __init__(self, paths: Paths) -> None:
        self.paths = paths

    def _given(self, intent: Intent) -> str:
        return str(intent.params.get("netns") or "")

    async def _remove(self) -> dict[str, Any]:
        return {"removed": await trio.to_thread.run_sync(remove, self.paths.netns)}


class NetworkAttach(_NetworkHandler):
    """`network.attach` for model `none`. Params: {"netns": path that the spec names, or ""}.

    Result: {"netns": path, "created": bool, "model": "none", "unserved": [interfaces up in a given namespace, which the
    guest will not have], "warning": str, only with such}.
    """

    async def perform(self, intent: Intent) -> dict[str, Any]:
        """Check the given namespace, or make one."""
        given = self._given(intent)
        if given:
            _check_given(given)
            return self._result(given, False, await trio.to_thread.run_sync(interfaces, given))
        path = self.paths.netns
        await trio.to_thread.run_sync(remove, path)
        try:
            await trio.to_thread.run_sync(make, path)
        except OSError as error:
            raise errors.EffectError("netns", f"cannot make a network namespace: {error.strerror}") from error
        return self._result(path, True, [])

    @staticmethod
    def _result(path: str, created: bool, unserved: list[str]) -> dict[str, Any]:
        result: dict[str, Any] = {"netns": path, "created": created, "model": "none", "unserved": unserved}
        if unserved:
            names = ", ".join(f"`{name}`" for name in unserved)
            result["warning"] = f"the network model is `none`: the guest will not have {names} of `{path}`"
        return result

    async def probe(self, intent: Intent) -> Observed:
        """Done when the namespace is there."""
        path = self._given(intent) or self.paths.netns
        try:
            if not is_network_namespace(path):
                return Observed(False)
            unserved = await trio.to_thread.run_sync(interfaces, path) if self._given(intent) else []
        except OSError:
            return Observed(False)
        return Observed(True, self._result(path, not self._given(intent), unserved))

    async def undo(self, intent: Intent) -> dict[str, Any]:
        """Remove the namespace if we made it."""
        return await self._remove()


class NetworkDetach(_NetworkHandler):
    """`network.detach`: removes the namespace that we made, never a given one. Result: {"removed": bool}."""

    async def perform(self, intent: Intent) -> dict[str, Any]:
        """Unmount and remove it."""
        return await self._remove()

    async def probe(self, intent: Intent) -> Observed:
        """Done when ours is not there."""
        await trio.lowlevel.checkpoint()
        return Observed(not os.path.lexists(self.paths.netns))

    async def undo(self, intent: Intent) -> dict[str, Any]:
        """Nothing to take back: doing it again is always right."""
        return await self._remove()
