# SPDX-License-Identifier: Apache-2.0
"""cold: `kata-fsm run ... true`, against the bare time in which the same machine answers a ping.

A: wall time of the whole command, from nothing to nothing: supervisor, VM, share, container, its exit, and everything
removed again. B: from starting QEMU by the same command line to an answered `Health.Check` on the agent's port.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from bench.bare import Bare
from bench.kit import Kit, Ran, say
from bench.report import AT_MOST, Claim, Report, Series, ratio

RUNS = 15
GOAL = 1.6


@dataclass
class Cold:
    """What one series of runs gave: the commands, their stories from the journal, the bare times, the accelerator."""

    runs: list[Ran]
    stories: list[dict[str, Any]]
    bare_s: list[float]
    accel: str


def measure(kit: Kit, runs: int) -> Cold:
    """The two in turn; a first pair is not counted (KVM is probed, files are read from disk)."""
    bundle = kit.bundle("true", "true")
    found = Cold([], [], [], "")
    for number in range(runs + 1):
        name = kit.new_id("cold")
        ran = kit.verb("run", "--bundle", str(bundle), name)
        with Bare() as machine:
            bare_s = machine.ping()
            found.accel = machine.accel
        if number:
            say(f"cold {number}/{runs}: run {ran.wall_s:.2f} s, bare {bare_s:.2f} s")
            found.runs.append(ran)
            found.stories.append(json.loads(kit.verb("replay", name, "-o", "json").out))
            found.bare_s.append(bare_s)
    return found


def report(found: Cold) -> Report:
    """Of a measured series."""
    whole = Series("kata-fsm run ... true", "s", [ran.wall_s for ran in found.runs])
    bare = Series(f"bare QEMU ({found.accel}) to an answered ping", "s", found.bare_s)
    goal = Claim("cold run / bare boot", AT_MOST, GOAL, ratio(whole, bare))
    return Report("cold", [whole, bare], [goal], [f"beyond the bare boot: {whole.median - bare.median:.2f} s"])


def run(kit: Kit, runs: int) -> Report:
    return report(measure(kit, runs))
