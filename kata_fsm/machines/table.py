# SPDX-License-Identifier: Apache-2.0
"""One machine as one table.

A `Table` is defined once, as rows. From the same rows come the `transitions` machine that fires them (used where a
trigger may be illegal and must be refused) and a plain dict (used where a journal is folded, a hundred times faster, and
without importing `transitions`). A test proves both equal.

`transitions` is used as a pure function: one shared machine without a model, fired on a throw-away cursor. Facts that
shaped this (0.9.3): a false `conditions` returns False silently, so legality is never a condition; `auto_transitions`
would add `to_X()` back doors; `queued=True` always returns True; duplicate rows and unknown destinations are accepted
silently, so `Table` checks them itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from kata_fsm.errors import Bug, IllegalTransition

if TYPE_CHECKING:
    from transitions import Machine

Row = tuple[str, str, str]
"""(source, trigger, destination)."""


class _Cursor:
    """What `transitions` moves: it holds a state for the length of one call."""

    def __init__(self, state: str) -> None:
        self.state = state


class Table:
    """A machine: its states, its rows, and which states wait for an effect.

    `effects` maps each *transitional* state to the kind of the one effect that is outstanding in it. States without rows
    are terminal and must be named in `terminal`, so that none is terminal by oversight.
    """

    def __init__(
        self,
        name: str,
        *,
        initial: str,
        rows: Sequence[Row],
        effects: Mapping[str, str],
        terminal: frozenset[str],
        version: int = 1,
    ) -> None:
        self.name = name
        self.initial = initial
        self.rows = tuple(rows)
        self.effects = dict(effects)
        self.terminal = terminal
        self.version = version
        self.moves: dict[str, dict[str, str]] = {}
        self._fired: dict[tuple[str, str], str] = {}  # what the machine has answered: it holds no state of its own
        for source, trigger, dest in self.rows:
            self.moves.setdefault(dest, {})
            triggers = self.moves.setdefault(source, {})
            if trigger in triggers:
                raise Bug(f"{name}: `{source}` has two rows for `{trigger}`")
            triggers[trigger] = dest
        self._check()

    def _check(self) -> None:
        without_rows = {state for state, triggers in self.moves.items() if not triggers}
        if without_rows != self.terminal:
            raise Bug(f"{self.name}: terminal states are {sorted(without_rows)}, declared {sorted(self.terminal)}")
        unknown = (set(self.effects) | {self.initial}) - set(self.moves)
        if unknown:
            raise Bug(f"{self.name}: unknown states {sorted(unknown)}")

    @property
    def states(self) -> tuple[str, ...]:
        """All states, in the order in which the rows first name them."""
        seen: dict[str, None] = {}
        for source, _, dest in self.rows:
            seen[source] = None
            seen[dest] = None
        return tuple(seen)

    @property
    def triggers(self) -> tuple[str, ...]:
        """All triggers, in the order of the rows."""
        return tuple(dict.fromkeys(trigger for _, trigger, _ in self.rows))

    def legal(self, state: str) -> tuple[str, ...]:
        """The triggers that `state` has a row for."""
        return tuple(self.moves[state])

    @cached_property
    def machine(self) -> Machine:
        """The `transitions` machine of this table: shared, model-less, without automatic transitions."""
        from transitions import Machine

        return Machine(
            model=None,
            states=list(self.states),
            transitions=[{"trigger": t, "source": s, "dest": d} for s, t, d in self.rows],
            initial=self.initial,
            auto_transitions=False,
            queued=False,
            send_event=False,
        )

    def fire(self, state: str, trigger: str, *, subject: str = "") -> str:
        """The state that `trigger` leads to from `state`.

        Raises `IllegalTransition`, naming machine, subject, state, what was asked and what is legal.
        """
        known = self._fired.get((state, trigger))
        if known is not None:
            return known
        from transitions import MachineError

        event = self.machine.events.get(trigger)
        cursor = _Cursor(state)
        if event is not None:
            try:
                event.trigger(cursor)
            except MachineError:
                event = None
        if event is None:
            raise IllegalTransition(self.name, subject or "this sandbox", state, trigger, self.legal(state))
        self._fired[(state, trigger)] = cursor.state
        return cursor.state

    def follow(self, state: str, trigger: str) -> str | None:
        """Like `fire` by the plain dict, for folds: None where there is no row."""
        return self.moves.get(state, {}).get(trigger)
