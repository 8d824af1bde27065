# SPDX-License-Identifier: Apache-2.0
"""Chance from a seed: splitmix64, so that a run is the same on every machine and with every Python."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import TypeVar

T = TypeVar("T")

_MASK = (1 << 64) - 1


class Dice:
    """A stream of numbers. `fork` answers an independent one, so that one consumer does not shift another's."""

    def __init__(self, seed: int | str) -> None:
        self._state = int.from_bytes(sha256(str(seed).encode()).digest()[:8], "big")
        self._name = str(seed)

    def fork(self, label: object) -> Dice:
        """Dice that depend on the seed and `label` only."""
        return Dice(f"{self._name}/{label}")

    def draw(self) -> int:
        """64 bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        mixed = self._state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return mixed ^ (mixed >> 31)

    def below(self, bound: int) -> int:
        """A number from 0 to `bound` - 1."""
        return self.draw() % bound

    def chance(self, percent: int) -> bool:
        """True that often."""
        return self.below(100) < percent

    def pick(self, choices: Sequence[T]) -> T:
        """One of them."""
        return choices[self.below(len(choices))]

    def octets(self, count: int) -> bytes:
        """`count` bytes."""
        words = [self.draw().to_bytes(8, "big") for _ in range((count + 7) // 8)]
        return b"".join(words)[:count]
