# SPDX-License-Identifier: Apache-2.0
"""`linux.devices` and `linux.resources.devices`: which devices the guest has, is given, or cannot have. Pure.

    what any kernel has     made in the guest, by the numbers that all kernels share
    block devices           the machine is given the host's, as a disk; the guest's agent puts in the guest's numbers
    everything else         refused by name, as the guest's kernel has no such device

A privileged container (device rules that allow everything) has every node of the host's /dev from podman and Docker. Those
that cannot be had, and disks with them, are left out where `runtime.privileged_without_host_devices` says so.

Rules name devices by number, and a number of the host's means another device in the guest, or none. So each disk gets two
rules of its own at the end, what it may be used for and nothing else, and rules for other block devices by number go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from kata_fsm.oci.reading import fault
from kata_fsm.oci.spec import Device, DeviceRule

GUEST_DEVICES = frozenset({(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (10, 200), (10, 229)})
"""Character devices that mean the same in the guest: null zero full random urandom tty console ptmx, net/tun, fuse."""

KEY = "runtime.privileged_without_host_devices"
ACCESS = "rwm"

There = Callable[[int, int], bool]
"""Whether the host has a block device of these numbers."""


class Disk(msgspec.Struct, frozen=True):
    """A block device of the host that a container has at `path`. `readonly`: its rules let nobody write."""

    major: int
    minor: int
    readonly: bool
    path: str


class Wanted(NamedTuple):
    """One disk of the machine by the host's numbers, as several containers may share it."""

    major: int
    minor: int
    readonly: bool

    @property
    def serial(self) -> str:
        """Its name in QEMU, and the serial number by which the guest finds it: at most 20 bytes, virtio's limit."""
        return f"{self.major}.{self.minor}{'r' if self.readonly else ''}"


def wanted_by(config: Mapping[str, Any]) -> list[Wanted]:
    """The disks that one container asks for, as they are recorded: {"disks": [fields of `Disk`]}. Each once."""
    found = (
        Wanted(int(each["major"]), int(each["minor"]), bool(each["readonly"])) for each in config.get("disks") or []
    )
    return list(dict.fromkeys(found))


class Divided(msgspec.Struct, frozen=True):
    """Indexes of the devices that stay in the document, those of them that are disks, and paths of what is left out."""

    kept: list[int]
    disks: list[Disk]
    left_out: list[str]


def divide(
    devices: Sequence[Device], rules: Sequence[DeviceRule], there: There, *, spare: bool, own_users: bool = False
) -> Divided:
    """What becomes of each device. `spare`: what a privileged container cannot have is left out. `own_users`: it has a user
    namespace. Raises `SpecError` naming the device that cannot be had."""
    privileged = allows_everything(rules)
    kept, disks, left_out = [], [], []
    for index, device in enumerate(devices):
        if device.type == "p" or (device.type in ("c", "u") and _numbers(device) in GUEST_DEVICES):
            kept.append(index)
        elif spare and privileged:
            left_out.append(device.path)
        else:
            disks.append(_disk(f"linux.devices[{index}]", device, rules, there, privileged, own_users))
            kept.append(index)
    return Divided(kept, disks, left_out)


def _numbers(device: Device) -> tuple[int, int]:
    return device.major or 0, device.minor or 0


def _disk(
    field: str, device: Device, rules: Sequence[DeviceRule], there: There, privileged: bool, own_users: bool
) -> Disk:
    major, minor = _numbers(device)
    what = f"host device `{device.path}` ({device.type} {major}:{minor})"
    hint = f"set `{KEY}`, or run it without `--privileged`" if privileged else "remove it from the bundle"
    if device.type != "b":
        raise fault(field, f"{what} cannot be given to the guest", hint=hint)
    if not there(major, minor):
        raise fault(field, f"{what} does not exist: the host has no such block device", hint=hint)
    if own_users:  # the guest's crun would bind it from a path that only the host has
        raise fault(field, f"{what} cannot be given to a container with a user namespace", hint=hint)
    return Disk(major, minor, "w" not in access(rules, "b", major, minor), device.path)


def access(rules: Iterable[DeviceRule], kind: str, major: int | None, minor: int | None) -> str:
    """The letters of `rwm` by which a device may be used: of each, the last rule that names both counts (runtime-spec,
    config-linux.md). Numbers that are None: only rules for all numbers do. Without any rule all of them, as with crun."""
    letters: set[str] | None = None
    for rule in rules:
        letters = set() if letters is None else letters
        of_kind = rule.type in (None, "", "a", kind)
        if of_kind and _names(rule.major, major) and _names(rule.minor, minor):
            letters = letters | set(_letters(rule)) if rule.allow else letters - set(_letters(rule))
    return ACCESS if letters is None else "".join(letter for letter in ACCESS if letter in letters)


def _letters(rule: DeviceRule) -> str:
    return rule.access or ACCESS


def _any(number: int | None) -> bool:
    return number is None or number < 0


def _names(rule: int | None, number: int | None) -> bool:
    return _any(rule) or rule == number


def allows_everything(rules: Sequence[DeviceRule]) -> bool:
    """Whether rules there are, and they allow every device: what engines make of `--privileged`."""
    return bool(rules) and all(access(rules, kind, None, None) == ACCESS for kind in "bc")


def rules_for_guest(
    rules: Sequence[DeviceRule], documents: Sequence[dict[str, Any]], disks: Sequence[Disk]
) -> tuple[list[dict[str, Any]], list[int]]:
    """(rules, indexes of those that allowed a block device that was not given). Those of the disks bear the host's numbers,
    each disk's alone, for the guest's agent to put its own in their place."""
    if not rules:
        return [], []
    given = list(dict.fromkeys((disk.major, disk.minor) for disk in disks))
    kept, lost = [], []
    for index, (rule, document) in enumerate(zip(rules, documents, strict=True)):
        if rule.type != "b" or (_any(rule.major) and _any(rule.minor)):
            kept.append(document)
        elif rule.allow and not any(_names(rule.major, major) and _names(rule.minor, minor) for major, minor in given):
            lost.append(index)
    for major, minor in given:
        known = {"type": "b", "major": major, "minor": minor}
        kept.append({"allow": False, **known, "access": ACCESS})
        allowed = access(rules, "b", major, minor)
        if allowed:
            kept.append({"allow": True, **known, "access": allowed})
    return kept, lost
