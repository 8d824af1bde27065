# SPDX-License-Identifier: Apache-2.0
"""`Journal`: append, read, project. Bytes are in records.py, the write step in step.py, LMDB's rules in env.py."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from types import MappingProxyType
from typing import Self

import msgspec

from journal import layout, step
from journal.create import create as create_journal
from journal.create import make_directory
from journal.env import Env, Txn, map_errors, missing
from journal.errors import JournalDamaged, JournalError, JournalReadOnly
from journal.lock import WriterLock
from journal.records import Head, NewRecord, Record, Stamp, split, unseal
from journal.verify import Finding, verify

NOTHING: step.Projections = MappingProxyType({})
_SEQ_END = 1 << 63


class StreamInfo(msgspec.Struct, frozen=True):
    """Where a stream begins and ends; `rev` is that of its last record, which is also how many it has."""

    stream: str
    first_seq: int
    last_seq: int
    rev: int


class Stat(msgspec.Struct, frozen=True):
    """The size of a journal: counts, and bytes of the data file, of it in use, and of the map it may grow to."""

    path: str
    format: int
    head: Head
    records: int
    streams: int
    projections: int
    file_bytes: int
    used_bytes: int
    map_bytes: int
    readers: int
    sync: bool
    read_only: bool


class Journal:
    """An open journal. Made by `Journal.open`, after any fork; a process may have it open once.

    Methods may be called from any thread. `append` is synchronous, runs its transaction on the calling thread and
    must not be abandoned half-way: a thread that was given up on would still commit.
    """

    def __init__(self, env: Env, lock: WriterLock | None, lock_timeout_s: float) -> None:
        self._env = env
        self._lock = lock
        self._lock_timeout_s = lock_timeout_s
        self._open = True

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        create: bool = True,
        sync: bool = True,
        lock_timeout_s: float = 10.0,
        map_bytes: int = layout.MAP_BYTES,
    ) -> "Journal":
        """Open the journal in the directory `path`; for writing, create it when it is not there and `create` is true.

        With `read_only` nothing is created and no lock is waited for; it works on a copy and on a read-only file
        system. `sync=False` gives up durability: after a power loss the journal may be damaged. `map_bytes` is the
        address space to begin with; it grows by itself.

        Raises JournalMissing, JournalBusy, JournalReadOnly, JournalDiskFull, JournalDamaged, JournalVersionError,
        JournalInUse.
        """
        directory = os.fspath(path)
        if read_only:
            return cls(_open_env(directory, read_only=True, sync=sync, map_bytes=map_bytes), None, lock_timeout_s)
        with map_errors(directory):
            if create:
                make_directory(directory)
            elif not layout.has_data(directory):
                raise missing(directory)
            lock = WriterLock(f"{directory}/{layout.WRITER_LOCK_FILE}")
            try:
                with lock.hold(lock_timeout_s):
                    if not layout.has_data(directory):
                        create_journal(directory, map_bytes)
                    env = _open_env(directory, read_only=False, sync=sync, map_bytes=map_bytes)
            except BaseException:
                lock.close()
                raise
            return cls(env, lock, lock_timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close files and map; iterators that are still open fail. Closing twice is allowed."""
        self._open = False
        self._env.close()
        if self._lock is not None:
            self._lock.close()

    @property
    def path(self) -> str:
        """The journal's directory."""
        return self._env.path

    # -- writing

    def append(
        self,
        stream: str,
        records: Sequence[NewRecord],
        *,
        stamp: Stamp,
        expected_rev: int,
        projections: step.Projections = NOTHING,
        requires: step.Projections = NOTHING,
    ) -> list[Record]:
        """Append records to a stream and update projections, durably, all or nothing; return the records as stored.

        `expected_rev` is the rev the caller has seen last, 0 for a new stream. `projections` maps keys to new values,
        None deletes. `requires` maps keys to the value they must have now, None meaning absent. On return everything
        survives a power loss; on any exception nothing was written.

        Raises VersionConflict, RequirementFailed, InvalidAppend, JournalBusy, JournalDiskFull, JournalReadOnly,
        JournalDamaged, JournalVersionError.
        """
        self._check_open()
        if self._lock is None:
            raise JournalReadOnly(f"journal `{self.path}` is open for reading", hint="open it with read_only=False")
        todo = step.prepare(
            stream, records, stamp=stamp, expected_rev=expected_rev, projections=projections, requires=requires
        )

        def work(txn: Txn) -> list[Record]:
            self._env.check_format(txn)  # a newer program may have come by since we opened
            return step.apply(todo, txn, self._env.tables)

        with self._lock.hold(self._lock_timeout_s):
            return self._env.write(work)

    # -- reading records

    def head(self) -> Head:
        """The last record's seq and digest."""
        with self._read() as txn:
            return step.read_head(txn, self._env.tables)

    def get(self, seq: int) -> Record | None:
        """One record, checked against its digest, or None when there is none with that seq."""
        value = self._value(seq)
        return None if value is None else unseal(value, seq)

    def get_text(self, seq: int) -> bytes | None:
        """The JSON text of one record exactly as it is stored and hashed, unchecked, or None."""
        value = self._value(seq)
        return None if value is None else split(value, seq)[1]

    def read(self, from_seq: int = 1, to_seq: int | None = None, reverse: bool = False) -> Iterator[Record]:
        """The records from `from_seq` to `to_seq`, both included, as of now; newest first with `reverse`.

        Fetched in batches, each in its own short transaction: a slow consumer holds nothing. Records never change,
        so all batches are of one snapshot, the one at the first `next`. Raises JournalDamaged at a record that was.
        """
        low, high = max(from_seq, 1), _SEQ_END if to_seq is None else to_seq
        high = min(high, self.head().seq)
        while low <= high:
            batch = self._batch(low, high, reverse)
            for seq, value in batch:
                yield unseal(value, seq)
            if not batch:
                return
            if reverse:
                high = batch[-1][0] - 1
            else:
                low = batch[-1][0] + 1

    def read_stream(self, stream: str, from_rev: int = 1) -> Iterator[Record]:
        """The stream's records from `from_rev` on, oldest first, as of now. Batches and errors as in `read`."""
        rev, end = max(from_rev, 1), self.rev(stream)
        while rev <= end:
            for seq, value in self._stream_batch(stream, rev, end):
                record = unseal(value, seq)
                if (record.stream, record.rev) != (stream, rev):
                    raise JournalDamaged(f"the index of stream `{stream}` is wrong at rev `{rev}`", seq=seq)
                yield record
                rev += 1

    def rev(self, stream: str) -> int:
        """The rev of the stream's last record, 0 when it has none: what `append` expects."""
        with self._read() as txn:
            return step.current_rev(txn, self._env.tables, stream)

    def streams(self) -> Iterator[StreamInfo]:
        """Every stream as of now, in the byte order of the names."""
        yield from self._streams()

    # -- projections

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

    # -- the whole

    def verify(self) -> Iterator[Finding]:
        """Check every record, the chain, the index and the head; yield what is wrong, nothing when all is well."""
        self._check_open()
        return verify(self._env)

    def stat(self) -> Stat:
        """Counts and sizes; the only cost that grows is counting streams."""
        streams = len(self._streams())
        info = self._env.info()
        tables = self._env.tables
        with self._read() as txn:
            return Stat(
                path=self.path,
                format=layout.FORMAT_NUMBER,
                head=step.read_head(txn, tables),
                records=txn.stat(tables.records)["entries"],
                streams=streams,
                projections=txn.stat(tables.projections)["entries"],
                file_bytes=os.stat(f"{self.path}/{layout.DATA_FILE}").st_size,
                used_bytes=(info["last_pgno"] + 1) * info["psize"],
                map_bytes=info["map_size"],
                readers=info["num_readers"],
                sync=self._env.sync,
                read_only=self._env.read_only,
            )

    # -- within

    def _check_open(self) -> None:
        if not self._open:
            raise JournalError(f"journal `{self.path}` is closed")

    def _read(self) -> AbstractContextManager[Txn]:
        self._check_open()
        return self._env.read()

    def _value(self, seq: int) -> bytes | None:
        if not 0 < seq < _SEQ_END:
            return None
        with self._read() as txn:
            return txn.get(layout.seq_key(seq), db=self._env.tables.records)

    def _batch(self, low: int, high: int, reverse: bool) -> list[tuple[int, bytes]]:
        """Values of the records from `low` to `high`, as many as fit a batch, at least one if there is one."""
        found = []
        size = 0
        with self._read() as txn, txn.cursor(self._env.tables.records) as cursor:
            first = cursor.set_range(layout.seq_key(high if reverse else low))
            if reverse and (not first or cursor.key() != layout.seq_key(high)):
                first = cursor.prev() if first else cursor.last()
            items = (cursor.iterprev if reverse else cursor.iternext)() if first else iter(())
            for key, value in islice(items, layout.BATCH_RECORDS):
                seq = int.from_bytes(key, "big")
                if not low <= seq <= high:
                    break
                found.append((seq, value))
                size += len(value)
                if size >= layout.BATCH_BYTES:
                    break
        return found

    def _stream_batch(self, stream: str, rev: int, end: int) -> list[tuple[int, bytes]]:
        """Values of the stream's records from `rev` to `end`, as many as fit a batch."""
        found = []
        size = 0
        tables = self._env.tables
        with self._read() as txn:
            for wanted in range(rev, min(end + 1, rev + layout.BATCH_RECORDS)):
                key = txn.get(layout.stream_key(stream, wanted), db=tables.streams)
                value = None if key is None else txn.get(key, db=tables.records)
                if key is None or value is None:
                    raise JournalDamaged(f"rev `{wanted}` of stream `{stream}` is missing")
                found.append((int.from_bytes(key, "big"), value))
                size += len(value)
                if size >= layout.BATCH_BYTES:
                    break
        return found

    def _streams(self) -> list[StreamInfo]:
        """One jump to each stream's first and last index entry, however many are between."""
        found = []
        with self._read() as txn, txn.cursor(self._env.tables.streams) as cursor:
            more = cursor.first()
            while more:
                name, _ = layout.split_stream_key(cursor.key())
                first_seq = int.from_bytes(cursor.value(), "big")
                more = cursor.set_range(layout.stream_end(name))
                if more:
                    cursor.prev()
                else:
                    cursor.last()
                _, rev = layout.split_stream_key(cursor.key())
                found.append(StreamInfo(name.decode(), first_seq, int.from_bytes(cursor.value(), "big"), rev))
                if more:
                    more = cursor.next()
        return found


def _open_env(path: str, *, read_only: bool, sync: bool, map_bytes: int) -> Env:
    env = Env(path, read_only=read_only, sync=sync, map_bytes=map_bytes)
    try:
        env.open_tables()
    except BaseException:
        env.close()
        raise
    return env
