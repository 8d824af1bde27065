# SPDX-License-Identifier: Apache-2.0
"""The true account of what the host holds: every machine, daemon, namespace, mount, cgroup, tree and file."""

from __future__ import annotations

from collections import Counter

Thing = tuple[str, str]
"""(kind, name), such as ("netns", "0123456789ab")."""


class Ledger:
    """`held` now, and how often each thing was taken, given back, or lost with the boot it belonged to."""

    def __init__(self) -> None:
        self.held: dict[Thing, None] = {}
        self.taken: Counter[Thing] = Counter()
        self.returned: Counter[Thing] = Counter()
        self.wrong: list[str] = []

    def take(self, kind: str, name: str) -> None:
        """It comes into being. Twice at once is wrong."""
        if (kind, name) in self.held:
            self.wrong.append(f"{kind} `{name}` was acquired while it was held")
        self.held[(kind, name)] = None
        self.taken[(kind, name)] += 1

    def give_back(self, kind: str, name: str) -> bool:
        """It is let go of; whether it was there. Letting go of nothing is what a repeated clean-up does."""
        if (kind, name) not in self.held:
            return False
        del self.held[(kind, name)]
        self.returned[(kind, name)] += 1
        return True

    def has(self, kind: str, name: str) -> bool:
        """Whether it is there."""
        return (kind, name) in self.held

    def lose(self, kind: str, name: str) -> None:
        """The host took it away itself: a process that ended, or anything at a new boot."""
        self.give_back(kind, name)

    def names(self, kind: str, prefix: str = "") -> list[str]:
        """What is held of one kind, oldest first."""
        return [name for k, name in self.held if k == kind and name.startswith(prefix)]

    def unbalanced(self) -> list[str]:
        """What was not released exactly as often as it was acquired."""
        things = {*self.taken, *self.returned}
        odd = sorted(thing for thing in things if self.taken[thing] != self.returned[thing])
        return [f"{k} `{n}`: acquired {self.taken[k, n]}, released {self.returned[k, n]}" for k, n in odd]
