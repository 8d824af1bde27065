# SPDX-License-Identifier: Apache-2.0
"""The loop: load, decide, append, adopt, perform, append the outcome.

One `Runtime` is the only writer of one sandbox's stream. Inputs are decided one at a time; a step's records are durable
before its intents are performed and before the caller hears that the input was accepted. Effects run side by side, each
in a task of its own; its end is an input like any other. Which effects run is a function of the folded pod, so an effect
in the guest whose state has been left is cancelled, and after a crash `resume` starts exactly the outstanding ones again.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import trio

from journal import InvalidAppend, Journal, JournalBusy, JournalDiskFull, NewRecord, Record, RequirementFailed, Stamp
from kata_fsm import __version__, snapshots
from kata_fsm.effects.protocols import Handler, Observed
from kata_fsm.errors import Bug, CallerError, EffectError, TimeoutExceeded
from kata_fsm.limits import (
    JOURNAL_RETRY_S,
    LOOK_AGAIN_S,
    LOOK_EVERY_S,
    OUTCOME_MESSAGE_CHARS_MAX,
    RETRY_S,
    SNAPSHOT_BYTES_MAX,
    SNAPSHOT_RECORDS,
)
from kata_fsm.machines import Intent, Pod, Step, decide, events_of, fold, outstanding, sandbox
from kata_fsm.machines.intents import ACQUIRING, CANCELLABLE, waits_for
from kata_fsm.machines.pod import TABLE_VERSION
from kata_fsm.machines.vocab import (
    CreateContainer,
    CreateSandbox,
    Draft,
    EffectDone,
    EffectFailed,
    Facts,
    Input,
    Observation,
    Outcome,
)
from kata_fsm.projections import Projecting, container_key
from kata_fsm.world import World

Blocking = Callable[[Callable[[], None]], Awaitable[None]]
"""How something that blocks is called: in a thread, or in a simulated world, where no thread may be, at once."""

VERSIONS = {"kata_fsm": __version__, "tables": TABLE_VERSION}


class IdTaken(CallerError):
    """Somebody else has the id."""


class _Waiter:
    """Somebody who waits for a pod that satisfies `condition`. It is asked at every step, so that none is missed."""

    def __init__(self, condition: Callable[[Pod], bool]) -> None:
        self._condition = condition
        self._found: Pod | None = None
        self._error: Exception | None = None
        self.told = trio.Event()

    def look(self, pod: Pod) -> None:
        if self.told.is_set():
            return
        try:
            if not self._condition(pod):
                return
            self._found = pod
        except Exception as error:  # belongs to whoever asked, not to whoever took the step
            self._error = error
        self.told.set()

    def answer(self) -> Pod:
        if self._error is not None:
            raise self._error
        assert self._found is not None, "asked before it was told"
        return self._found


class Runtime:
    """The single writer of one stream. `nursery` runs the effects.

    `on_step` is called with the pod after every step, and must neither block nor submit. When it raises, whoever
    submitted is not to blame and cannot help: the error ends the nursery.
    """

    def __init__(
        self,
        journal: Journal,
        stream: str,
        world: World,
        handlers: Mapping[str, Handler],
        nursery: trio.Nursery,
        *,
        on_step: Callable[[Pod], None] = lambda pod: None,
        blocking: Blocking = trio.to_thread.run_sync,
    ) -> None:
        self.journal = journal
        self.stream = stream
        self.world = world
        self.handlers = handlers
        self.pod, self.rev, self.last_boot = snapshots.load(journal, stream)
        self._event_boot = self.last_boot
        self._since_snapshot = 0  # records
        self._nursery = nursery
        self.on_step = on_step
        self._blocking = blocking
        self._lock = trio.Lock()
        self._waiters: dict[_Waiter, None] = {}
        self._running: dict[tuple[str, str], trio.CancelScope] = {}
        # What a former life of this runtime has projected is written once more, but for what it deleted: such a name may
        # be somebody else's by now.
        self._projecting = Projecting(stream)
        gone = {key for key, value in self._projecting.of(self.pod).items() if value is None}
        self._projected: dict[bytes, bytes | None] = dict.fromkeys(gone)

    async def submit(self, given: Input, actor: Facts | None = None) -> Step:
        """Decide `given`, make it durable, adopt it, and start what it asks for.

        Raises `IllegalTransition` or `NotFoundError` when it is illegal, and nothing has happened; `IdTaken` when a new
        container's id belongs to somebody else; a journal error when it cannot be made durable, and nothing has happened
        either. `actor` is recorded with the command; afterwards its `seq` is that of the command's record.
        """
        # Never cut off half way: the step may end the very task that submits it, and everybody else must hear of it.
        with trio.CancelScope(shield=True):
            async with self._lock:
                step = decide(self.pod, given)
                pod = fold(events_of(step), self.pod)
                seq = await self._append(step, pod, self._requirements(given), actor)
                if actor is not None:
                    actor["seq"] = seq
                self._adopt(step, pod)
        return step

    async def report(self, given: Outcome | Observation) -> Step:
        """Submit what has happened. That cannot be refused, so a journal that is busy or full is waited for."""
        complained = False
        while True:
            try:
                return await self.submit(given)
            except (JournalBusy, JournalDiskFull) as error:
                if not complained:
                    print(f"supervisor: waiting for the journal: {error}", file=sys.stderr, flush=True)
                complained = True
            await trio.sleep(JOURNAL_RETRY_S)

    def _adopt(self, step: Step, pod: Pod) -> None:
        self.pod = pod
        for intent in step.intents:
            self._start(intent, resume=False)
        self._cancel_left_behind()
        try:
            self.on_step(pod)
        except Exception as error:
            self._nursery.start_soon(_raise, error)
        for waiter in self._waiters:
            waiter.look(pod)

    def _requirements(self, given: Input) -> dict[bytes, bytes | None]:
        if isinstance(given, CreateSandbox):
            return {container_key(str(given.config.get("root", "")), given.sandbox): None}
        if isinstance(given, CreateContainer):
            root = str(self.pod.sandbox.facts.get("config", {}).get("root", ""))
            return {container_key(root, given.container): None}
        return {}

    async def _append(self, step: Step, pod: Pod, requires: dict[bytes, bytes | None], actor: Facts | None) -> int:
        """Answers the seq of the first record."""
        records = [_to_record(draft, actor) for draft in step.records]
        projected = self._projecting.of(pod)
        changes = {key: value for key, value in projected.items() if self._projected.get(key, b"") != value}
        stamp = Stamp(wall_ns=self.world.wall_ns(), mono_ns=self.world.mono_ns(), boot_id=self.world.boot_id())

        boot = stamp.boot_id if any(record.kind == "event" for record in records) else self._event_boot
        kept = self._snapshot(pod, boot, len(records))

        written: list[Record] = []

        def write() -> None:
            written[:] = self.journal.append(
                self.stream,
                records,
                stamp=stamp,
                expected_rev=self.rev,
                projections=changes,
                requires=requires,
                snapshot=kept,
            )

        try:
            await self._blocking(write)
        except RequirementFailed as error:
            raise IdTaken("ID already in use, unique ID should be provided") from error
        self.rev += len(records)
        self._projected = projected
        self._event_boot = boot
        self._since_snapshot = 0 if kept is not None else self._since_snapshot + len(records)
        return written[0].seq

    def _snapshot(self, pod: Pod, boot: str, new_records: int) -> bytes | None:
        """The snapshot to leave with these records, if it is time for one. One too large is left out: nobody needs it."""
        if self._since_snapshot + new_records < SNAPSHOT_RECORDS:
            return None
        made = snapshots.dump(pod, boot)
        return made if len(made) <= SNAPSHOT_BYTES_MAX else None

    async def note(self, kind: str, type_: str, body: Facts) -> None:
        """Append one record that moves nothing (what a signal or a resource update led to)."""
        with trio.CancelScope(shield=True):
            async with self._lock:
                await self._append(Step((Draft(kind, type_, body),), ()), self.pod, {}, None)

    async def until(self, condition: Callable[[Pod], bool]) -> Pod:
        """Wait until the pod satisfies `condition`; the first pod that did, which may have moved on since."""
        waiter = _Waiter(condition)
        waiter.look(self.pod)
        self._waiters[waiter] = None
        try:
            await waiter.told.wait()
        finally:
            del self._waiters[waiter]
        return waiter.answer()

    async def resume(self) -> None:
        """Start every outstanding effect again, looking first whether it has been brought about already.

        A sandbox that is going down acquires nothing more: what it was acquiring counts as failed, which undoes it.
        """
        for intent in self._idle():
            if intent.kind in ACQUIRING and self.pod.sandbox.state == sandbox.STOPPING:
                why = "it was under way when its sandbox began to go down and its supervisor ended"
                await self.report(EffectFailed(intent.kind, intent.subject, "recovery", why))
        for intent in self._idle():
            self._start(intent, resume=True)

    def _idle(self) -> list[Intent]:
        """Outstanding effects that nobody is performing."""
        return [intent for intent in outstanding(self.pod) if intent.key not in self._running]

    def _start(self, intent: Intent, *, resume: bool) -> None:
        scope = trio.CancelScope()
        self._running[intent.key] = scope
        self._nursery.start_soon(self._perform, intent, scope, resume)

    def _cancel_left_behind(self) -> None:
        for (kind, subject), scope in self._running.items():
            if kind in CANCELLABLE and not waits_for(self.pod, kind, subject):
                scope.cancel()

    async def _perform(self, intent: Intent, scope: trio.CancelScope, resume: bool) -> None:
        started = self.world.mono_ns()
        why = "its state was left while it was under way"
        outcome: Outcome = EffectFailed(intent.kind, intent.subject, "cancelled", why)
        try:
            with scope:
                result = await self._attempt(intent, resume)
                outcome = EffectDone(intent.kind, intent.subject, result)
        except Exception as error:
            outcome = _failure(intent, error)
        if self._running.get(intent.key) is scope:
            del self._running[intent.key]
        ms = round((self.world.mono_ns() - started) / 1e6, 3)
        await self._conclude(msgspec.structs.replace(outcome, ms=ms))

    async def _attempt(self, intent: Intent, resume: bool) -> Facts:
        handler = self.handlers.get(intent.kind)
        if handler is None:
            raise Bug(f"there is no handler for `{intent.kind}`")
        if resume:
            observed = await handler.probe(intent)
            if observed.done:
                return observed.result
        try:
            return await handler.perform(intent)
        except EffectError as error:
            # What takes hold of something on the host is undone when it fails. Nothing undoes the others: if only the
            # answer was lost, the failure would be a lie.
            if intent.kind in ACQUIRING or error.refused:
                raise
            observed = await _look_again(handler, intent)
            if not observed.done:
                raise
            return observed.result

    async def _conclude(self, outcome: Outcome) -> None:
        """Report an outcome. One that no record can hold becomes a failure that says so as well as it can."""
        try:
            await self.report(outcome)
        except (InvalidAppend, TypeError, ValueError, OverflowError, RecursionError) as error:
            if isinstance(outcome, EffectFailed):
                phase, told = outcome.phase, outcome.message
            else:
                phase, told = "unexpected", f"its result cannot be recorded: {error}"
            message = told.encode("utf-8", "backslashreplace").decode()[:OUTCOME_MESSAGE_CHARS_MAX]
            evidence = {"bug": True, "unrecorded": str(error)[:OUTCOME_MESSAGE_CHARS_MAX]}
            await self.report(EffectFailed(outcome.kind, outcome.subject, phase, message, evidence, outcome.ms))


async def _look_again(handler: Handler, intent: Intent) -> Observed:
    """Whether an effect that is said to have failed was done all the same, as far as that can be seen in time.

    A look that is not answered soon is followed by another beside it: one request may be lost, or be slow.
    """
    found = Observed(None)

    async def look() -> None:
        nonlocal found
        while True:
            try:
                seen = await handler.probe(intent)
            except EffectError:
                seen = Observed(None, later=True)  # that it cannot be seen now says nothing about what was done
            if not seen.later:
                found = seen
                nursery.cancel_scope.cancel()
                return
            await trio.sleep(RETRY_S)

    with trio.move_on_after(LOOK_AGAIN_S):
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(look)
                await trio.sleep(LOOK_EVERY_S)
    return found


async def _raise(error: Exception) -> None:
    raise error


def _failure(intent: Intent, error: Exception) -> EffectFailed:
    """What is recorded of an effect that raised: one that fails in a way of its own must still be undone."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, EffectError):
        hint = {"hint": error.hint} if error.hint else {}
        late = {"timeout": True} if isinstance(error, TimeoutExceeded) else {}
        return EffectFailed(intent.kind, intent.subject, error.phase, error.message, {**error.evidence, **hint, **late})
    print(f"supervisor: `{intent.kind}` failed unexpectedly", file=sys.stderr)
    sys.excepthook(type(error), error, error.__traceback__)
    return EffectFailed(intent.kind, intent.subject, "unexpected", f"{type(error).__name__}: {error}", {"bug": True})


def _to_record(draft: Any, actor: Facts | None) -> NewRecord:
    body = draft.body
    if draft.type == "create_sandbox":
        body = {**body, "versions": VERSIONS}
    is_command = draft.kind == "command"
    return NewRecord(
        kind=draft.kind, type=draft.type, body=body, actor=actor if is_command else None, cause=draft.cause or None
    )
