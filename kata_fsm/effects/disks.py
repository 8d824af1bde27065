# SPDX-License-Identifier: Apache-2.0
"""Block devices of the host that containers are given: disks of the machine.

They belong to the effects beside which a container's guest side comes and its host side goes, and wrap their handlers:
`container.create` plugs what is not there, `container.unstage` unplugs what no other living container of the pod asks for,
which is asked of the folded pod at that moment. What is plugged is asked of QEMU, and all of it goes with QEMU. So there is
nothing to remember, and whoever is killed in between is followed by one who looks.

Which device is meant is said by its numbers: the path in a configuration is the container's, and a name on the host may
change. A disk that only reads is another one than a disk that also writes: the guest could not be kept from writing to what
its machine may write to. Each has caches of its own in the guest.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Callable
from typing import Any

import trio

from kata_fsm import errors, limits
from kata_fsm.effects import process
from kata_fsm.effects.bounded import Bounded
from kata_fsm.effects.hypervisor import argv, disk
from kata_fsm.effects.hypervisor.qmp import Monitor
from kata_fsm.effects.hypervisor.settings import HypervisorSettings
from kata_fsm.effects.protocols import Handler, Intent, Observed
from kata_fsm.oci.devices import Wanted, wanted_by
from kata_fsm.world import Paths

_BLKSSZGET, _BLKPBSZGET = 0x1268, 0x127B  # linux/fs.h
_SECTOR_BYTES = 512

Result = dict[str, Any]


Asked = Callable[[], frozenset[Wanted]]
"""The disks of the pod's living containers, as of now."""


def _nobody() -> frozenset[Wanted]:
    return frozenset()


class Disks:
    """The disks of one sandbox's machine. One piece of work at a time: a disk that goes is not found by whoever comes."""

    def __init__(self, paths: Paths, settings: HypervisorSettings, monitor: Monitor, asked: Asked = _nobody) -> None:
        self.paths = paths
        self.settings = settings
        self.monitor = monitor
        self._asked = asked
        self._lock = trio.Lock()

    async def plug(self, wanted: list[Wanted]) -> list[Result]:
        """Plug each that is not there: [{"device", "serial", "node" of the host}]. Raises EffectError naming the device."""
        async with self._lock:
            return [await self._plug(each) for each in wanted]

    async def _plug(self, wanted: Wanted) -> Result:
        name = f"{wanted.major}:{wanted.minor}"
        fds: list[int] = []
        task = Bounded("disk", f"opening the host's block device {name}")

        def close() -> None:
            while fds:
                os.close(fds.pop())

        def work() -> tuple[disk.Opened, str]:
            opened, node = open_host(wanted, self.paths.base)
            fds.append(opened.fd)
            return opened, node

        try:
            opened, node = await task.run(work, late=close)
            device = await disk.plug(self.monitor, wanted.serial, opened, self.settings)
        except errors.EffectError as error:
            kind = type(error) if isinstance(error, errors.TimeoutExceeded) else errors.EffectError
            message = f"cannot give the machine block device {name}: {error.message}"
            raise kind(error.phase, message, evidence=error.evidence, hint=error.hint) from error
        finally:
            close()
        return {"device": device, "serial": wanted.serial, "node": node}

    async def unplug(self, released: list[Wanted]) -> list[str]:
        """Unplug those that no living container asks for; the names of those that were there. Raises EffectError."""
        async with self._lock:
            asked = self._asked()
            return [each.serial for each in released if each not in asked and await self._unplug(each)]

    async def _unplug(self, wanted: Wanted) -> bool:
        if not self._machine_runs():
            return False  # it held what there was
        try:
            return await disk.unplug(self.monitor, wanted.serial)
        except errors.EffectError:
            if not await self._machine_ends():
                raise
            return True

    async def left(self, released: list[Wanted]) -> bool:
        """Whether one of these is there that no living container asks for. Raises EffectError when QEMU cannot be asked."""
        asked = self._asked()
        gone = [each for each in released if each not in asked]
        try:
            return self._machine_runs() and any([await disk.there(self.monitor, each.serial) for each in gone])
        except errors.EffectError:
            if not await self._machine_ends():
                raise
            return False

    async def _machine_ends(self) -> bool:
        """Whether QEMU, which has just failed to answer, is gone: one that ends stops answering a moment before."""
        with trio.move_on_after(limits.MACHINE_ENDS_S):
            while self._machine_runs():
                await trio.sleep(limits.QMP_RETRY_S)
        return not self._machine_runs()

    def _machine_runs(self) -> bool:
        return bool(process.find_by_argv(argv.uuid_of(self.paths.uid)))


def open_host(wanted: Wanted, directory: str) -> tuple[disk.Opened, str]:
    """Open the host's device by its numbers, and its name in the kernel's /dev. Where that is not to be had (in a container)
    by a node in `directory`, for as long as it takes. Blocks. Raises EffectError."""
    number = os.makedev(wanted.major, wanted.minor)
    about = _about(wanted)
    node = f"/dev/{about['DEVNAME']}"
    own = ""
    if not _is(node, number):
        own = f"{directory}/{wanted.serial}.disk"
        _make_node(own, number)
    readonly = wanted.readonly or about["ro"] == "1"
    try:
        fd = os.open(own or node, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC)
    except OSError as error:
        raise errors.EffectError("disk", f"`{node}` cannot be opened: {error.strerror}") from error
    finally:
        if own:
            os.unlink(own)
    if os.fstat(fd).st_rdev != number:
        os.close(fd)
        raise errors.EffectError("disk", f"`{node}` is another device by now")
    return disk.Opened(fd, readonly, _bytes(fd, _BLKSSZGET), _bytes(fd, _BLKPBSZGET)), node


def _about(wanted: Wanted) -> dict[str, str]:
    """What the kernel says of the device: `DEVNAME` below its /dev, and `ro`, which is 1 when nobody can write."""
    top = f"/sys/dev/block/{wanted.major}:{wanted.minor}"
    try:
        with open(top + "/uevent", encoding="utf-8") as file:
            found = dict(line.rstrip("\n").partition("=")[::2] for line in file)
        with open(top + "/ro", encoding="ascii") as file:
            return {"DEVNAME": found["DEVNAME"], "ro": file.read().strip()}
    except (OSError, KeyError) as error:
        raise errors.EffectError("disk", "the host has no such block device") from error


def _is(path: str, number: int) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return stat.S_ISBLK(status.st_mode) and status.st_rdev == number


def _make_node(path: str, number: int) -> None:
    try:
        if os.path.lexists(path):
            os.unlink(path)
        os.mknod(path, stat.S_IFBLK | 0o600, number)
    except OSError as error:
        raise errors.EffectError("disk", f"no node for it can be made at `{path}`: {error.strerror}") from error


def _bytes(fd: int, request: int) -> int:
    """A size in bytes that the device tells."""
    try:
        return int(struct.unpack("=I", fcntl.ioctl(fd, request, b"\0" * 4))[0]) or _SECTOR_BYTES
    except OSError:
        return _SECTOR_BYTES


class _Wrapped:
    def __init__(self, inner: Handler, disks: Disks) -> None:
        self.inner = inner
        self.disks = disks

    async def undo(self, intent: Intent) -> Result:
        """As the handler's own; disks go by `container.unstage`."""
        return await self.inner.undo(intent)


class Plugging(_Wrapped):
    """`container.create`, its disks first. Params: "disks" as `wanted_by` reads them. Result: and {"disks": what
    `Disks.plug` answers}, if there are any."""

    async def perform(self, intent: Intent) -> Result:
        """Plug, then let the guest find them."""
        wanted = wanted_by(intent.params)
        plugged = await self.disks.plug(wanted) if wanted else []
        result = await self.inner.perform(intent)
        return {**result, "disks": plugged} if plugged else result

    async def probe(self, intent: Intent) -> Observed:
        """As the handler's own: the guest found its disks."""
        return await self.inner.probe(intent)


class Unplugging(_Wrapped):
    """`container.unstage`, its disks first. Result: and {"unplugged": [names]}, if it had any."""

    async def perform(self, intent: Intent) -> Result:
        """Unplug what nobody else asks for. What cannot be unplugged keeps the rest, to be tried again."""
        wanted = wanted_by(intent.params)
        unplugged = await self.disks.unplug(wanted) if wanted else []
        result = await self.inner.perform(intent)
        return {**result, "unplugged": unplugged} if wanted else result

    async def probe(self, intent: Intent) -> Observed:
        """Done when the handler's own says so, and none of its disks is left that nobody asks for."""
        observed = await self.inner.probe(intent)
        wanted = wanted_by(intent.params)
        if not observed.done or not wanted:
            return observed
        try:
            return Observed(False) if await self.disks.left(wanted) else observed
        except errors.EffectError:
            return Observed(None)
