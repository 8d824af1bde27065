# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.support.campaign FILE`: the random programs of tests/property/test_world.py, played before all else.

They want every core, and the tests with virtual machines want them too: so scripts/test plays CI's 20,000 first, one process
per core, and the test takes what they came to from FILE, which KATA_FSM_CAMPAIGN names. Prints what they took.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

import msgspec

from kata_fsm.testing.sim.campaign import Parameters, Tally
from kata_fsm.testing.sim.worker import campaign, with_tuples
from kata_fsm.world import WORLD

PROFILE = os.environ.get("KATA_FSM_PROFILE", "")
CI_PROGRAMS = 20_000
PLAIN_PROGRAMS = 2_000
FILE = "KATA_FSM_CAMPAIGN"


class Played(msgspec.Struct):
    """A campaign, and what it took: seconds from its beginning to its end, and seconds of all its processes."""

    given: Parameters
    tally: Tally
    jobs: int
    wall_s: float
    cpu_s: float

    def told(self) -> str:
        """One line for people."""
        each_ms = 1000 * self.cpu_s / max(1, self.tally.ran)
        return (
            f"{self.tally.ran} programs in the simulated world: {self.wall_s:.0f} s by {self.jobs} processes, "
            f"{each_ms:.1f} ms of processor time each"
        )


def parameters() -> Parameters:
    """What this profile plays."""
    if PROFILE == "nightly":
        return Parameters(
            WORLD.random_bytes(4).hex(), 10**9, seconds=float(os.environ.get("KATA_FSM_HOURS", "4")) * 3600
        )
    return Parameters("ci", CI_PROGRAMS if PROFILE == "ci" else PLAIN_PROGRAMS)


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def play(given: Parameters, jobs: int) -> Played:
    """Play it."""
    begun_s, used_s = time.monotonic(), _cpu_s()
    tally = campaign(given, jobs)
    return Played(given, tally, jobs, time.monotonic() - begun_s, _cpu_s() - used_s)


def played(given: Parameters) -> Played | None:
    """The same campaign, if it was played before."""
    path = os.environ.get(FILE)
    if not path or not Path(path).exists():
        return None
    found = msgspec.json.decode(Path(path).read_bytes(), type=Played)
    if found.given != given:
        return None
    found.tally = with_tuples(found.tally)
    return found


def main(argv: list[str]) -> int:
    """Whether it held is for the test to say."""
    found = play(parameters(), len(os.sched_getaffinity(0)))
    Path(argv[0]).write_bytes(msgspec.json.encode(found))
    print(found.told())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
