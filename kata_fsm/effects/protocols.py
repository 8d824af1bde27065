# SPDX-License-Identifier: Apache-2.0
"""What an effect handler is: do, look, undo, side by side.

The machines say *that* something must happen (an `Intent`, recorded before anything is done); a handler knows *how*.
All three methods can be called again after any crash: `perform` after a half-done `perform` succeeds or fails cleanly,
`undo` of what was never done does nothing.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from kata_fsm.machines.vocab import Intent

__all__ = ["Handler", "Intent", "Observed"]


class Observed(msgspec.Struct, frozen=True):
    """What a probe found: `done` or not, None when the world cannot tell; `result` as `perform` answers it."""

    done: bool | None
    result: dict[str, Any] = {}


class Handler(Protocol):
    """One kind of effect. Results are JSON-able."""

    async def perform(self, intent: Intent) -> dict[str, Any]:
        """Do it. Raises EffectError, whose phase and evidence are recorded."""
        ...

    async def probe(self, intent: Intent) -> Observed:
        """See whether it was done, changing nothing."""
        ...

    async def undo(self, intent: Intent) -> dict[str, Any]:
        """Take it back, whole or half done. Raises EffectError when something stays."""
        ...
