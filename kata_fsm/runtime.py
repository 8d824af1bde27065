# SPDX-License-Identifier: Apache-2.0
"""The loop: load, decide, append, adopt, perform, append the outcome.

One `Runtime` is the only writer of one sandbox's stream. Inputs are decided one at a time; a step's records are durable
before its intents are performed and before the caller hears that the input was accepted. Effects run side by side, each
in a task of its own; its end is an input like any other. Which effects run is a function of the folded pod, so an effect
in the guest whose state has been left is cancelled, and after a crash `resume` starts exactly the outstanding ones again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import trio

from journal import Journal, NewRecord, RequirementFailed, Stamp
from kata_fsm import __version__
from kata_fsm.effects.protocols import Handler
from kata_fsm.errors import Bug, CallerError, EffectError
from kata_fsm.machines import Intent, Moved, Pod, Step, decide, fold, outstanding, sandbox
from kata_fsm.machines.intents import ACQUIRING, CANCELLABLE
from kata_fsm.machines.pod import TABLE_VERSION
from kata_fsm.machines.vocab import CreateContainer, CreateSandbox, EffectDone, EffectFailed, Facts, Input
from kata_fsm.projections import container_key, project
from kata_fsm.world import World

VERSIONS = {"kata_fsm": __version__, "tables": TABLE_VERSION}


class IdTaken(CallerError):
    """Somebody else has the id."""


def load(journal: Journal, stream: str) -> tuple[Pod, int, str]:
    """The pod that `stream` folds to, its revision, and the boot id of its last record ("" if there is none)."""
    rev, boot = 0, ""

    def events() -> Any:
        nonlocal rev, boot
        for record in journal.read_stream(stream):
            rev, boot = record.rev, record.boot_id
            if record.kind == "event":
                yield msgspec.json.decode(record.body, type=Moved)

    pod = fold(events())
    return pod, rev, boot


class Runtime:
    """The single writer of one stream. `nursery` runs the effects."""

    def __init__(
        self,
        journal: Journal,
        stream: str,
        world: World,
        handlers: Mapping[str, Handler],
        nursery: trio.Nursery,
        *,
        on_step: Callable[[Pod], None] = lambda pod: None,
    ) -> None:
        self.journal = journal
        self.stream = stream
        self.world = world
        self.handlers = handlers
        self.pod, self.rev, self.last_boot = load(journal, stream)
        self._nursery = nursery
        self.on_step = on_step
        self._lock = trio.Lock()
        self._changed = trio.Condition()
        self._running: dict[tuple[str, str], trio.CancelScope] = {}
        self._projected: dict[bytes, bytes | None] = {}

    async def submit(self, given: Input, actor: Facts | None = None) -> Step:
        """Decide `given`, make it durable, adopt it, and start what it asks for.

        Raises `IllegalTransition` or `NotFoundError` when it is illegal, and nothing has happened; `IdTaken` when a new
        container's id belongs to somebody else; a journal error when it cannot be made durable, and nothing has happened
        either.
        """
        # Never cut off half way: the step may end the very task that submits it, and everybody else must hear of it.
        with trio.CancelScope(shield=True):
            async with self._lock:
                step = decide(self.pod, given)
                pod = fold(_moves(step), self.pod)
                await self._append(step, pod, self._requirements(given), actor)
                self.pod = pod
            for intent in step.intents:
                self._start(intent, resume=False)
            self._cancel_left_behind()
            self.on_step(self.pod)
            async with self._changed:
                self._changed.notify_all()
        return step

    def _requirements(self, given: Input) -> dict[bytes, bytes | None]:
        if isinstance(given, CreateSandbox):
            return {container_key(str(given.config.get("root", "")), given.sandbox): None}
        if isinstance(given, CreateContainer):
            root = str(self.pod.sandbox.facts.get("config", {}).get("root", ""))
            return {container_key(root, given.container): None}
        return {}

    async def _append(self, step: Step, pod: Pod, requires: dict[bytes, bytes | None], actor: Facts | None) -> None:
        records = [_to_record(draft, actor) for draft in step.records]
        projected = project(pod, self.stream)
        changes = {key: value for key, value in projected.items() if self._projected.get(key, b"") != value}
        stamp = Stamp(wall_ns=self.world.wall_ns(), mono_ns=self.world.mono_ns(), boot_id=self.world.boot_id())

        def write() -> None:
            self.journal.append(
                self.stream, records, stamp=stamp, expected_rev=self.rev, projections=changes, requires=requires
            )

        try:
            await trio.to_thread.run_sync(write)
        except RequirementFailed as error:
            raise IdTaken("ID already in use, unique ID should be provided") from error
        self.rev += len(records)
        self._projected = projected

    async def note(self, kind: str, type_: str, body: Facts) -> None:
        """Append one record that moves nothing (what a signal or a resource update led to)."""
        from kata_fsm.machines.vocab import Draft

        with trio.CancelScope(shield=True):
            async with self._lock:
                await self._append(Step((Draft(kind, type_, body),), ()), self.pod, {}, None)

    async def until(self, condition: Callable[[Pod], bool]) -> Pod:
        """Wait until the pod satisfies `condition`, and answer it."""
        async with self._changed:
            while not condition(self.pod):
                await self._changed.wait()
            return self.pod

    async def resume(self) -> None:
        """Start every outstanding effect again, looking first whether it has been brought about already.

        A sandbox that is going down acquires nothing more: what it was acquiring counts as failed, which undoes it.
        """
        for intent in [intent for intent in outstanding(self.pod) if intent.key not in self._running]:
            if intent.kind in ACQUIRING and self.pod.sandbox.state == sandbox.STOPPING:
                why = "it was under way when its sandbox began to go down and its supervisor ended"
                await self.submit(EffectFailed(intent.kind, intent.subject, "recovery", why))
            elif intent.key not in self._running:
                self._start(intent, resume=True)

    def _start(self, intent: Intent, *, resume: bool) -> None:
        scope = trio.CancelScope()
        self._running[intent.key] = scope
        self._nursery.start_soon(self._perform, intent, scope, resume)

    def _cancel_left_behind(self) -> None:
        wanted = {intent.key for intent in outstanding(self.pod)}
        for key, scope in self._running.items():
            if key not in wanted and key[0] in CANCELLABLE:
                scope.cancel()

    async def _perform(self, intent: Intent, scope: trio.CancelScope, resume: bool) -> None:
        started = self.world.mono_ns()
        outcome: EffectDone | EffectFailed | None = None
        with scope:
            outcome = await self._attempt(intent, resume)
        if self._running.get(intent.key) is scope:
            del self._running[intent.key]
        ms = round((self.world.mono_ns() - started) / 1e6, 3)
        if outcome is None:
            outcome = EffectFailed(
                intent.kind, intent.subject, "cancelled", "its state was left while it was under way"
            )
        await self.submit(msgspec.structs.replace(outcome, ms=ms))

    async def _attempt(self, intent: Intent, resume: bool) -> EffectDone | EffectFailed:
        handler = self.handlers.get(intent.kind)
        try:
            if handler is None:
                raise Bug(f"there is no handler for `{intent.kind}`")
            if resume:
                observed = await handler.probe(intent)
                if observed.done:
                    return EffectDone(intent.kind, intent.subject, observed.result)
            return EffectDone(intent.kind, intent.subject, await handler.perform(intent))
        except EffectError as error:
            return EffectFailed(intent.kind, intent.subject, error.phase, error.message, error.evidence)
        except Exception as error:  # an effect that fails in a way of its own must still drive the machines to undo
            return EffectFailed(
                intent.kind, intent.subject, "unexpected", f"{type(error).__name__}: {error}", {"bug": True}
            )


def _moves(step: Step) -> list[Moved]:
    return [msgspec.convert(draft.body, Moved) for draft in step.records if draft.kind == "event"]


def _to_record(draft: Any, actor: Facts | None) -> NewRecord:
    body = draft.body
    if draft.type == "create_sandbox":
        body = {**body, "versions": VERSIONS}
    is_command = draft.kind == "command"
    return NewRecord(
        kind=draft.kind, type=draft.type, body=body, actor=actor if is_command else None, cause=draft.cause or None
    )
