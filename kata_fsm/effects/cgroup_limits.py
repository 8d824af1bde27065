# SPDX-License-Identifier: Apache-2.0
"""Writing a pod's limits (`oci.hosting`) into the host cgroup that its machine lives in, in either version.

Only a directory that we have made is written, never one above. Each file that we write is named in an extended attribute
of its directory before that, so that what is limited no more is let go of without memory, and what somebody else has set
there stays. A host that has no such file does not hold that limit, which is told and is no error; one that refuses is.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from kata_fsm import errors
from kata_fsm.effects.cgroup import Hierarchy
from kata_fsm.limits import HOST_CPU_PERIOD_US
from kata_fsm.oci import cpusets
from kata_fsm.oci.hosting import FIELDS, IO_WEIGHT_MIN, SHARES_MIN, Limits

LIMITS_MARK = "trusted.kata-fsm.limits"  # the names of the files in a directory that we have written, with commas

_NO_LIMIT = 1 << 60  # cgroup v1 says about this where there is none


class Knob(NamedTuple):
    """One file that a limit is written to: which of `Limits`, what is written for a value, and for none."""

    name: str
    file: str
    value: Callable[[Any], str]
    usual: str


def weight_of(shares: int) -> int:
    """`cpu.weight` for `cpu.shares`: their ranges laid over one another, as all runtimes do (crun.1, "CPU controller")."""
    return 1 + (shares - SHARES_MIN) * 9999 // 262142


def io_weight_of(weight: int) -> int:
    """`io.weight` for a weight of runtime-spec: likewise (crun.1, "IO controller")."""
    return 1 + (weight - IO_WEIGHT_MIN) * 9999 // 990


_V1 = (
    Knob("mems", "cpuset.mems", str, ""),
    Knob("cpus", "cpuset.cpus", str, ""),
    Knob("memory", "memory.limit_in_bytes", str, "-1"),
    Knob("shares", "cpu.shares", str, "1024"),
    Knob("quota", "cpu.cfs_quota_us", str, "-1"),
    Knob("io_weight", "blkio.weight", str, "500"),
    Knob("io_weight", "blkio.bfq.weight", str, "100"),
)
_V2 = (
    Knob("mems", "cpuset.mems", str, "\n"),
    Knob("cpus", "cpuset.cpus", str, "\n"),
    Knob("memory", "memory.max", str, "max"),
    Knob("shares", "cpu.weight", lambda value: str(weight_of(value)), "100"),
    Knob("quota", "cpu.max", lambda value: f"{value} {HOST_CPU_PERIOD_US}", f"max {HOST_CPU_PERIOD_US}"),
    Knob("io_weight", "io.weight", lambda value: str(io_weight_of(value)), "100"),
    Knob("io_weight", "io.bfq.weight", str, "100"),
)
"""In the order in which they are written: where memory is taken, before how much of it."""


class Place(NamedTuple):
    """The pod's cgroup in one hierarchy, and whether we have made it."""

    hierarchy: Hierarchy
    directory: str
    ours: bool


class Applied(NamedTuple):
    """File to value of what was written; for each limit that the host does not hold, why."""

    written: dict[str, str]
    unheld: dict[str, str]


def apply(places: list[Place], limits: Limits) -> Applied:
    """Let the pod's cgroup have these limits, and no others that we have written before. Blocks.

    Raises `EffectError` for one that the kernel does not take. Repeatable.
    """
    written: dict[str, str] = {}
    held: set[str] = set()
    foreign: dict[str, str] = {}
    for place in places:
        for knob in _V2 if place.hierarchy.unified else _V1:
            path = f"{place.directory}/{knob.file}"
            value = getattr(limits, knob.name)
            if not os.path.exists(path):
                continue
            if not place.ours:
                foreign[knob.name] = f"the cgroup `{place.directory}` was there before, and is left as it is"
                continue
            if value is not None:
                held.add(knob.name)
            written |= _set(place, knob, value)
    wanted = [name for name in FIELDS if getattr(limits, name) is not None]
    missing = "no cgroup of the host has a control for it"
    return Applied(written, {name: foreign.get(name, missing) for name in wanted if name not in held})


def told(unheld: dict[str, str]) -> list[str]:
    """A line for each limit that the host does not hold."""
    return [f"`{FIELDS[name]}` is not applied on the host: {why}" for name, why in unheld.items()]


def _set(place: Place, knob: Knob, value: Any) -> dict[str, str]:
    """Write one file, if it does not say so already; what was written."""
    path = f"{place.directory}/{knob.file}"
    ours = _marked(place.directory)
    if value is None and knob.file not in ours:
        return {}
    text = "" if value is None else knob.value(value)
    try:
        text = text or _usual(place, knob)
        before = _read(path)
        if knob.name == "quota" and not place.hierarchy.unified:
            text = _quota_v1(place, text)
        if before == text.strip():
            return {}
        if value is not None:
            _mark(place.directory, ours | {knob.file})
        if knob.name == "memory":
            _require_room(place, text)
        _write(path, text)
        if value is not None and knob.name in ("cpus", "mems") and place.hierarchy.unified:
            _require_effective(path, text)
        if value is None:
            _mark(place.directory, ours - {knob.file})
    except OSError as error:
        why = error.strerror or str(error)
        raise errors.EffectError(
            "cgroup",
            f"`{FIELDS[knob.name]}` cannot be applied on the host: `{path}` does not take `{text.strip()}`: {why}",
            evidence={"file": path, "value": text.strip()},
            hint=_hint(knob, error),
        ) from error
    return {path: text.strip()}


def _hint(knob: Knob, error: OSError) -> str | None:
    if knob.name == "memory" and error.errno == errno.EBUSY:
        return "the machine's processes use more already"
    if knob.name in ("cpus", "mems"):
        return "the cgroup above allows fewer"
    return None


def _usual(place: Place, knob: Knob) -> str:
    """What a file says that nobody has written; a cpuset of cgroup v1, which may not be empty, what the one above says."""
    return knob.usual or _read(f"{os.path.dirname(place.directory)}/{knob.file}")


def _quota_v1(place: Place, text: str) -> str:
    """The quota, for the period that we count with; none if that of a cgroup above is as tight.

    There the kernel takes none that is looser than one above (EINVAL), and while one is there, whoever rules above could
    not tighten his (`tg_cfs_schedulable_down` in Linux' kernel/sched).
    """
    if text == "-1":
        return text
    above = os.path.dirname(place.directory)
    while len(above) > len(place.hierarchy.point):
        quota, period = int(_read(f"{above}/cpu.cfs_quota_us")), int(_read(f"{above}/cpu.cfs_period_us"))
        if quota > 0 and quota * HOST_CPU_PERIOD_US <= int(text) * period:
            return "-1"
        above = os.path.dirname(above)
    period_file = f"{place.directory}/cpu.cfs_period_us"
    if _read(period_file) != str(HOST_CPU_PERIOD_US):
        _write(period_file, str(HOST_CPU_PERIOD_US))
    return text


def _require_room(place: Place, text: str) -> None:
    """Raise `OSError` (EBUSY) rather than have the kernel kill somebody for what is used already. Cgroup v1 refuses that by
    itself; v2 kills. What files have cached there the kernel takes back."""
    if text == "max" or not place.hierarchy.unified:
        return
    used = int(_read(f"{place.directory}/memory.current"))
    with open(f"{place.directory}/memory.stat", encoding="ascii") as file:
        rows = dict(line.split() for line in file)
    if used - int(rows.get("inactive_file", 0)) - int(rows.get("active_file", 0)) > int(text):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _require_effective(path: str, text: str) -> None:
    """Raise `OSError` unless a set of cgroup v2 is in force as it was written. The kernel takes any: of one that the cgroup
    above does not allow it applies what is left, or if nothing is, all of that one's. Cgroup v1 refuses it by itself."""
    effective = _read(f"{path}.effective")
    if not effective or cpusets.parse(effective) != cpusets.parse(text):
        _write(path, "\n")
        raise PermissionError(errno.EACCES, f"only `{effective}` of it would be in force")


def _marked(directory: str) -> frozenset[str]:
    try:
        return frozenset(filter(None, os.getxattr(directory, LIMITS_MARK).decode().split(",")))
    except OSError:
        return frozenset()


def _mark(directory: str, names: frozenset[str]) -> None:
    try:
        os.setxattr(directory, LIMITS_MARK, ",".join(sorted(names)).encode())
    except OSError:
        pass  # it is only needed for letting go again


def _read(path: str) -> str:
    """What a file says; of a weight the one for all devices, and memory without a limit as what is written for that."""
    with open(path, encoding="ascii", errors="replace") as file:
        text = file.read().strip()
    if path.endswith(".weight"):
        return text.split("\n")[0].removeprefix("default ").strip()
    if path.endswith("/memory.limit_in_bytes") and int(text) >= _NO_LIMIT:
        return "-1"
    return text


def _write(path: str, value: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(value)


def systemds(limits: Limits, *, unified: bool) -> list[tuple[str, str, Any]]:
    """The same as properties of a unit, (name, D-Bus type, value), for systemd, which else would write its own (see
    systemd.resource-control(5)). What is not limited is told as unset. It knows sets only where cgroup v2 rules."""
    unset = (1 << 64) - 1

    def number(value: int | None) -> int:
        return unset if value is None else value

    quota = None if limits.quota is None else limits.quota * 1_000_000 // HOST_CPU_PERIOD_US
    found: list[tuple[str, str, Any]] = [("CPUQuotaPerSecUSec", "t", number(quota))]
    if not unified:
        return [
            *found,
            ("CPUShares", "t", number(limits.shares)),
            ("MemoryLimit", "t", number(limits.memory)),
            ("BlockIOWeight", "t", number(limits.io_weight)),
        ]
    return [
        *found,
        ("CPUWeight", "t", number(None if limits.shares is None else weight_of(limits.shares))),
        ("MemoryMax", "t", number(limits.memory)),
        ("IOWeight", "t", number(None if limits.io_weight is None else io_weight_of(limits.io_weight))),
        ("AllowedCPUs", "ay", _bits(limits.cpus)),
        ("AllowedMemoryNodes", "ay", _bits(limits.mems)),
    ]


def _bits(text: str | None) -> bytes:
    """A set as systemd's bus has it: one bit for each number, the lowest byte first; nothing means unset."""
    whole = sum(1 << number for number in cpusets.parse(text)) if text else 0
    return whole.to_bytes((whole.bit_length() + 7) // 8, "little")
