# SPDX-License-Identifier: Apache-2.0
"""For those who write effect handlers, and for our own tests.

`programs()` and `operations()` are hypothesis strategies (they import it when they are called); `attempt(program, ...)`
plays one program in the simulated world with handlers of yours in the place of ours and says what did not hold;
`check_handler(handler, intent)` holds one handler to what its Protocol promises. `kata-fsm fuzz --handlers MODULE:FUNCTION`
does the former at length. See `kata_fsm.effects.protocols` for the Protocols and `kata_fsm.testing.sim` for the engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kata_fsm.testing.contract import check_handler
    from kata_fsm.testing.sim.campaign import attempt_alone as attempt
    from kata_fsm.testing.sim.programs import draw, parse, show
    from kata_fsm.testing.strategies import operations, programs

__all__ = ["attempt", "check_handler", "draw", "operations", "parse", "programs", "show"]

_HOMES = {
    "attempt": ("kata_fsm.testing.sim.campaign", "attempt_alone"),
    "check_handler": ("kata_fsm.testing.contract", "check_handler"),
    "draw": ("kata_fsm.testing.sim.programs", "draw"),
    "operations": ("kata_fsm.testing.strategies", "operations"),
    "parse": ("kata_fsm.testing.sim.programs", "parse"),
    "programs": ("kata_fsm.testing.strategies", "programs"),
    "show": ("kata_fsm.testing.sim.programs", "show"),
}


def __getattr__(name: str) -> Any:
    """Imported at first use: a bundle can be made without any of it."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module `{__name__}` has no `{name}`")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
