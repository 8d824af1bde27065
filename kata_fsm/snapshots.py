# SPDX-License-Identifier: Apache-2.0
"""A pod as the journal's snapshots keep it, so that a long stream need not be folded from its beginning.

A snapshot is JSON: `tables` and `shape` (versions: one of another version is passed over), `boot` (the boot id of the last
event) and `pod`. Supervisors and verbs begin with one; `replay` and `audit` never do: they read what was recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from kata_fsm.machines import Moved, Pod, fold
from kata_fsm.machines.pod import TABLE_VERSION
from kata_fsm.projections import project

if TYPE_CHECKING:
    from collections.abc import Mapping

    from journal import Journal, Record

SHAPE = 2
"""Goes up when `Pod` changes so that what was kept before reads differently."""


_MOVED = msgspec.json.Decoder(Moved)


class _Kept(msgspec.Struct, frozen=True):
    tables: int
    shape: int
    boot: str
    pod: Pod


class Loaded(NamedTuple):
    """A stream's pod, the rev of its last record, and the boot id of its last *event* ("" if it has none).

    Of its last event: a note may be written under a new boot before anybody has told the machines of it.
    """

    pod: Pod
    rev: int
    boot: str


def dump(pod: Pod, boot: str) -> bytes:
    """The snapshot of a pod."""
    return msgspec.json.encode(_Kept(TABLE_VERSION, SHAPE, boot, pod))


def parse(data: bytes) -> _Kept | None:
    """What a snapshot holds; None when it is of other versions, or not readable: the records are always there."""
    try:
        kept = msgspec.json.decode(data, type=_Kept)
    except (msgspec.MsgspecError, ValueError):
        return None
    return kept if (kept.tables, kept.shape) == (TABLE_VERSION, SHAPE) else None


def load(journal: Journal, stream: str) -> Loaded:
    """The pod that `stream` folds to: from its latest snapshot on, or from the beginning. Raises what reading raises."""
    snapshot = journal.snapshot(stream)
    kept = parse(snapshot.data) if snapshot is not None else None
    if snapshot is None or kept is None:
        return _folded(journal.read_stream(stream), Loaded(Pod(), 0, ""))
    begin = Loaded(kept.pod, snapshot.rev, kept.boot)
    return _folded(journal.read_stream(stream, snapshot.rev + 1), begin)


def born(journal: Journal, stream: str) -> str:
    """The boot id of the first event of `stream`; empty if it has none yet. Raises what reading raises."""
    return next((record.boot_id for record in journal.read_stream(stream) if record.kind == "event"), "")


def _folded(records: Iterator[Record], begin: Loaded) -> Loaded:
    rev, boot = begin.rev, begin.boot

    def events() -> Iterator[Moved]:
        nonlocal rev, boot
        for record in records:
            rev = record.rev
            if record.kind == "event":
                boot = record.boot_id
                yield _MOVED.decode(record.body)

    return Loaded(fold(events(), begin.pod), rev, boot)


class PodProjector:
    """What projections and snapshots must be, for the journal to compare them with (`journal.Projector`)."""

    def project(self, stream: str, records: Iterator[Record]) -> Mapping[bytes, bytes | None]:
        """The projections of the pod that the records fold to; none for a stream without an event."""
        loaded = _folded(records, Loaded(Pod(), 0, ""))
        return project(loaded.pod, stream) if loaded.boot else {}

    def snapshot(self, stream: str, records: Iterator[Record], stored: bytes) -> str | None:
        """None for a snapshot of other versions, which nobody uses."""
        kept = parse(stored)
        if kept is None:
            return None
        loaded = _folded(records, Loaded(Pod(), 0, ""))
        folded = parse(dump(loaded.pod, loaded.boot))
        return None if folded == kept else "it is not the pod that the records fold to"
