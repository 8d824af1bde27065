# SPDX-License-Identifier: Apache-2.0
"""One thing that was looked at, and what the look says."""

from __future__ import annotations

from typing import Literal

import msgspec

Verdict = Literal["ok", "warning", "cannot", "untold"]
"""`cannot`: as it is, no sandbox can be created. `untold`: this user is not permitted to tell. `warning`: it can, but."""

MARKS: dict[str, str] = {"ok": "ok", "warning": "warn", "cannot": "CANNOT", "untold": "untold"}


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """`found` and `expected` in words; `fix` says what to do unless all is well. `needed`: no sandbox without it."""

    name: str
    verdict: Verdict
    found: str
    expected: str
    fix: str = ""
    needed: bool = True

    @property
    def stands_in_the_way(self) -> bool:
        """Whether a sandbox cannot be created, or nobody can say that it could, because of this."""
        return self.needed and self.verdict in ("cannot", "untold")

    def lines(self) -> list[str]:
        """One line, and a second one with the remedy."""
        text = f"{MARKS[self.verdict]:<7} {self.name}: found {self.found}; expected {self.expected}"
        return [text] if self.verdict == "ok" or not self.fix else [text, f"        fix: {self.fix}"]


def able(items: list[Item]) -> bool:
    """Whether a sandbox could be created now, as far as the items go."""
    return not any(item.stands_in_the_way for item in items)
