# SPDX-License-Identifier: Apache-2.0
"""Taking orphans away, on the record: what is to go is written down before it is touched, what became of it afterwards.

The record stands in the stream of the sandbox that it was, or, where the journal knows none, in one of its own that holds
nothing else. A journal that cannot be written keeps nobody from removing what leaks: then a warning says so.
"""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from journal import Journal, JournalError, NewRecord
from kata_fsm.cli import client
from kata_fsm.cli.context import Context
from kata_fsm.limits import JOURNAL_LOCK_S
from kata_fsm.recovery import journal_owner, stamp_of
from kata_fsm.spawn import stream_of
from kata_fsm.survey import orphans
from kata_fsm.survey.orphans import Left, Orphan
from kata_fsm.world import WORLD, journal_dir

NAMELESS = "orphan"


class Removal(msgspec.Struct, frozen=True):
    """What became of one orphan; `unrecorded` says why the journal does not tell of it."""

    orphan: Orphan
    left: tuple[Left, ...]
    unrecorded: str = ""


def take_away(context: Context, found: list[Orphan], reason: str) -> list[Removal]:
    """Remove each of `found`, one after the other; each step of each is bounded."""
    return [_take_away(context, orphan, reason) for orphan in found]


def _take_away(context: Context, orphan: Orphan, reason: str) -> Removal:
    names = [trace.describe() for trace in orphan.traces]
    intent = {"uid": orphan.uid, "why": orphan.why, "traces": names, "reason": reason, "by": client.actor(context)}
    _note(orphan, "orphan_remove", intent)
    left = tuple(trio.run(orphans.remove, orphan.traces))
    told = {"uid": orphan.uid, "ok": not left, "left": [msgspec.to_builtins(each) for each in left]}
    return Removal(orphan, left, _note(orphan, "orphan_removed", told))


def _note(orphan: Orphan, type_: str, body: dict[str, Any]) -> str:
    """Append one note; why it could not be, empty if it could."""
    try:
        with Journal.open(journal_dir(), lock_timeout_s=JOURNAL_LOCK_S, owner=journal_owner(WORLD)) as journal:
            known = [info.stream for info in journal.streams() if info.stream.endswith("@" + orphan.uid)]
            stream = known[0] if known else stream_of(orphan.name or NAMELESS, orphan.uid)
            body = {key: _plain(value) for key, value in body.items()}
            rev = journal.rev(stream)
            journal.append(stream, [NewRecord("note", type_, body)], stamp=stamp_of(WORLD), expected_rev=rev)
    except (JournalError, OSError) as error:
        return str(error)
    return ""


def _plain(value: Any) -> Any:
    """Paths of a host may hold what is not Unicode; a record may not."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return {key: _plain(each) for key, each in value.items()} if isinstance(value, dict) else value
