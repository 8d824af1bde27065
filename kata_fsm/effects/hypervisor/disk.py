# SPDX-License-Identifier: Apache-2.0
"""A block device of the host as a virtio-blk disk, plugged into and out of a running QEMU. Idempotent: what is there
already is fine.

QEMU is given a descriptor, so it opens no path and what was looked at is what it has. Names, by the host's numbers
(`7.3`; `7.3r` can only be read): `blk-7.3` the back end, `disk2-7.3` the device, whose number is that of its bus; `7.3`
is also the serial number by which the guest's agent finds it. An object `leaving-7.3` says that the guest was asked to
let go of it, which it may do at any time, whoever has died since. So all there is to know about disks can be asked of
QEMU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import trio

from kata_fsm import errors, limits
from kata_fsm.effects.hypervisor.hotplug import PERIPHERAL
from kata_fsm.effects.hypervisor.qmp import Monitor, QmpRefused
from kata_fsm.effects.hypervisor.settings import HypervisorSettings

_DEVICE = "disk"
_OBJECTS = "/objects"


class Opened(NamedTuple):
    """The host's device: a descriptor, whether it can only be read, and its sectors' sizes in bytes."""

    fd: int
    readonly: bool
    logical: int
    physical: int


def _node(name: str) -> str:
    return f"blk-{name}"


def backend_arguments(name: str, fdset: int, opened: Opened, settings: HypervisorSettings) -> dict[str, Any]:
    """Arguments of `blockdev-add`. Pure. QEMU has no native AIO through the host's cache."""
    return {
        "driver": "host_device",
        "node-name": _node(name),
        "filename": f"/dev/fdset/{fdset}",
        "aio": settings.disk_aio,
        "cache": {"direct": settings.disk_direct or settings.disk_aio == "native", "no-flush": settings.disk_noflush},
        "read-only": opened.readonly,
    }


def device_arguments(name: str, port: int, opened: Opened) -> dict[str, Any]:
    """Arguments of `device_add`. Pure. Whoever else on the host uses the device is not kept from it, as with runc."""
    return {
        "driver": "virtio-blk-pci",
        "id": f"{_DEVICE}{port}-{name}",
        "drive": _node(name),
        "serial": name,
        "bus": f"rp{port}",
        "share-rw": True,
        "logical_block_size": opened.logical,
        "physical_block_size": opened.physical,
    }


def _mark(name: str) -> str:
    return f"leaving-{name}"


async def _listed(monitor: Monitor, path: str = PERIPHERAL) -> list[str]:
    listing: list[dict[str, Any]] = await monitor.command("qom-list", {"path": path})
    return [str(entry["name"]) for entry in listing]


def find(peripherals: list[str], name: str) -> str | None:
    """The device that is the disk `name`. Pure."""
    return next((each for each in peripherals if each.startswith(_DEVICE) and each.partition("-")[2] == name), None)


def free_port(peripherals: list[str], ports: int) -> int | None:
    """A bus that nothing is plugged into; the highest, as NICs take the lowest. Pure. Bus 0 is the file share's."""
    taken = {each.partition("-")[0].removeprefix(_DEVICE) for each in peripherals if each.startswith(_DEVICE)}
    taken |= {each.removeprefix("nic") for each in peripherals if each.startswith("nic")}
    return next((number for number in range(ports - 1, 0, -1) if str(number) not in taken), None)


async def there(monitor: Monitor, name: str) -> bool:
    """Whether QEMU has anything of the disk `name` (one that is being unplugged still counts)."""
    if find(await _listed(monitor), name) is not None or await _has_node(monitor, name):
        return True
    return bool(await _fdsets(monitor, name))


async def _has_node(monitor: Monitor, name: str) -> bool:
    nodes: list[Mapping[str, Any]] = await monitor.command("query-named-block-nodes", {"flat": True})
    return any(node.get("node-name") == _node(name) for node in nodes)


async def _fdsets(monitor: Monitor, name: str) -> list[int]:
    """The numbers of those descriptors that somebody gave QEMU for the disk `name` and did not take back. While a back end
    has a copy of one, the end of the monitor's connection does not close it, and then nothing does."""
    sets: list[Mapping[str, Any]] = await monitor.command("query-fdsets")
    return [int(each["fdset-id"]) for each in sets if any(fd.get("opaque") == _node(name) for fd in each["fds"])]


async def plug(monitor: Monitor, name: str, opened: Opened, settings: HypervisorSettings) -> str:
    """Plug the disk `name`; the device's id. Its descriptor stays the caller's to close. Raises EffectError.

    A back end left without its device, by somebody who died between the two commands, is replaced; so is one that leaves.
    """
    if _mark(name) in await _listed(monitor, _OBJECTS):
        await unplug(monitor, name)
    peripherals = await _listed(monitor)
    device = find(peripherals, name)
    if device is not None:
        return device
    port = free_port(peripherals, settings.root_ports)
    if port is None:
        raise errors.EffectError(
            "disk",
            f"the machine has no bus left for another disk: it has `{settings.root_ports}`",
            hint="raise `hypervisor.qemu.pcie_root_port`",
        )
    await _forget(monitor, name)
    await _add_backend(monitor, name, opened, settings)
    arguments = device_arguments(name, port, opened)
    try:
        await monitor.command("device_add", arguments)
    except QmpRefused:
        await _forget(monitor, name)
        raise
    return str(arguments["id"])


async def _add_backend(monitor: Monitor, name: str, opened: Opened, settings: HypervisorSettings) -> None:
    fdset = await monitor.add_fd(_node(name), opened.fd)
    try:
        arguments = backend_arguments(name, fdset, opened, settings)
        try:
            await monitor.command("blockdev-add", arguments)
        except QmpRefused:
            if arguments["aio"] != "io_uring":
                raise
            await monitor.command("blockdev-add", {**arguments, "aio": "threads"})  # not every host has it
    finally:
        with trio.CancelScope(shield=True):
            await _quietly(monitor, "remove-fd", {"fdset-id": fdset})  # the back end has a copy


async def unplug(monitor: Monitor, name: str, *, limit_s: float = limits.UNPLUG_S) -> bool:
    """Unplug it and wait until the guest has let it go and QEMU the host's device; False if there was nothing of it.
    Raises TimeoutExceeded."""
    device = find(await _listed(monitor), name)
    if device is None:
        return await _forget(monitor, name)
    await _quietly(monitor, "object-add", {"qom-type": "throttle-group", "id": _mark(name)})  # the plainest there is
    await _quietly(monitor, "device_del", {"id": device})  # QEMU refuses it a second time while the first is under way
    with trio.move_on_after(limit_s):
        while find(await _listed(monitor), name) is not None:
            await trio.sleep(limits.QMP_RETRY_S)
        while await _forget(monitor, name) and await there(monitor, name):
            await trio.sleep(limits.QMP_RETRY_S)
        return True
    raise errors.TimeoutExceeded("unplug", f"the guest did not let `{device}` go within {limit_s:g} s")


async def _forget(monitor: Monitor, name: str) -> bool:
    """Remove the back end, and what was to become one, if it is there; whether it was."""
    there = await _has_node(monitor, name)
    if there:
        await _quietly(monitor, "blockdev-del", {"node-name": _node(name)})
    for fdset in await _fdsets(monitor, name):
        await _quietly(monitor, "remove-fd", {"fdset-id": fdset})
        there = True
    await _quietly(monitor, "object-del", {"id": _mark(name)})
    return there


async def _quietly(monitor: Monitor, command: str, arguments: dict[str, object]) -> None:
    try:
        await monitor.command(command, arguments)
    except QmpRefused:
        pass  # it is not there, or in use for a moment more
