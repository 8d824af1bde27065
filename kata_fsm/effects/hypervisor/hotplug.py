# SPDX-License-Identifier: Apache-2.0
"""Devices that are plugged after the agent answers. Each is idempotent: what is there already is fine."""

from __future__ import annotations

from typing import Any

import trio

from kata_fsm import errors, limits
from kata_fsm.effects.hypervisor.qmp import Monitor, QmpRefused

SHARE_DEVICE = "share0"
SHARE_CHARDEV = "share0-back"
PERIPHERAL = "/machine/peripheral"


async def has_device(monitor: Monitor, device: str) -> bool:
    """Whether QEMU has a device with that id (one that is being unplugged still counts)."""
    listing: list[dict[str, Any]] = await monitor.command("qom-list", {"path": PERIPHERAL})
    return any(entry["name"] == device for entry in listing)


async def _has_chardev(monitor: Monitor, label: str) -> bool:
    listing: list[dict[str, Any]] = await monitor.command("query-chardev")
    return any(entry["label"] == label for entry in listing)


async def _remove_chardev(monitor: Monitor, label: str) -> None:
    if await _has_chardev(monitor, label):
        await monitor.command("chardev-remove", {"id": label})


async def plug_share(monitor: Monitor, *, socket: str, tag: str, bus: str, queue_size: int = 128) -> bool:
    """Plug a vhost-user-fs device whose back end listens on `socket`; False if it was there already.

    A back end left without its device by a crash between the two commands is replaced. Raises EffectError.
    """
    if await has_device(monitor, SHARE_DEVICE):
        return False
    await _remove_chardev(monitor, SHARE_CHARDEV)
    address = {"type": "unix", "data": {"path": socket}}
    backend = {"type": "socket", "data": {"addr": address, "server": False}}
    try:
        await monitor.command("chardev-add", {"id": SHARE_CHARDEV, "backend": backend})
        names = {"driver": "vhost-user-fs-pci", "id": SHARE_DEVICE, "chardev": SHARE_CHARDEV, "tag": tag, "bus": bus}
        device = {**names, "queue-size": queue_size}
        await monitor.command("device_add", device)
    except QmpRefused:
        await _remove_chardev(monitor, SHARE_CHARDEV)
        raise
    return True


async def unplug_share(monitor: Monitor, *, limit_s: float = limits.UNPLUG_S) -> bool:
    """Unplug it and wait until the guest has let it go; False if it was not there. Raises TimeoutExceeded."""
    if not await has_device(monitor, SHARE_DEVICE):
        await _remove_chardev(monitor, SHARE_CHARDEV)
        return False
    await monitor.command("device_del", {"id": SHARE_DEVICE})
    with trio.move_on_after(limit_s):
        while await has_device(monitor, SHARE_DEVICE):
            await trio.sleep(limits.QMP_RETRY_S)
        await _remove_chardev(monitor, SHARE_CHARDEV)
        return True
    raise errors.TimeoutExceeded("unplug", f"the guest did not let `{SHARE_DEVICE}` go within {limit_s:g} s")
