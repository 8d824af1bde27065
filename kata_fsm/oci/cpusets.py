# SPDX-License-Identifier: Apache-2.0
"""Sets of processors and memory nodes, as `linux.resources.cpu.cpus` and `mems` and the kernel write them: `0-3,7`."""

from __future__ import annotations

import re

_PART = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?\Z", re.ASCII)
_NUMBER_MAX = 1 << 16  # the largest that the kernel can be built for is 8192

# cpusets(7): the kernel says here what is there now.
_ONLINE = {"cpus": "/sys/devices/system/cpu/online", "mems": "/sys/devices/system/node/online"}


def parse(text: str) -> frozenset[int]:
    """The numbers that a list means; blanks around its parts do not count. Raises `ValueError` for what is no list."""
    found: set[int] = set()
    for part in text.strip().split(","):
        match = _PART.match(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last >= _NUMBER_MAX:
            raise ValueError(part)
        found.update(range(first, last + 1))
    return frozenset(found)


def text_of(numbers: frozenset[int]) -> str:
    """The shortest list that means them; empty for none."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans)


def of_host(which: str) -> frozenset[int] | None:
    """The host's `cpus` or `mems`; None where the kernel does not say. One without NUMA has the node 0 alone."""
    try:
        with open(_ONLINE[which], encoding="ascii") as file:
            return parse(file.read())
    except FileNotFoundError:
        return frozenset({0}) if which == "mems" else None
    except (OSError, ValueError):
        return None
