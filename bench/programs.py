# SPDX-License-Identifier: Apache-2.0
"""programs: what a random program in the simulated world costs, in processor time of the command that plays them.

The goal is that two processes play 20,000 within 5 minutes when they have a core each. Start and end of the command count.
"""

from __future__ import annotations

import math

from bench.kit import Kit, cpu_s, say
from bench.report import AT_LEAST, AT_MOST, Claim, Report, Series

RUNS = 5
PROGRAMS = 300
CAMPAIGN = 20_000
PROCESSES = 2
GOAL_MIN = 5.0


def run(kit: Kit, runs: int) -> Report:
    """`kata-fsm fuzz` with programs of another seed each time, in one process."""
    cost, speed = Series("a program", "ms", []), Series("programs per second", "1/s", [])
    for number in range(runs):
        seed = f"bench{number}"
        argv = kit.argv("fuzz", "--seed", seed, "--programs", str(PROGRAMS), "--jobs", "1")
        each_s = cpu_s(argv, kit.env) / PROGRAMS
        cost.samples.append(each_s * 1e3)
        speed.samples.append(1 / each_s)
    say(f"simulated world: {runs} times {PROGRAMS} programs")
    whole_min = CAMPAIGN * cost.median / 1e3 / PROCESSES / 60
    wanted = math.ceil(CAMPAIGN / PROCESSES / (GOAL_MIN * 60))
    claims = [
        Claim(f"{CAMPAIGN:,} programs in {PROCESSES} processes", AT_MOST, GOAL_MIN, whole_min, "min"),
        Claim("programs per second of CPU", AT_LEAST, wanted, speed.median, ""),
    ]
    return Report("programs", [cost, speed], claims, ["CPU, user + system; beside other work a processor is slower"])
