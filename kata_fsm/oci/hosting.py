# SPDX-License-Identifier: Apache-2.0
"""What the containers of a pod are limited to, as limits of the host's processes that their machine consists of. Pure.

A container's limits hold in the guest, for the container alone. Around the machine the same numbers would be wrong: there
they stop what serves all containers, too. So the pod has limits of its own, which this module derives from those of its
living containers. Of a container that exists only to hold the pod (Kubernetes' pause) the sets alone count.

    processors, nodes   the union of the sets that are named; a container that names none runs where the others may
    shares              the sum, where any container names them; one that does not counts as the kernel's 1024
    quota               the sum and room beside it, if every container has one: otherwise the pod has none
    memory              the machine's and room beside it, if every container has a limit, whatever that is: the machine
                        was sized by it, and cannot shrink
    weight of I/O       the sum, at most 1000, if every container names one

No number of processes: those of the host are ours alone, a workload's are in the guest. No swap: what of a machine is
swapped out is bounded by its size, and a limit would make a kill of what is slow. No reservation: it is the guest's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from kata_fsm.limits import (
    HOST_CPU_PERIOD_US,
    HOST_CPU_ROOM_PART,
    HOST_CPU_ROOM_US,
    HOST_MEMORY_FILES_MIB_MAX,
    HOST_MEMORY_FILES_TIMES,
    HOST_MEMORY_TABLES_PART,
)
from kata_fsm.oci import cpusets
from kata_fsm.oci.spec import Resources

Asked = dict[str, Any]
"""What one container asks for: any of `memory` (bytes), `shares`, `quota` and `period` (microseconds), `cpus` and `mems`
(lists as the kernel's), `io_weight`. It is recorded with the container."""

SHARES_USUAL = 1024
SHARES_MIN, SHARES_MAX = 2, 1 << 18  # sched-design-CFS: what the kernel takes
IO_WEIGHT_MIN, IO_WEIGHT_MAX = 10, 1000  # runtime-spec, config-linux.md
_PERIOD_USUAL_US = 100_000
_MIB = 1 << 20


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """The pod's, for the host. None: there is none. `quota` counts for each `HOST_CPU_PERIOD_US`."""

    cpus: str | None = None
    mems: str | None = None
    shares: int | None = None
    quota: int | None = None
    memory: int | None = None
    io_weight: int | None = None


FIELDS: dict[str, str] = {
    "cpus": "linux.resources.cpu.cpus",
    "mems": "linux.resources.cpu.mems",
    "shares": "linux.resources.cpu.shares",
    "quota": "linux.resources.cpu.quota",
    "memory": "linux.resources.memory.limit",
    "io_weight": "linux.resources.blockIO.weight",
}
"""Which field of config.json each of them comes from."""


def asked(resources: Resources | None) -> Asked:
    """What of a container's resources concerns the host. Zeros and empty lists are how engines say "unset"."""
    if resources is None:
        return {}
    memory, cpu, block_io = resources.memory, resources.cpu, resources.block_io
    found = {
        "memory": memory.limit if memory else None,
        "shares": cpu.shares if cpu else None,
        "quota": cpu.quota if cpu else None,
        "period": cpu.period if cpu else None,
        "cpus": cpu.cpus if cpu else None,
        "mems": cpu.mems if cpu else None,
        "io_weight": block_io.weight if block_io else None,
    }
    return {name: value for name, value in found.items() if value}


def merged(known: Mapping[str, Any], change: Mapping[str, Any]) -> Asked:
    """What a container asks for after an update: what that does not name stays, and below zero means: no limit any more."""
    both = {**known, **change}
    return {name: value for name, value in both.items() if isinstance(value, str) or value > 0}


def for_pod(
    containers: Iterable[Mapping[str, Any]],
    *,
    memory_mib: int,
    overhead_mib: int,
    holder: Mapping[str, Any] = MappingProxyType({}),
) -> Limits:
    """The pod's limits from what its living containers ask for. `memory_mib`: the machine's; without an overhead the
    machine's memory is not limited. `holder`: what the container asks for that only holds the pod, if there is one."""
    each = list(containers)
    return Limits(
        cpus=_union([*each, holder], "cpus"),
        mems=_union([*each, holder], "mems"),
        shares=_shares(each),
        quota=_quota(each),
        memory=_memory(memory_mib, overhead_mib) if overhead_mib and _all_have(each, "memory") else None,
        io_weight=_io_weight(each),
    )


def _has(one: Mapping[str, Any], name: str) -> bool:
    return int(one.get(name) or 0) > 0


def _all_have(each: list[Mapping[str, Any]], name: str) -> bool:
    return bool(each) and all(_has(one, name) for one in each)


def _union(each: list[Mapping[str, Any]], name: str) -> str | None:
    named = [cpusets.parse(str(one[name])) for one in each if one.get(name)]
    return cpusets.text_of(frozenset().union(*named)) if named else None


def _shares(each: list[Mapping[str, Any]]) -> int | None:
    if not any(_has(one, "shares") for one in each):
        return None
    total = sum(int(one["shares"]) if _has(one, "shares") else SHARES_USUAL for one in each)
    return min(max(total, SHARES_MIN), SHARES_MAX)


def _quota(each: list[Mapping[str, Any]]) -> int | None:
    if not _all_have(each, "quota"):
        return None
    wanted = 0
    for one in each:
        period = int(one["period"]) if _has(one, "period") else _PERIOD_USUAL_US
        wanted += -(-int(one["quota"]) * HOST_CPU_PERIOD_US // period)
    return with_room(wanted)


def with_room(quota: int) -> int:
    """A quota for the machine that leaves its containers that much."""
    return quota + quota // HOST_CPU_ROOM_PART + HOST_CPU_ROOM_US


def _memory(memory_mib: int, overhead_mib: int) -> int:
    files = min(int(memory_mib * HOST_MEMORY_FILES_TIMES), HOST_MEMORY_FILES_MIB_MAX)
    return (memory_mib + overhead_mib + memory_mib // HOST_MEMORY_TABLES_PART + files) * _MIB


def _io_weight(each: list[Mapping[str, Any]]) -> int | None:
    if not _all_have(each, "io_weight"):
        return None
    return min(sum(int(one["io_weight"]) for one in each), IO_WEIGHT_MAX)
