# SPDX-License-Identifier: Apache-2.0
"""The simulated host's clocks, boots and ids: trio's clock with what has been added to it, and dice."""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Any

import trio
from outcome import Value

from kata_fsm.effects.fake.dice import Dice
from kata_fsm.world import World

EPOCH_NS = 1_795_431_727_000_000_000
"""When the simulation begins: 2026-11-23 11:02:07 UTC."""


Place = list[trio.lowlevel.Task]
"""Where a task waits; empty as soon as it was woken. Who wakes it takes it out, so that nobody does it twice."""


class Virtual(trio.abc.Clock):
    """Time that jumps to the next deadline as soon as nobody can run, as a `MockClock`'s does, at less than half the cost.

    What waits in the simulated world waits here: a cancel scope with a deadline, and the exception by which it ends, cost
    several times as much. For the scheduler it is the same: who is due at the same time runs in one batch.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._alarms: list[tuple[float, int, Place]] = []  # a heap
        self._numbers = count()

    def start_clock(self) -> None:
        """It stands until somebody asks how long to wait."""

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """None, as a rule: it is asked only when no task can run, so this is when time passes."""
        alarms = self._alarms
        while alarms and not alarms[0][2]:
            heappop(alarms)
        ahead = min(deadline, alarms[0][0] if alarms else inf) - self._now
        if ahead == inf:
            return inf  # before and after everything, when trio waits for itself
        self._now += max(
            0.0, ahead
        )  # by floats' arithmetic that may fall short of the deadline: then it is asked again
        while alarms and alarms[0][0] <= self._now:
            wake(heappop(alarms)[2], False)
        return 0.0

    async def wait(self, place: Place, until: float) -> bool:
        """Wait in `place` until somebody wakes whom he finds there (True), or until that time (False)."""
        place.append(trio.lowlevel.current_task())
        if until < inf:
            heappush(self._alarms, (until, next(self._numbers), place))

        def abort(_: Any) -> trio.lowlevel.Abort:
            place.clear()
            return trio.lowlevel.Abort.SUCCEEDED

        return bool(await trio.lowlevel.wait_task_rescheduled(abort))


def wake(place: Place, value: bool = True) -> None:
    """Wake whoever waits there."""
    if place:
        trio.lowlevel.reschedule(place.pop(), Value(value))


def virtual() -> Virtual:
    """The clock of the simulated world that runs."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, Virtual), "the simulated world has a clock of its own"
    return clock


async def nap(seconds: float) -> None:
    """As `trio.sleep`; a task that is cancelled in the moment in which it is over learns of that at its next checkpoint."""
    if seconds > 0:
        clock = virtual()
        await clock.wait([], clock.current_time() + seconds)
    else:
        await trio.lowlevel.checkpoint()


class FakeWorld(World):
    """To be used inside a trio run whose clock is `Virtual`."""

    def __init__(self, dice: Dice) -> None:
        self._dice = dice.fork("world")
        self._wall_ahead_ns = 0
        self._mono_ahead_ns = 10_000_000_000
        self._boots = 1
        self._pids = 1000

    def _now_ns(self) -> int:
        return round(trio.current_time() * 1e9)

    def wall_ns(self) -> int:
        return EPOCH_NS + self._now_ns() + self._wall_ahead_ns

    def mono_ns(self) -> int:
        return self._now_ns() + self._mono_ahead_ns

    def boot_id(self) -> str:
        return f"{self._boots:08x}-0000-4000-8000-000000000000"

    def draw_uid(self) -> str:
        return self._dice.octets(6).hex()

    def random_bytes(self, count: int) -> bytes:
        return self._dice.octets(count)

    def pid(self) -> int:
        return 1

    # --- what a test may do to it

    def next_pid(self) -> int:
        """The pid of the next process; they come round again, as the kernel's do."""
        self._pids = 1000 + (self._pids - 999) % 4000
        return self._pids

    def jump(self, wall_s: float, mono_s: float = 0.0) -> None:
        """Somebody sets the wall clock (either way); a suspended host also finds its boot clock ahead."""
        self._wall_ahead_ns += round(wall_s * 1e9)
        self._mono_ahead_ns += round(max(0.0, mono_s) * 1e9)

    def reboot(self) -> None:
        """Another boot: another id, and a boot clock that begins again."""
        self._boots += 1
        self._mono_ahead_ns = 5_000_000_000 - self._now_ns()
