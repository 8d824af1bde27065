# SPDX-License-Identifier: Apache-2.0
"""A stream's records as a story: one row per record, folded through the machines. Pure.

Theory of operation. `tell` walks the records once. Each becomes a `Row`; an event also moves the pod, after the tables of
this build were asked whether they agree; an intent stays open until an outcome of the same kind and subject closes it.
Records that this build does not understand become rows too: a story never hides what was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from journal import Record
from kata_fsm.machines import Intent, Moved, Pod, check, fold, outstanding
from kata_fsm.machines.pod import POD_MACHINES, TABLES, Unit, moved_from_body

Facts = dict[str, Any]


class Row(msgspec.Struct, omit_defaults=True):
    """One record. `lane` is `command`, `move`, `intent`, `outcome`, `note` or `other` (a kind that we do not know).

    `what` is the command, trigger, effect kind or observation; `detail` what the record adds, as stored. `ms` is how long
    an effect took, on its outcome; `pair` links an intent and its outcome (seq). `wrong` says why the tables of this
    build do not agree with an event.
    """

    seq: int
    rev: int
    wall_ns: int
    mono_ns: int
    boot_id: str
    lane: str
    what: str
    machine: str = ""
    subject: str = ""
    source: str = ""
    dest: str = ""
    rule: str = ""
    ok: bool | None = None
    late: bool = False
    ms: float | None = None
    pair: int | None = None
    cause: int | None = None
    actor: Facts | None = None
    detail: Facts = {}
    wrong: str = ""


class Story(msgspec.Struct):
    """All rows of one stream, the pod they lead to, and what is left open at the end."""

    stream: str
    rows: list[Row]
    pod: Pod
    open: list[Intent]
    versions: Facts
    damage: str | None = None  # why reading stopped before the end of the stream

    @property
    def first(self) -> Row:
        return self.rows[0]

    @property
    def last(self) -> Row:
        return self.rows[-1]

    @property
    def divergences(self) -> list[Row]:
        """The rows that the tables of this build do not agree with."""
        return [row for row in self.rows if row.wrong]

    def moves(self, machine: str, trigger: str, subject: str = "") -> list[Row]:
        """The transitions of one machine by one trigger, in order."""
        wanted = (machine, trigger, subject)
        return [row for row in self.rows if row.lane == "move" and (row.machine, row.what, row.subject) == wanted]


def moved_of(record: Record) -> Moved | None:
    """The event in a record; None if it holds none that this build can read."""
    if record.kind != "event":
        return None
    try:
        return moved_from_body(record.data)
    except msgspec.ValidationError:
        return None


_OUTCOME_ENVELOPE = frozenset({"subject", "ok", "late", "ms", "result"})


class _Teller:
    """A story under construction."""

    def __init__(self) -> None:
        self.cursor = Pod()  # states only, for asking the tables; the facts are folded at the end
        self.moves: list[Moved] = []
        self.rows: list[Row] = []
        self.open: dict[tuple[str, str], Row] = {}
        self.versions: Facts = {}

    def take(self, record: Record) -> None:
        data = record.data
        row = Row(
            record.seq, record.rev, record.wall_ns, record.mono_ns, record.boot_id, "other", record.type,
            cause=record.cause, actor=record.actor, detail=data,
        )  # fmt: skip
        match record.kind:
            case "event":
                self._event(row, moved_of(record))
            case "command":
                self._command(row, data)
            case "intent":
                self._intent(row, data)
            case "outcome":
                self._outcome(row, data)
            case "note":
                row.lane, row.subject = "note", _text(data, "process", "subject", "container")
            case kind:
                row.what = f"{kind} {record.type}"
        self.rows.append(row)

    def _command(self, row: Row, data: Facts) -> None:
        row.lane, row.subject = "command", _text(data, "process", "container", "sandbox")
        if row.what == "create_sandbox":
            row.subject = _text(data, "sandbox")
            versions = data.get("versions")
            self.versions = versions if isinstance(versions, dict) else {}

    def _event(self, row: Row, move: Moved | None) -> None:
        if move is None:
            row.wrong = "the event cannot be read by this version"
            return
        row.lane, row.machine, row.what, row.subject = "move", move.machine, move.trigger, move.subject
        row.source, row.dest, row.rule, row.detail = move.source, move.dest, move.rule, move.facts
        row.wrong = check(self.cursor, move) or ""
        self.moves.append(move)
        self._step(move)

    def _step(self, move: Moved) -> None:
        """Move the cursor in place: `evolve` copies, which a pod with thousands of processes would feel."""
        unit = Unit(move.dest)
        if move.machine == "container":
            self.cursor.containers[move.subject] = unit
        elif move.machine == "process":
            self.cursor.processes[move.subject] = unit
        elif move.machine in POD_MACHINES:
            setattr(self.cursor, move.machine, unit)

    def _intent(self, row: Row, data: Facts) -> None:
        params = data.get("params")
        row.lane, row.machine, row.subject = "intent", machine_of(row.what), _text(data, "subject")
        row.detail = params if isinstance(params, dict) else {}
        self.open[(row.what, row.subject)] = row

    def _outcome(self, row: Row, data: Facts) -> None:
        row.lane, row.machine, row.subject = "outcome", machine_of(row.what), _text(data, "subject")
        row.ok, row.late = data.get("ok") is True, data.get("late") is True
        intent = self.open.pop((row.what, row.subject), None)
        if intent is not None:
            row.pair, intent.pair = intent.seq, row.seq
        row.ms = _measured(data.get("ms"), intent, row)
        result = data.get("result")
        more = {key: value for key, value in data.items() if key not in _OUTCOME_ENVELOPE}
        row.detail = {**more, **result} if isinstance(result, dict) else more


def tell(records: Sequence[Record], stream: str, *, damage: str | None = None) -> Story:
    """The story of one stream, from its records in order."""
    teller = _Teller()
    for record in records:
        teller.take(record)
    pod = fold(move for move in teller.moves if move.machine in TABLES)
    return Story(stream, teller.rows, pod, outstanding(pod), teller.versions, damage)


def apart_ms(earlier: Row, later: Row) -> float:
    """Milliseconds between two rows: by the monotonic clock within a boot, by the wall clock across boots."""
    if earlier.boot_id == later.boot_id:
        return (later.mono_ns - earlier.mono_ns) / 1e6
    return (later.wall_ns - earlier.wall_ns) / 1e6


def machine_of(effect: str) -> str:
    """The machine whose transitional state an effect belongs to."""
    noun = effect.partition(".")[0]
    return "vm" if noun == "hypervisor" else noun


def _measured(ms: object, intent: Row | None, outcome: Row) -> float | None:
    if isinstance(ms, (int, float)) and not isinstance(ms, bool) and ms > 0:
        return float(ms)
    return None if intent is None else apart_ms(intent, outcome)


def _text(data: Facts, *keys: str) -> str:
    """The first of `keys` that holds a text."""
    for key in keys:
        value = data.get(key)
        if isinstance(value, str):
            return value
    return ""
