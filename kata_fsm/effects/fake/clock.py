# SPDX-License-Identifier: Apache-2.0
"""The simulated host's clocks, boots and ids: trio's clock with what has been added to it, and dice."""

from __future__ import annotations

import trio

from kata_fsm.effects.fake.dice import Dice
from kata_fsm.world import World

EPOCH_NS = 1_795_431_727_000_000_000
"""When the simulation begins: 2026-11-23 11:02:07 UTC."""


class FakeWorld(World):
    """To be used inside a trio run whose clock is a `MockClock`."""

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
