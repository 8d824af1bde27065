# SPDX-License-Identifier: Apache-2.0
"""`Journal`: append, read, project, keep small, prove. Reading is in reading.py, the write step in step.py, LMDB's rules in
env.py, the bytes of a record in records.py."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Self, TypeVar

import msgspec

from journal import layout, step
from journal.create import create as create_journal
from journal.create import make_directory
from journal.env import Env, Txn, map_errors, missing
from journal.errors import InvalidAppend, JournalReadOnly
from journal.lock import WriterLock
from journal.reading import Reader
from journal.records import Head, NewRecord, Record, Stamp
from journal.verify import Finding, verify

T = TypeVar("T")


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


class Journal(Reader):
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
                    if env.format < layout.FORMAT_NUMBER:
                        _upgrade(env)
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

    # -- writing

    def append(
        self,
        stream: str,
        records: Sequence[NewRecord],
        *,
        stamp: Stamp,
        expected_rev: int,
        projections: step.Projections = step.NOTHING,
        requires: step.Projections = step.NOTHING,
        snapshot: bytes | None = None,
    ) -> list[Record]:
        """Append records to a stream and update projections, durably, all or nothing; return the records as stored.

        `expected_rev` is the rev the caller has seen last, 0 for a new stream. `projections` maps keys to new values,
        None deletes. `requires` maps keys to the value they must have now, None meaning absent. `snapshot` is what the
        stream folds to with these records; it replaces the one before. On return everything survives a power loss; on
        any exception nothing was written.

        Raises VersionConflict, RequirementFailed, InvalidAppend, JournalBusy, JournalDiskFull, JournalReadOnly,
        JournalDamaged, JournalVersionError.
        """
        if stream == layout.SYSTEM_STREAM:
            raise InvalidAppend(f"stream `{stream}` is the journal's own: nobody else may append to it")
        todo = step.prepare(
            stream,
            records,
            stamp=stamp,
            expected_rev=expected_rev,
            projections=projections,
            requires=requires,
            snapshot=snapshot,
        )
        return self._write(lambda txn: step.apply(todo, txn, self._env.tables))

    def _write(self, work: Callable[[Txn], T]) -> T:
        """Run `work` in a write transaction, alone in it; committed when this returns, undone when it raises."""
        self._check_open()
        if self._lock is None:
            raise JournalReadOnly(f"journal `{self.path}` is open for reading", hint="open it with read_only=False")

        def checked(txn: Txn) -> T:
            self._env.check_format(txn)  # a newer program may have come by since we opened
            return work(txn)

        with self._lock.hold(self._lock_timeout_s):
            return self._env.write(checked)

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
                format=self._env.format,
                head=step.read_tip(txn, tables).head,
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


def _open_env(path: str, *, read_only: bool, sync: bool, map_bytes: int) -> Env:
    env = Env(path, read_only=read_only, sync=sync, map_bytes=map_bytes)
    try:
        env.open_tables()
    except BaseException:
        env.close()
        raise
    return env


def _upgrade(env: Env) -> None:
    try:
        env.upgrade(step.fill_new_tables)
    except BaseException:
        env.close()
        raise
