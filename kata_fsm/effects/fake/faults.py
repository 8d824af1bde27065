# SPDX-License-Identifier: Apache-2.0
"""What is to go wrong, and when.

A supervisor of the simulated world is a `Doomed` process: before and after each append, each effect and each step inside
one it passes a *boundary*, where it may die. Dead, it can touch nothing any more: whatever of its code still unwinds
meets a closed door (`check`) before it reaches the journal, the host or the guest. Deaths between any two of trio's task
steps (every await) are brought about by an instrument, which needs no boundary.
"""

from __future__ import annotations

from collections import Counter, deque
from contextvars import ContextVar

import trio

EFFECT_FAULTS = ("before", "half", "after", "hang", "lost")
"""An effect fails before anything was done; half done; when all was done; hangs to its limit and has done nothing; is done
but its success is never heard of, which is known at its limit."""

CALL_FAULTS = ("refused", "unheard", "unanswered", "broken", "broken-after", "late")
"""A call to the agent: it answers with an error; the request is lost; the reply is lost; the connection breaks before the
agent has got the request, or after; the answer comes late, within the limit."""

JOURNAL_FAULTS = ("busy", "full")

BOUNDARIES = ("append", "effect", "await")
"""Where a supervisor may be told to die: at the n-th of one kind from now."""


class Died(BaseException):
    """A process of the simulated world was killed: it does nothing more. Nobody may catch this but its world."""


class Faults:
    """Everything that is still to go wrong, and a count of everything that has been reached."""

    def __init__(self, seen: Counter[str] | None = None) -> None:
        self.seen: Counter[str] = Counter() if seen is None else seen
        self._effects: dict[str, deque[str]] = {}
        self._calls: dict[str, deque[str]] = {}
        self._appends: deque[str] = deque()
        self.met: set[str] = set()  # what has gone wrong by plan: "effect", "effect hang", "call", ...
        self.passed: Counter[str] = Counter()  # boundaries, by kind
        self.changes = 0  # of the world: between two equal ones any death is like any other

    def plan_effect(self, kind: str, fault: str) -> None:
        """The next effect of `kind` meets `fault` (one of EFFECT_FAULTS)."""
        self._effects.setdefault(kind, deque()).append(fault)

    def plan_call(self, method: str, fault: str) -> None:
        """The next call of `method` ("" for any) to an agent meets `fault` (one of CALL_FAULTS)."""
        self._calls.setdefault(method, deque()).append(fault)

    def plan_append(self, fault: str) -> None:
        """The next append meets `fault` (one of JOURNAL_FAULTS)."""
        self._appends.append(fault)

    def clear(self) -> None:
        """From now on nothing goes wrong."""
        self._effects.clear()
        self._calls.clear()
        self._appends.clear()

    def of_effect(self, kind: str) -> str | None:
        """What the effect that begins now meets."""
        fault = self._next(self._effects, kind, f"fault {kind}")
        if fault is not None:
            self.met |= {"effect", f"effect {fault}"}
        return fault

    def of_call(self, method: str) -> str | None:
        """What the call that begins now meets."""
        fault = self._next(self._calls, method, "fault call")
        fault = fault if fault is not None else self._next(self._calls, "", "fault call")
        if fault is not None:
            self.met.add("call")
        return fault

    def of_append(self) -> str | None:
        """What the append that begins now meets."""
        if not self._appends:
            return None
        fault = self._appends.popleft()
        self.seen[f"fault append {fault}"] += 1
        return fault

    def _next(self, planned: dict[str, deque[str]], name: str, label: str) -> str | None:
        waiting = planned.get(name)
        if not waiting:
            return None
        fault = waiting.popleft()
        self.seen[f"{label} {fault}"] += 1
        return fault


class Doomed:
    """One process of the simulated world that may be killed. `scope` surrounds all that it does."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.dead = False
        self.scope = trio.CancelScope()
        self._left: dict[str, int] = {}

    def doom(self, boundary: str, count: int) -> None:
        """Die at the `count`-th boundary of that kind from now, counted from 0."""
        self._left[boundary] = count

    def check(self) -> None:
        """The door to everything outside. Raises `Died` for the dead."""
        if self.dead:
            raise Died

    def boundary(self, kind: str) -> None:
        """Pass one, or die at it."""
        if self.dead:
            raise Died
        self.faults.passed[kind] += 1
        left = self._left.get(kind)
        if left is None:
            return
        if left > 0:
            self._left[kind] = left - 1
            return
        self.faults.seen[f"death at {kind}"] += 1
        self.die()
        raise Died

    def die(self) -> None:
        """SIGKILL."""
        self.dead = True
        self.scope.cancel()


CURRENT: ContextVar[Doomed | None] = ContextVar("kata_fsm_doomed", default=None)
"""The process that a task belongs to; tasks inherit it."""


class AwaitDeaths(trio.abc.Instrument):
    """Lets every step of a doomed process's tasks be a boundary. Only while one is doomed so: it costs a little."""

    def __init__(self, *, distinct: bool = False) -> None:
        """With `distinct`, only the first step after each change of the world counts."""
        self._distinct = distinct
        self._changes = -1

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        doomed = task.context.get(CURRENT)
        if doomed is None or doomed.dead:
            return
        if self._distinct:
            if doomed.faults.changes == self._changes:
                return
            self._changes = doomed.faults.changes
        try:
            doomed.boundary("await")
        except Died:
            pass
