# SPDX-License-Identifier: Apache-2.0
"""Reading: one record, ranges of them by seq, time and type, streams, the last ones, and those to come.

Everything is fetched in batches, each in a short transaction of its own, so that a slow consumer pins no pages and holds
up nobody. Records never change, so batches of one range are of one snapshot: the one at the first `next`.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import chain, islice
from struct import unpack
from typing import TypeVar

import lmdb

from journal import layout, step
from journal.clock import CLOCK
from journal.env import Env, Tables, Txn
from journal.errors import JournalDamaged, JournalError, JournalPruned, StreamMissing
from journal.records import Head, Record, Stored, split, unseal, unsealed
from journal.source import Gap, Picked, Snapshot, StreamInfo, read_gap

T = TypeVar("T")
SEQ_END = 1 << 63
FOLLOW_POLL_S = 0.1
_PIECE_RECORDS = 16  # the size of a batch is looked at so often


class Reader:
    """The reading half of `Journal`. Methods may be called from any thread."""

    _env: Env
    _open: bool

    @property
    def path(self) -> str:
        """The journal's directory."""
        return self._env.path

    # -- records

    def head(self) -> Head:
        """The last record's seq and digest."""
        with self._read() as txn:
            return step.read_tip(txn, self._env.tables).head

    def get(self, seq: int) -> Record | None:
        """One record, checked against its digest, or None when there is none with that seq.

        Raises JournalPruned when there was one, and JournalDamaged when it is not what was written.
        """
        value = self._value(seq)
        if value is None:
            gap = self.gap_of(seq)
            if gap is not None:
                raise JournalPruned(
                    f"record `{seq}` was pruned, with all from `{gap.first}` to `{gap.last}`",
                    hint="a tombstone accounts for it; the record itself is gone",
                )
            return None
        return unseal(value, seq)

    def get_text(self, seq: int) -> bytes | None:
        """The JSON text of one record exactly as it is stored and hashed, unchecked, or None."""
        value = self._value(seq)
        return None if value is None else split(value, seq)[1]

    def read(
        self,
        from_seq: int = 1,
        to_seq: int | None = None,
        reverse: bool = False,
        *,
        since_ns: int | None = None,
        until_ns: int | None = None,
        kinds: Collection[str] = (),
        types: Collection[str] = (),
    ) -> Iterator[Record]:
        """The records from `from_seq` to `to_seq`, both included, as of now; newest first with `reverse`.

        Of these only the ones whose wall time is in `[since_ns, until_ns)` and whose kind and type are among those
        given, if any are. A time range costs what lies in it, also when the clock was set back meanwhile. Raises
        JournalDamaged at a record that is not what was written.
        """
        low, high = max(from_seq, 1), SEQ_END if to_seq is None else to_seq
        picked = Picked(since_ns, until_ns, frozenset(kinds), frozenset(types))
        return self._range(low, high, reverse) if picked == Picked() else self._picked(low, high, reverse, picked)

    def last(self, count: int) -> list[Record]:
        """The last `count` records, oldest first."""
        found = list(islice(self.read(reverse=True), max(0, count)))
        found.reverse()
        return found

    def follow(self, from_seq: int | None = None, wait: Callable[[], bool] | None = None) -> Iterator[Record]:
        """The records from `from_seq` on (None: those appended from now on), for ever.

        When there are no more for now, `wait` is called: it returns when it is worth looking again, and False ends the
        iteration. By default it sleeps a tenth of a second.
        """
        at = self.head().seq + 1 if from_seq is None else from_seq
        while True:
            for record in self.read(at):
                yield record
                at = record.seq + 1
            if not (wait or _sleep)():
                return

    # -- streams

    def read_stream(
        self, stream: str, from_rev: int = 1, to_rev: int | None = None, reverse: bool = False
    ) -> Iterator[Record]:
        """The stream's records from `from_rev` to `to_rev`, both included, as of now; newest first with `reverse`.

        Nothing for a stream that is not there. Batches and errors as in `read`.
        """
        low, high = max(from_rev, 1), self.rev(stream)
        if to_rev is not None:
            high = min(high, to_rev)
        while low <= high:
            revs, seqs, values = self._stream_batch(stream, low, high, reverse)
            for rev, record in zip(revs, chain.from_iterable(unsealed(values, seqs)), strict=True):
                if record.rev != rev or record.stream != stream:
                    raise JournalDamaged(f"the index of stream `{stream}` is wrong at rev `{rev}`", seq=record.seq)
                yield record
            if not revs:
                return
            if reverse:
                high = revs[-1] - 1
            else:
                low = revs[-1] + 1

    def stored(self, streams: Collection[str]) -> Iterator[Stored]:
        """Every record of the streams as of now, in the order of seq, with the value it is stored as."""
        for seq in sorted(seq for stream in streams for seq in self._index_of(stream)):
            value = self._value(seq)
            if value is None:
                raise JournalDamaged(f"record `{seq}` is missing", seq=seq)
            yield Stored(unseal(value, seq), value)

    def rev(self, stream: str) -> int:
        """The rev of the stream's last record, 0 when it has none: what `append` expects."""
        with self._read() as txn:
            return step.current_rev(txn, self._env.tables, stream)

    def streams(self) -> Iterator[StreamInfo]:
        """Every stream as of now but the journal's own, in the byte order of the names."""
        yield from (info for info in self._streams() if info.stream != layout.SYSTEM_STREAM)

    def stream(self, name: str) -> StreamInfo:
        """One stream. Raises StreamMissing when there is none of that name."""
        begin = name.encode()
        with self._read() as txn, txn.cursor(self._env.tables.streams) as cursor:
            if not cursor.set_range(layout.stream_key(name, 0)) or layout.split_stream_key(cursor.key())[0] != begin:
                raise StreamMissing(
                    f"journal `{self.path}` has no stream `{name}`", hint="it was never there, or it was pruned"
                )
            first_seq = int.from_bytes(cursor.value(), "big")
            _to_end_of(cursor, begin)
            rev = layout.split_stream_key(cursor.key())[1]
            return StreamInfo(name, first_seq, int.from_bytes(cursor.value(), "big"), rev)

    # -- projections and snapshots

    def projection(self, key: bytes) -> bytes | None:
        """The value of one projection, or None."""
        with self._read() as txn:
            return txn.get(key, db=self._env.tables.projections)

    def projections(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Every (key, value) whose key starts with `prefix`, in key order, all of one moment (fetched at once)."""
        found = []
        with self._read() as txn, txn.cursor(self._env.tables.projections) as cursor:
            more = cursor.set_range(prefix) if prefix else cursor.first()
            while more and (key := cursor.key()).startswith(prefix):
                found.append((key, cursor.value()))
                more = cursor.next()
        yield from found

    def snapshot(self, stream: str) -> Snapshot | None:
        """The stream's latest snapshot, or None. Read on from its `rev` + 1."""
        table = self._env.tables.snapshots
        if table is None:
            return None
        with self._read() as txn:
            value = txn.get(stream.encode(), db=table)
        return None if value is None else Snapshot(*layout.split_snapshot(value))

    # -- what was pruned

    def gaps(self) -> list[Gap]:
        """Every range of records that was pruned, in order."""
        table = self._env.tables.gaps
        if table is None:
            return []
        with self._read() as txn, txn.cursor(table) as cursor:
            return [read_gap(key, value) for key, value in cursor.iternext()]

    def gap_of(self, seq: int) -> Gap | None:
        """The gap that the record `seq` has gone into, or None."""
        table = self._env.tables.gaps
        if table is None or not 0 < seq < SEQ_END:
            return None
        with self._read() as txn, txn.cursor(table) as cursor:
            at = cursor.set_range(layout.seq_key(seq + 1))
            if not (cursor.prev() if at else cursor.last()):
                return None
            gap = read_gap(*cursor.item())
        return gap if seq in gap else None

    # -- within

    def _check_open(self) -> None:
        if not self._open:
            raise JournalError(f"journal `{self.path}` is closed")

    def _read(self) -> AbstractContextManager[Txn]:
        self._check_open()
        return self._env.read()

    def _value(self, seq: int) -> bytes | None:
        if not 0 < seq < SEQ_END:
            return None
        with self._read() as txn:
            return txn.get(layout.seq_key(seq), db=self._env.tables.records)

    def _range(self, low: int, high: int, reverse: bool) -> Iterator[Record]:
        # Handed on one by one without a line of Python in between: what is done for each record is what reading costs.
        return chain.from_iterable(self._pieces(low, high, reverse))

    def _pieces(self, low: int, high: int, reverse: bool) -> Iterator[Iterable[Record]]:
        high = min(high, self.head().seq)
        while low <= high:
            seqs, values = self._batch(low, high, reverse)
            yield from unsealed(values, seqs)
            if not seqs:
                return
            if reverse:
                high = seqs[-1] - 1
            else:
                low = seqs[-1] + 1

    def _picked(self, low: int, high: int, reverse: bool, picked: Picked) -> Iterator[Record]:
        high = min(high, self.head().seq)
        for first, last in self._spans(low, high, reverse, picked.since_ns, picked.until_ns):
            yield from (record for record in self._range(first, last, reverse) if record in picked)

    def _batch(self, low: int, high: int, reverse: bool) -> tuple[Sequence[int], Sequence[bytes]]:
        """Seqs and values of the records from `low` to `high`, about as many as fit a batch, at least one if there is."""
        with self._read() as txn, txn.cursor(self._env.tables.records) as cursor:
            found = cursor.set_range(layout.seq_key(high if reverse else low))
            if reverse and (not found or cursor.key() != layout.seq_key(high)):
                found = cursor.prev() if found else cursor.last()
            if not found:
                return (), []
            first = int.from_bytes(cursor.key(), "big")
            count = min(layout.BATCH_RECORDS, first - low + 1 if reverse else high - first + 1)
            if count <= 0:
                return (), []
            values = _take((cursor.iterprev if reverse else cursor.iternext)(keys=False), count)
            last = first - len(values) + 1 if reverse else first + len(values) - 1
            # Keys are in order and none is there twice: when the last one is right, so are all between. After its last
            # item the cursor is nowhere.
            if not cursor.key():
                (cursor.first if reverse else cursor.last)()
            if cursor.key() == layout.seq_key(last):
                return range(first, last - 1, -1) if reverse else range(first, last + 1), values
            return _with_gaps(cursor, first, low, high, reverse)

    def _spans(
        self, low: int, high: int, reverse: bool, since_ns: int | None, until_ns: int | None
    ) -> Iterator[tuple[int, int]]:
        """Ranges of seqs between `low` and `high`, by the time index, outside of which nothing is of those times."""
        table = self._env.tables.times
        if table is None or (since_ns is None and until_ns is None):
            yield low, high
            return
        spans: list[tuple[int, int]] = []
        at = 1  # the first seq that the index has not spoken of: what it does not know must be looked at
        with self._read() as txn, txn.cursor(table) as cursor:
            for key, value in cursor.iternext():
                first = int.from_bytes(key, "big") * layout.TIMES_BLOCK + 1
                last = first + layout.TIMES_BLOCK - 1
                if first > at:
                    spans.append((at, first - 1))
                at = last + 1
                least, greatest = layout.split_times(value)
                if (since_ns is None or greatest >= since_ns) and (until_ns is None or least < until_ns):
                    spans.append((first, last))
        spans.append((at, high))
        for first, last in reversed(spans) if reverse else spans:
            if max(first, low) <= min(last, high):
                yield max(first, low), min(last, high)

    def _stream_batch(
        self, stream: str, low: int, high: int, reverse: bool
    ) -> tuple[Sequence[int], Sequence[int], Sequence[bytes]]:
        """Revs, seqs and values of the stream's records from `low` to `high`, as many as fit a batch.

        Revs are without a gap, but for old tombstones of the journal's own stream. Empty when the stream was pruned
        since the last batch.
        """
        revs: list[int] = []
        seqs: list[int] = []
        values: list[bytes] = []
        size = 0
        tables = self._env.tables
        begin = layout.stream_key(stream, 0)[:-8]
        with self._read() as txn, txn.cursor(tables.streams) as cursor:
            found = _run_of_stream(cursor, txn, tables, stream, low, high, reverse)
            if found is not None:
                return found
            first = cursor.set_range(layout.stream_key(stream, high if reverse else low))
            if reverse and (not first or cursor.key() != layout.stream_key(stream, high)):
                first = cursor.prev() if first else cursor.last()
            wanted = high if reverse else low
            for key, at in (cursor.iterprev if reverse else cursor.iternext)() if first else ():
                rev = int.from_bytes(key[-8:], "big")
                if key[:-8] != begin or not low <= rev <= high:
                    break
                value = txn.get(at, db=tables.records)
                if value is None or (rev != wanted and stream != layout.SYSTEM_STREAM):
                    raise JournalDamaged(f"rev `{wanted}` of stream `{stream}` is missing")
                revs.append(rev)
                seqs.append(int.from_bytes(at, "big"))
                values.append(value)
                wanted = rev - 1 if reverse else rev + 1
                size += len(value)
                if size >= layout.BATCH_BYTES or len(revs) >= layout.BATCH_RECORDS:
                    break
        return revs, seqs, values

    def _index_of(self, stream: str) -> list[int]:
        """The seq of every record of the stream."""
        name = stream.encode()
        found = []
        with self._read() as txn, txn.cursor(self._env.tables.streams) as cursor:
            more = cursor.set_range(layout.stream_key(stream, 0))
            for key, at in cursor.iternext() if more else ():
                if layout.split_stream_key(key)[0] != name:
                    break
                found.append(int.from_bytes(at, "big"))
        return found

    def _streams(self) -> list[StreamInfo]:
        """One jump to each stream's first and last index entry, however many are between."""
        found = []
        with self._read() as txn, txn.cursor(self._env.tables.streams) as cursor:
            more = cursor.first()
            while more:
                name, _ = layout.split_stream_key(cursor.key())
                first_seq = int.from_bytes(cursor.value(), "big")
                more = _to_end_of(cursor, name)
                _, rev = layout.split_stream_key(cursor.key())
                found.append(StreamInfo(name.decode(), first_seq, int.from_bytes(cursor.value(), "big"), rev))
                more = more and cursor.next()
        return found


def _take(values: Iterator[bytes], count: int) -> list[bytes]:
    """The first `count` values, or fewer: the first few that together have the size of a batch, or a little more."""
    taken: list[bytes] = []
    size = 0
    while size < layout.BATCH_BYTES and len(taken) < count:
        piece = list(islice(values, min(_PIECE_RECORDS, count - len(taken))))
        taken += piece
        size += sum(map(len, piece))
        if len(piece) < _PIECE_RECORDS:
            break
    return taken


def _with_gaps(
    cursor: "lmdb.Cursor[bytes]", first: int, low: int, high: int, reverse: bool
) -> tuple[list[int], list[bytes]]:
    """A batch from record `first` on where not every seq is there: each key is looked at."""
    seqs: list[int] = []
    values: list[bytes] = []
    size = 0
    cursor.set_key(layout.seq_key(first))
    for key, value in islice((cursor.iterprev if reverse else cursor.iternext)(), layout.BATCH_RECORDS):
        seq = int.from_bytes(key, "big")
        if not low <= seq <= high or size >= layout.BATCH_BYTES:
            break
        seqs.append(seq)
        values.append(value)
        size += len(value)
    return seqs, values


def _run_of_stream(
    cursor: "lmdb.Cursor[bytes]", txn: Txn, tables: Tables, stream: str, low: int, high: int, reverse: bool
) -> tuple[Sequence[int], Sequence[int], Sequence[bytes]] | None:
    """A batch of a stream that is all there, a few records at a time; None when it must be looked at one by one."""
    at, step_by = (high, -1) if reverse else (low, 1)
    if not cursor.set_key(layout.stream_key(stream, at)):
        return None
    keys: list[bytes] = []
    values: list[bytes] = []
    size, wanted = 0, min(high - low + 1, layout.BATCH_RECORDS)
    with txn.cursor(tables.records) as records:
        while size < layout.BATCH_BYTES and len(keys) < wanted:
            count = min(_PIECE_RECORDS, wanted - len(keys))
            items = list(islice((cursor.iterprev if reverse else cursor.iternext)(), count))
            last = at + step_by * (len(keys) + count - 1)
            # Keys are in order and none is there twice: when the last one is right, so are all between.
            if len(items) != count or items[-1][0] != layout.stream_key(stream, last):
                return None
            piece = [seq for _, seq in items]
            found = [value for _, value in records.getmulti(piece)]
            if len(found) != count:
                return None
            keys += piece
            values += found
            size += sum(map(len, found))
            if len(keys) < wanted and not (cursor.prev if reverse else cursor.next)():
                return None
    return range(at, at + step_by * len(keys), step_by), unpack(f">{len(keys)}Q", b"".join(keys)), values


def _to_end_of(cursor: "lmdb.Cursor[bytes]", name: bytes) -> bool:
    """Go to the last index entry of the stream that the cursor is in; whether another stream follows."""
    more = cursor.set_range(layout.stream_end(name))
    if more:
        cursor.prev()
    else:
        cursor.last()
    return more


def _sleep() -> bool:
    CLOCK.sleep(FOLLOW_POLL_S)
    return True
