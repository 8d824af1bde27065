# SPDX-License-Identifier: Apache-2.0
"""The agent's statistics in the words of `events --stats` (runc's and Kata's schema). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Document = dict[str, Any]

_BLKIO = {
    "ioServiceBytesRecursive": "io_service_bytes_recursive",
    "ioServicedRecursive": "io_serviced_recursive",
    "ioQueueRecursive": "io_queued_recursive",
    "ioServiceTimeRecursive": "io_service_time_recursive",
    "ioWaitTimeRecursive": "io_wait_time_recursive",
    "ioMergedRecursive": "io_merged_recursive",
    "ioTimeRecursive": "io_time_recursive",
    "sectorsRecursive": "sectors_recursive",
}
_UNLIMITED = 1 << 62  # cgroup v1 writes LONG_MAX rounded down to a page for "no limit", v2 agents LONG_MAX


def event_of(container_id: str, stats: Mapping[str, Any]) -> Document:
    """One event. `stats` is the agent's StatsContainerResponse by its field names; absent members count as zero."""
    return {"type": "stats", "id": container_id, "data": data_of(stats)}


def data_of(stats: Mapping[str, Any]) -> Document:
    """The event's `data`."""
    cgroup = _of(stats, "cgroup_stats")
    data: Document = {
        "cpu": _cpu(_of(cgroup, "cpu_stats")),
        "memory": _memory(_of(cgroup, "memory_stats")),
        "pids": _without_zeros(_pids(_of(cgroup, "pids_stats"))),
        "blkio": _blkio(_of(cgroup, "blkio_stats")),
        "hugetlb": {size: _huge(entry) for size, entry in _of(cgroup, "hugetlb_stats").items()},
        "intel_rdt": {},
    }
    interfaces = stats.get("network_stats") or []
    if interfaces:
        data["network_interfaces"] = [_interface(interface) for interface in interfaces]
    return data


def _of(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = parent.get(name)
    return found if isinstance(found, Mapping) else {}


def _without_zeros(document: Document) -> Document:
    """Go's `omitempty`."""
    return {name: value for name, value in document.items() if value}


def _number(parent: Mapping[str, Any], name: str) -> int:
    return int(parent.get(name) or 0)


def _cpu(cpu: Mapping[str, Any]) -> Document:
    usage, throttling = _of(cpu, "cpu_usage"), _of(cpu, "throttling_data")
    return {
        "usage": {
            **_without_zeros(
                {
                    "total": _number(usage, "total_usage"),
                    "percpu": [int(each) for each in usage.get("percpu_usage") or []],
                }
            ),
            "kernel": _number(usage, "usage_in_kernelmode"),
            "user": _number(usage, "usage_in_usermode"),
        },
        "throttling": _without_zeros(
            {
                "periods": _number(throttling, "periods"),
                "throttledPeriods": _number(throttling, "throttled_periods"),
                "throttledTime": _number(throttling, "throttled_time"),
            }
        ),
    }


def _memory_entry(entry: Mapping[str, Any]) -> Document:
    return {
        "limit": _number(entry, "limit"),
        **_without_zeros({"usage": _number(entry, "usage"), "max": _number(entry, "max_usage")}),
        "failcnt": _number(entry, "failcnt"),
    }


def _memory(memory: Mapping[str, Any]) -> Document:
    return {
        **_without_zeros({"cache": _number(memory, "cache")}),
        "usage": _memory_entry(_of(memory, "usage")),
        "swap": _memory_entry(_of(memory, "swap_usage")),
        "kernel": _memory_entry(_of(memory, "kernel_usage")),
        "kernelTCP": _memory_entry({}),
        **_without_zeros({"raw": {name: int(value) for name, value in _of(memory, "stats").items()}}),
    }


def _pids(pids: Mapping[str, Any]) -> Document:
    limit = _number(pids, "limit")
    return {"current": _number(pids, "current"), "limit": 0 if limit > _UNLIMITED else limit}


def _blkio(blkio: Mapping[str, Any]) -> Document:
    found = {ours: [_blkio_entry(entry) for entry in blkio.get(theirs) or []] for ours, theirs in _BLKIO.items()}
    return _without_zeros(found)


def _blkio_entry(entry: Mapping[str, Any]) -> Document:
    numbers = {name: _number(entry, name) for name in ("major", "minor", "value")}
    return _without_zeros({**numbers, "op": str(entry.get("op") or "")})


def _huge(entry: Mapping[str, Any]) -> Document:
    return {
        **_without_zeros({"usage": _number(entry, "usage"), "max": _number(entry, "max_usage")}),
        "failcnt": _number(entry, "failcnt"),
    }


def _interface(interface: Mapping[str, Any]) -> Document:
    pairs = {
        "RxBytes": "rx_bytes",
        "RxPackets": "rx_packets",
        "RxErrors": "rx_errors",
        "RxDropped": "rx_dropped",
        "TxBytes": "tx_bytes",
        "TxPackets": "tx_packets",
        "TxErrors": "tx_errors",
        "TxDropped": "tx_dropped",
    }
    numbers = {ours: _number(interface, theirs) for ours, theirs in pairs.items()}
    return {"Name": str(interface.get("name") or ""), **numbers}
