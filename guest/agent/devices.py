# SPDX-License-Identifier: Apache-2.0
"""Block devices of the host that a container is given: disks of this machine, found by their serial numbers.

A configuration names them by the host's numbers, which mean something else here. What the kernel of this guest calls them
takes their place, in the list of devices and in the rules about them, before crun makes the nodes.
"""

from __future__ import annotations

import os

from . import bundle, files
from .errors import internal, invalid
from .loop import pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from .agent import Agent
    from .loop import Wait

    Json = dict[str, Any]
    Numbers = tuple[int, int]

KIND = "blk"
_DRIVER = "virtio_blk"
_DISK_TIMEOUT_S = 10.0  # a plugged disk was seen after 0.14 s under emulation
_POLL_S = 0.005


def give(agent: Agent, spec: Json, devices: list[Json]) -> Generator[Wait, bool, None]:
    """Change `spec` in place. `devices`: grpc.Device of type `blk`, `id` the serial number, `container_path` as in `spec`.

    Waits for disks that were just plugged. Raises INVALID_ARGUMENT for one that `spec` does not name, INTERNAL for one that
    does not appear.
    """
    linux = bundle.section(spec, "linux")
    found: dict[Numbers, Numbers] = {}
    entries: list[Json] = []
    for device in devices:
        kind, path = device.get("type", ""), device.get("container_path", "")
        if kind != KIND:
            raise invalid(f"device `{path}` is of type `{kind}`; legal is `{KIND}`")
        named = [each for each in linux.get("devices") or [] if each.get("path") == path and each.get("type") == "b"]
        if not named:
            raise invalid(f"`linux.devices` has no block device `{path}`")
        here = yield from _numbers(agent, str(device.get("id", "")), path)
        found.update((_numbers_of(each), here) for each in named)
        entries += named
    # All at once, as one disk may have here the numbers that another has on the host.
    rules = (linux.get("resources") or {}).get("devices") or []
    entries += [rule for rule in rules if rule.get("type") == "b" and _numbers_of(rule) in found]
    for entry in {id(entry): entry for entry in entries}.values():
        entry["major"], entry["minor"] = found[_numbers_of(entry)]


def _numbers_of(entry: Json) -> tuple[Any, Any]:
    return entry.get("major"), entry.get("minor")


def _numbers(agent: Agent, serial: str, path: str) -> Generator[Wait, bool, Numbers]:
    waited_s = 0.0
    while (found := _look(agent.settings.sysfs, serial)) is None:
        if waited_s == 0.0 and not os.path.exists(f"{agent.settings.sysfs}/bus/virtio/drivers/{_DRIVER}"):
            child = agent.children.spawn([agent.settings.busybox, "modprobe", _DRIVER])
            yield from child.wait()  # if it fails, no disk appears
        if waited_s >= _DISK_TIMEOUT_S:
            raise internal(f"the disk `{serial}` for `{path}` did not appear in `{_DISK_TIMEOUT_S:.0f}` s")
        waited_s += _POLL_S
        yield pause(_POLL_S)
    return found


def _look(sysfs: str, serial: str) -> Numbers | None:
    """The numbers of the disk with this serial number."""
    try:
        names = os.listdir(f"{sysfs}/block")
    except FileNotFoundError:
        return None
    for name in names:
        if name.startswith("vd") and files.read_or(f"{sysfs}/block/{name}/serial", "").strip() == serial:
            major, _, minor = files.read_or(f"{sysfs}/block/{name}/dev", "").strip().partition(":")
            if major.isdecimal() and minor.isdecimal():
                return int(major), int(minor)
    return None
