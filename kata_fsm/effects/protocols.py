# SPDX-License-Identifier: Apache-2.0
"""What an effect handler is: do, look, undo, side by side.

The machines say *that* something must happen (an `Intent`, recorded before anything is done); a handler knows *how*.
All three methods can be called again after any crash: `perform` after a half-done `perform` succeeds or fails cleanly,
`undo` of what was never done does nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from kata_fsm.machines.vocab import Intent

if TYPE_CHECKING:
    from kata_fsm.effects.process import Exit, Identity

__all__ = ["Handler", "Intent", "Observed", "Processes"]


class Observed(msgspec.Struct, frozen=True):
    """What a probe found: `done` or not, None when the world cannot tell; `result` as `perform` answers it.

    `later`: it could not be asked just now (a connection that broke), and may tell in a moment.
    """

    done: bool | None
    result: dict[str, Any] = {}
    later: bool = False


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


class Processes(Protocol):
    """The host's processes, as far as a supervisor looks at those it did not start: `kata_fsm.effects.process` is one."""

    def identify(self, pid: int) -> Identity | None:
        """Who has `pid` now; None if nobody has."""
        ...

    def alive(self, identity: Identity) -> bool:
        """Whether that very process still runs."""
        ...

    async def wait_exit(self, identity: Identity) -> Exit:
        """Wait until it has ended; how, as far as anybody can tell."""
        ...

    def kill(self, identity: Identity, number: int) -> bool:
        """Send it signal `number`; whether it was there to get it."""
        ...
