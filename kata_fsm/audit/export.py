# SPDX-License-Identifier: Apache-2.0
"""Which events, in which order, and to where."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

from kata_fsm.audit.events import events
from kata_fsm.audit.schema import AuditEvent
from kata_fsm.replay.jsonout import dumps
from kata_fsm.replay.reading import read_what_can_be
from kata_fsm.replay.subject import born_order

if TYPE_CHECKING:
    from journal import RecordSource, StreamInfo


class Wanted(msgspec.Struct, frozen=True):
    """What is picked: some streams or all; instants in ns since the epoch, the first included, the second not."""

    streams: frozenset[str] | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    actions: frozenset[str] = frozenset()
    outcome: str | None = None


class Picked(msgspec.Struct, frozen=True):
    """The events in the journal's order, and what is wrong with streams that could not be read to their end."""

    events: list[AuditEvent]
    damage: list[str]


def pick(journal: RecordSource, wanted: Wanted) -> Picked:
    """Read the streams that can hold wanted events. What became of a request may stand after `until_ns`: it counts."""
    found: list[AuditEvent] = []
    damage: list[str] = []
    for info in born_order(journal):
        if (wanted.streams is None or info.stream in wanted.streams) and _may_hold(journal, info, wanted):
            records, wrong = read_what_can_be(journal, info.stream)
            times = {record.seq: record.wall_ns for record in records}
            found += [event for event in events(records) if _is_wanted(event, times[event.seq], wanted)]
            if wrong is not None:
                damage.append(f"{info.stream}: {wrong}")
    found.sort(key=lambda event: event.seq)
    return Picked(found, damage)


def _may_hold(journal: RecordSource, info: StreamInfo, wanted: Wanted) -> bool:
    """Whether a stream's last record is late enough. A record that cannot be read is no reason to leave it out."""
    from journal import JournalError

    if wanted.since_ns is None:
        return True
    try:
        last = journal.get(info.last_seq)
    except JournalError:
        return True
    return last is None or last.wall_ns >= wanted.since_ns


def _is_wanted(event: AuditEvent, wall_ns: int, wanted: Wanted) -> bool:
    if wanted.since_ns is not None and wall_ns < wanted.since_ns:
        return False
    if wanted.until_ns is not None and wall_ns >= wanted.until_ns:
        return False
    if wanted.actions and event.action not in wanted.actions:
        return False
    return wanted.outcome is None or event.outcome == wanted.outcome


def json_lines(found: Iterable[AuditEvent]) -> Iterator[str]:
    """One JSON object per event, keys in the order of the schema."""
    for event in found:
        yield dumps(msgspec.to_builtins(event))


def write_file(path: str, lines: Iterable[str]) -> None:
    """Put `lines` into `path`, readable by its owner only, as a whole or not at all."""
    partial = path + ".part"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        for line in lines:
            file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
