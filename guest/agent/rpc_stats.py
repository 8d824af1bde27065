# SPDX-License-Identifier: Apache-2.0
"""StatsContainer: cgroup v2 files in the shape of the agent's message, which is v1's. A limit of `max` is 0."""

from __future__ import annotations

import os

from . import files
from .cgroups import keyed, number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .agent import Agent

    Message = dict[str, Any]

_NS_PER_US = 1000
_IO_FIELDS = (
    # list of the message, ((operation, key of io.stat), ...)
    ("io_service_bytes_recursive", (("Read", "rbytes"), ("Write", "wbytes"), ("Discard", "dbytes"))),
    ("io_serviced_recursive", (("Read", "rios"), ("Write", "wios"), ("Discard", "dios"))),
)
_NETWORK_FIELDS = (
    "rx_bytes",
    "rx_packets",
    "rx_errors",
    "rx_dropped",
    "tx_bytes",
    "tx_packets",
    "tx_errors",
    "tx_dropped",
)


def stats_container(agent: Agent, request: Message) -> Message:
    """Everything this guest's cgroup controllers tell. The network is the machine's, shared by its containers."""
    directory = agent.container(request.get("container_id", "")).cgroup
    return {
        "cgroup_stats": {
            "cpu_stats": _cpu(directory),
            "memory_stats": _memory(directory),
            "pids_stats": {"current": _number(directory, "pids.current"), "limit": _number(directory, "pids.max")},
            "blkio_stats": _io(files.read_or(f"{directory}/io.stat", "")),
            "hugetlb_stats": _hugetlb(directory),
        },
        "network_stats": _network(agent.settings.sysfs),
    }


def _number(directory: str, name: str) -> int:
    return number(files.read_or(f"{directory}/{name}", ""))


def _cpu(directory: str) -> Message:
    found = keyed(files.read_or(f"{directory}/cpu.stat", ""))
    return {
        "cpu_usage": {
            "total_usage": found.get("usage_usec", 0) * _NS_PER_US,
            "usage_in_kernelmode": found.get("system_usec", 0) * _NS_PER_US,
            "usage_in_usermode": found.get("user_usec", 0) * _NS_PER_US,
        },
        "throttling_data": {
            "periods": found.get("nr_periods", 0),
            "throttled_periods": found.get("nr_throttled", 0),
            "throttled_time": found.get("throttled_usec", 0) * _NS_PER_US,
        },
    }


def _memory(directory: str) -> Message:
    stats = keyed(files.read_or(f"{directory}/memory.stat", ""))
    events = keyed(files.read_or(f"{directory}/memory.events", ""))
    return {
        "cache": stats.get("file", 0),
        "usage": {
            "usage": _number(directory, "memory.current"),
            "max_usage": _number(directory, "memory.peak"),
            "failcnt": events.get("max", 0),
            "limit": _number(directory, "memory.max"),
        },
        "swap_usage": {
            "usage": _number(directory, "memory.swap.current"),
            "limit": _number(directory, "memory.swap.max"),
        },
        "kernel_usage": {"usage": stats.get("kernel", 0)},
        "use_hierarchy": True,
        "stats": {**stats, "oom": events.get("oom", 0), "oom_kill": events.get("oom_kill", 0)},
    }


def _io(text: str) -> Message:
    """`io.stat`: MAJOR:MINOR KEY=VALUE ..."""
    lists: dict[str, list[Message]] = {name: [] for name, _ in _IO_FIELDS}
    for line in text.splitlines():
        device, *pairs = line.split()
        major, _, minor = device.partition(":")
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        for name, operations in _IO_FIELDS:
            for operation, key in operations:
                if key in values:
                    lists[name].append(
                        {"major": int(major), "minor": int(minor), "op": operation, "value": int(values[key])}
                    )
    return dict(lists)


def _hugetlb(directory: str) -> Message:
    found: Message = {}
    try:
        names = os.listdir(directory)
    except OSError:
        return found
    for name in names:
        parts = name.split(".")
        if parts[0] == "hugetlb" and parts[2:] == ["current"]:
            events = keyed(files.read_or(f"{directory}/hugetlb.{parts[1]}.events", ""))
            found[parts[1]] = {"usage": _number(directory, name), "failcnt": events.get("max", 0)}
    return found


def _network(sysfs: str) -> list[Message]:
    base = f"{sysfs}/class/net"
    try:
        names = sorted(os.listdir(base))
    except OSError:
        return []
    return [
        {"name": name, **{field: _number(f"{base}/{name}/statistics", field) for field in _NETWORK_FIELDS}}
        for name in names
    ]
