# SPDX-License-Identifier: Apache-2.0
"""A NIC on a tap, plugged into and out of a running QEMU. Idempotent: what is there already is fine.

The tap's descriptors are passed to QEMU (`getfd`), which may therefore run in any network namespace and needs no right to
make taps. Names: `nic<slot>` the device, `net<slot>` its back end, `rp<slot>` the bus (`rp0` is the file share's).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio

from kata_fsm import errors, limits
from kata_fsm.effects.hypervisor.hotplug import PERIPHERAL, has_device
from kata_fsm.effects.hypervisor.qmp import Monitor, QmpRefused

_DEVICE = "nic"


def device(slot: int) -> str:
    """The NIC's id in QEMU."""
    return f"{_DEVICE}{slot}"


def _backend(slot: int) -> str:
    return f"net{slot}"


def _queue(slot: int, number: int) -> str:
    return f"{device(slot)}q{number}"


def _vhost(slot: int, number: int) -> str:
    return f"{device(slot)}v{number}"


def backend_arguments(slot: int, names: Sequence[str], vhost: Sequence[str]) -> dict[str, Any]:
    """Arguments of `netdev_add` for passed descriptors, one name for each queue pair. Pure."""
    plural = len(names) > 1
    found: dict[str, Any] = {"type": "tap", "id": _backend(slot), "fds" if plural else "fd": ":".join(names)}
    if vhost:
        found["vhost"] = True
        found["vhostfds" if plural else "vhostfd"] = ":".join(vhost)
    return found


def device_arguments(slot: int, mac: str, queues: int) -> dict[str, Any]:
    """Arguments of `device_add`. Pure. A vector for each direction of each queue, one for control and one for changes."""
    found: dict[str, Any] = {
        "driver": "virtio-net-pci",
        "id": device(slot),
        "netdev": _backend(slot),
        "mac": mac,
        "bus": f"rp{slot}",
        "romfile": "",  # nobody boots from it
    }
    if queues > 1:
        found.update({"mq": True, "vectors": 2 * queues + 2})
    return found


async def slots(monitor: Monitor) -> list[int]:
    """The slots of all NICs that QEMU has."""
    listing: list[dict[str, Any]] = await monitor.command("qom-list", {"path": PERIPHERAL})
    names = [str(entry["name"]) for entry in listing]
    numbers = [name.removeprefix(_DEVICE) for name in names if name.startswith(_DEVICE)]
    return sorted(int(number) for number in numbers if number.isdecimal())


async def clear(monitor: Monitor, slot: int, queues: int) -> None:
    """Make QEMU let go of a tap that somebody gave it and then died: a back end without its device, or a descriptor that
    was not used yet. Without this the tap, which has as many descriptors as queues, could not be opened again."""
    await _forget(monitor, slot)
    for number in range(queues):
        for name in (_queue(slot, number), _vhost(slot, number)):
            await _quietly(monitor, "closefd", {"fdname": name})


async def plug(monitor: Monitor, *, slot: int, mac: str, fds: Sequence[int], vhost: Sequence[int]) -> bool:
    """Plug a NIC whose tap has the queues `fds` (which stay the caller's to close); False if it was there already.

    `clear` must have been called before the tap was opened. Raises EffectError.
    """
    if await has_device(monitor, device(slot)):
        return False
    names = {_queue(slot, number): fd for number, fd in enumerate(fds)}
    vhost_names = {_vhost(slot, number): fd for number, fd in enumerate(vhost)}
    for name, fd in (names | vhost_names).items():
        await monitor.pass_fd(name, fd)
    try:
        await monitor.command("netdev_add", backend_arguments(slot, list(names), list(vhost_names)))
    except QmpRefused:
        for name in names | vhost_names:
            await _quietly(monitor, "closefd", {"fdname": name})
        raise
    try:
        await monitor.command("device_add", device_arguments(slot, mac, len(fds)))
    except QmpRefused:
        await _forget(monitor, slot)
        raise
    return True


async def unplug(monitor: Monitor, slot: int, *, limit_s: float = limits.UNPLUG_S) -> bool:
    """Unplug it and wait until the guest has let it go; False if it was not there. Raises TimeoutExceeded."""
    name = device(slot)
    if not await has_device(monitor, name):
        await _forget(monitor, slot)
        return False
    await _quietly(monitor, "device_del", {"id": name})  # QEMU refuses it a second time while the first is under way
    with trio.move_on_after(limit_s):
        while await has_device(monitor, name):
            await trio.sleep(limits.QMP_RETRY_S)
        await _forget(monitor, slot)
        return True
    raise errors.TimeoutExceeded("unplug", f"the guest did not let `{name}` go within {limit_s:g} s")


async def _forget(monitor: Monitor, slot: int) -> None:
    await _quietly(monitor, "netdev_del", {"id": _backend(slot)})


async def _quietly(monitor: Monitor, command: str, arguments: dict[str, object]) -> None:
    try:
        await monitor.command(command, arguments)
    except QmpRefused:
        pass  # it is not there
