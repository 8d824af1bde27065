# SPDX-License-Identifier: Apache-2.0
"""A stream's records as audit events. Pure.

Theory of operation. A command record becomes an event when it is met, and waits in `_pending` under the transitions that
can answer it; the first of them to come fills in its outcome. A request whose answer never comes stays `pending`. Nothing
here says `allowed` for a thing that was only accepted, unless accepting was all there was to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from journal import Record
from kata_fsm.audit.schema import AuditEvent
from kata_fsm.machines import Moved
from kata_fsm.machines.pod import init_of
from kata_fsm.replay.moments import iso_utc
from kata_fsm.replay.story import moved_of
from kata_fsm.replay.subject import split_stream

Facts = dict[str, Any]

_REQUESTS: dict[str, str] = {
    "create_sandbox": "create",
    "create_container": "create",
    "start": "start",
    "exec": "exec",
    "kill": "kill",
    "pause": "pause",
    "resume": "resume",
    "update": "update",
    "delete": "delete",
    "attach_shim": "attach",
    "stop_sandbox": "stop",
    "resolve_sandbox": "stop",
    "abandon_process": "abandon",
    "change_network": "change_network",
}

_DONE_WHEN: dict[str, tuple[str, str]] = {
    "create": ("container", "created"),
    "start": ("container", "started"),
    "exec": ("process", "spawned"),
    "pause": ("container", "paused"),
    "resume": ("container", "resumed"),
    "change_network": ("network", "changed"),
    "delete": ("container", "discarded"),
}
"""The transition (machine, trigger) by which a request is done."""


def _ends(machine: str, *sources: str) -> frozenset[tuple[str, str, str]]:
    return frozenset((machine, source, trigger) for source in sources for trigger in ("failed", "abort"))


_FAILED_WHEN: dict[str, frozenset[tuple[str, str, str]]] = {
    "create": _ends("container", "declared", "preparing", "prepared", "creating"),
    "start": _ends("container", "starting"),
    "exec": _ends("process", "declared", "spawning"),
    "pause": _ends("container", "pausing"),
    "resume": _ends("container", "resuming"),
    "delete": _ends("container", "unstaging", "discarding"),
    "change_network": _ends("network", "changing"),
}
"""The transitions (machine, source, trigger) by which it fails."""

_ANSWERED_BY_OUTCOME = {"kill": "process.signal", "update": "container.update"}
"""Requests that move no machine: the outcome record of this type answers them."""

_AT_ONCE = frozenset({"attach", "stop", "abandon"})
"""Requests that are done when they are accepted."""

_CHANGES: dict[tuple[str, str], str] = {
    ("sandbox", "ready"): "sandbox_ready",
    ("sandbox", "stopped"): "sandbox_ended",
    ("sandbox", "fail"): "sandbox_ended",
    ("process", "exited"): "process_ended",
}
_NOTES = frozenset({"vm_died", "share_died", "agent_lost", "host_rebooted", "signal_forwarded", "signal_lost"})
_ENDS = frozenset({"vm_died", "share_died", "agent_lost"})
"""Notes that are events only if they moved something: in a tear-down it is no news that QEMU and virtiofsd end."""
_BAD = frozenset({"vm_died", "share_died", "agent_lost", "signal_lost"})
_DETAILS = ("args", "signal", "all", "force", "resources", "bundle", "rootfs", "terminal", "cwd", "user", "change")


class _Draft(msgspec.Struct):
    """An event under construction."""

    record: Record
    category: str
    action: str
    subject: str
    outcome: str
    cause: Facts | None = None
    exit_code: int | None = None
    details: Facts = msgspec.field(default_factory=dict)

    def finished(self) -> AuditEvent:
        record = self.record
        sandbox, uid = split_stream(record.stream)
        name, _, process = self.subject.rpartition("/") if "/" in self.subject else (self.subject, "", "")
        return AuditEvent(
            time=iso_utc(record.wall_ns),
            seq=record.seq,
            stream=record.stream,
            sandbox=sandbox,
            uid=uid,
            container=name or None,
            process=process or None,
            category=self.category,  # type: ignore[arg-type]
            action=self.action,
            actor=record.actor,
            outcome=self.outcome,  # type: ignore[arg-type]
            cause=self.cause,
            exit_code=self.exit_code,
            details=self.details,
            boot_id=record.boot_id,
            digest=record.digest,
            prev=record.prev,
        )


class _Collector:
    """Walks the records of one stream."""

    def __init__(self) -> None:
        self.drafts: list[_Draft] = []
        self._pending: list[_Draft] = []
        self._unproven: _Draft | None = None
        self._execs: dict[str, _Draft] = {}
        self._causes: dict[tuple[str, str], Facts] = {}

    def take(self, record: Record) -> None:
        match record.kind:
            case "command":
                self._request(record, record.data)
            case "outcome":
                self._answer_by_outcome(record, record.data)
            case "note" if record.type in _NOTES:
                self._noted(record, record.data)
            case "event":
                move = moved_of(record)
                if move is not None:
                    self._moved(record, move)

    def _request(self, record: Record, body: Facts) -> None:
        action = _REQUESTS.get(record.type)
        if action is None:
            return
        outcome = "allowed" if action in _AT_ONCE else "pending"
        draft = _Draft(record, "request", action, _subject(action, body), outcome, details=_details(body))
        if action in _AT_ONCE:
            draft.cause = _short(body.get("cause"))
        else:
            self._pending.append(draft)
        if action == "exec":
            self._execs[draft.subject] = draft
        self.drafts.append(draft)

    def _answer_by_outcome(self, record: Record, body: Facts) -> None:
        for draft in self._pending:
            wanted = init_of(draft.subject) if draft.action == "kill" else draft.subject
            if _ANSWERED_BY_OUTCOME.get(draft.action) == record.type and body.get("subject") == wanted:
                self._settle(draft, body.get("ok") is True, _message_only(body.get("message")))
                return

    def _noted(self, record: Record, body: Facts) -> None:
        draft = _Draft(
            record, "change", record.type, _text(body, "process"), "failed" if record.type in _BAD else "observed"
        )
        draft.cause = _short(body.get("cause"))
        draft.details = {key: body[key] for key in ("signal", "error") if key in body}
        if record.type in _ENDS:
            self._unproven = draft
        else:
            self.drafts.append(draft)

    def _moved(self, record: Record, move: Moved) -> None:
        if self._unproven is not None and record.cause == self._unproven.record.seq:
            self.drafts.append(self._unproven)
            self._unproven = None
        if isinstance(move.facts.get("cause"), dict):
            self._causes[(move.machine, move.subject)] = move.facts["cause"]
        self._answer(move)
        action = _CHANGES.get((move.machine, move.trigger))
        if action is None:
            return
        draft = _Draft(record, "change", action, move.subject, "failed" if move.trigger == "fail" else "observed")
        draft.cause = _short(self._causes.get((move.machine, move.subject)))
        code = move.facts.get("exit_code")
        draft.exit_code = code if isinstance(code, int) else None
        if action == "process_ended" and move.subject in self._execs:
            self._execs[move.subject].exit_code = draft.exit_code
        self.drafts.append(draft)

    def _answer(self, move: Moved) -> None:
        for draft in list(self._pending):
            if move.subject != draft.subject:
                continue
            if _DONE_WHEN.get(draft.action) == (move.machine, move.trigger):
                self._settle(draft, True, None)
            elif (move.machine, move.source, move.trigger) in _FAILED_WHEN.get(draft.action, ()):
                self._settle(draft, False, self._reason(move))

    def _reason(self, move: Moved) -> Facts | None:
        error = move.facts.get("error")
        if isinstance(error, dict):
            kind = (self._causes.get((move.machine, move.subject)) or {}).get("kind", "unknown")
            return {"kind": kind, "message": str(error.get("message", ""))}
        return _short(self._causes.get((move.machine, move.subject)))

    def _settle(self, draft: _Draft, done: bool, cause: Facts | None) -> None:
        draft.outcome = "allowed" if done else "failed"
        draft.cause = cause
        self._pending.remove(draft)


def events(records: Sequence[Record]) -> list[AuditEvent]:
    """The events of one stream, from all its records in order."""
    collector = _Collector()
    for record in records:
        collector.take(record)
    return [draft.finished() for draft in collector.drafts]


def _subject(action: str, body: Facts) -> str:
    if action == "create":
        return _text(body, "container", "sandbox")
    return _text(body, "process") if action in ("exec", "attach", "abandon") else _text(body, "container")


def _details(body: Facts) -> Facts:
    """What the request named: its own fields, and those of the configuration it carries."""
    found: Facts = {}
    for source in (body, body.get("config"), body.get("container")):
        if isinstance(source, dict):
            found.update({key: source[key] for key in _DETAILS if source.get(key) not in (None, False, [], {}, "")})
    return found


def _short(cause: object) -> Facts | None:
    """A cause without its evidence, which may hold log tails."""
    if not isinstance(cause, dict):
        return None
    return {"kind": str(cause.get("kind", "unknown")), "message": str(cause.get("message", ""))}


def _message_only(message: object) -> Facts | None:
    return {"kind": "unknown", "message": message} if isinstance(message, str) else None


def _text(body: Facts, *keys: str) -> str:
    for key in keys:
        value = body.get(key)
        if isinstance(value, str):
            return value
    return ""
