# SPDX-License-Identifier: Apache-2.0
"""Projections and snapshots against the records they were made from: compared, or written anew.

What a projection must be is the user's knowledge, told by a `Projector`. The journal only knows that every projection
belongs to the fold of some stream. Streams are folded one at a time, so that memory holds one of them.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from journal import step
from journal.env import Txn
from journal.findings import Finding
from journal.records import Record

if TYPE_CHECKING:
    from journal.journal import Journal

Write = Callable[[Callable[[Txn], int | None]], int | None]


class Projector(Protocol):
    """What the user knows of projections and snapshots."""

    def project(self, stream: str, records: Iterator[Record]) -> Mapping[bytes, bytes | None]:
        """What the projections of a stream with these records must be; None: the key is not this stream's any more."""
        ...

    def snapshot(self, stream: str, records: Iterator[Record], stored: bytes) -> str | None:
        """What is wrong with `stored` as the snapshot of these records; None when nothing is, or it is not judged."""
        ...


def verify(journal: "Journal", projector: Projector) -> Iterator[Finding]:
    """Yield a finding for each projection or snapshot that is not what the records fold to.

    What is appended meanwhile is no fault: a stream that has grown is folded again.
    """
    strays = dict(journal.projections())
    for info in list(journal.streams()):
        yield from _snapshot(journal, projector, info.stream)
        folded = _settled(journal, projector, info.stream)
        for key, value in folded.wanted.items():
            if value is None:
                continue
            strays.pop(key, None)
            if folded.stored[key] != value:
                what = "missing" if folded.stored[key] is None else "not what the records fold to"
                yield Finding(
                    "projection", info.last_seq, f"projection `{_text(key)}` of stream `{info.stream}` is {what}"
                )
    for key, value in strays.items():
        if journal.projection(key) == value:
            yield Finding("projection", 0, f"projection `{_text(key)}` is there, but no stream folds to it")


def rebuild(journal: "Journal", projector: Projector, write: Write) -> int:
    """Write every projection that differs; return how many did."""
    table = journal._env.tables.projections
    changed = 0
    before = dict(journal.projections())
    for info in list(journal.streams()):
        put = None
        while put is None:  # the stream has grown since it was folded: again
            wanted = _settled(journal, projector, info.stream)
            put = write(lambda txn, wanted=wanted: _put(txn, journal, wanted))  # type: ignore[misc]
        changed += put
        for key, value in wanted.wanted.items():
            if value is not None:
                before.pop(key, None)
    for key, value in before.items():

        def drop(txn: Txn, key: bytes = key, value: bytes = value) -> int:
            return int(txn.get(key, db=table) == value and txn.delete(key, db=table))

        changed += write(drop) or 0
    return changed


def _put(txn: Txn, journal: "Journal", folded: "_Folded") -> int | None:
    """How many projections were written; None when the stream has grown since it was folded."""
    tables = journal._env.tables
    if step.current_rev(txn, tables, folded.stream) != folded.rev:
        return None
    differing = {
        key: value for key, value in folded.wanted.items() if value is not None and folded.stored[key] != value
    }
    for key, value in differing.items():
        txn.put(key, value, db=tables.projections)
    return len(differing)


class _Folded(NamedTuple):
    """A stream's projections as they must be and as they are, both of one moment."""

    stream: str
    rev: int
    wanted: Mapping[bytes, bytes | None]
    stored: Mapping[bytes, bytes | None]


def _settled(journal: "Journal", projector: Projector, stream: str) -> _Folded:
    """Fold a stream, and look whether it has grown meanwhile."""
    tables = journal._env.tables
    while True:
        rev = journal.rev(stream)
        wanted = projector.project(stream, journal.read_stream(stream, to_rev=rev)) if rev else {}
        with journal._read() as txn:
            if step.current_rev(txn, tables, stream) == rev:
                return _Folded(stream, rev, wanted, {key: txn.get(key, db=tables.projections) for key in wanted})


def _snapshot(journal: "Journal", projector: Projector, stream: str) -> Iterator[Finding]:
    snapshot = journal.snapshot(stream)
    if snapshot is None or not 0 < snapshot.rev <= journal.rev(stream):
        return  # none, or one that `verify` names
    wrong = projector.snapshot(stream, journal.read_stream(stream, to_rev=snapshot.rev), snapshot.data)
    if wrong is not None:
        yield Finding("snapshot", 0, f"the snapshot of stream `{stream}` at rev `{snapshot.rev}`: {wrong}")


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")
