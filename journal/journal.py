# SPDX-License-Identifier: Apache-2.0
"""`Journal`: append, read, project, keep small, prove. Reading is in reading.py, the write step in step.py, LMDB's rules in
env.py, the bytes of a record in records.py."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

from journal import bundle, checkpoint, folds, imports, layout, prune, step
from journal import owner as owners
from journal.create import create as create_journal
from journal.create import make_directory
from journal.env import Env, Txn, map_errors, missing
from journal.errors import ChainBroken, InvalidAppend, JournalDamaged, JournalPruned, JournalReadOnly
from journal.findings import Finding
from journal.folds import Projector
from journal.lock import WriterLock
from journal.prune import Cut
from journal.reading import Reader
from journal.records import DIGEST_CHARS, Head, Kind, NewRecord, Record, Stamp
from journal.stat import Stat, measure
from journal.verify import verify

T = TypeVar("T")


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
        owner: tuple[str, Stamp] | None = None,
    ) -> "Journal":
        """Open the journal in the directory `path`; for writing, create it when it is not there and `create` is true.

        With `read_only` nothing is created and no lock is waited for; it works on a copy and on a read-only file
        system. `sync=False` gives up durability: after a power loss the journal may be damaged. `map_bytes` is the
        address space to begin with; it grows by itself. `owner` says who writes, and when that is: a journal that nobody
        owns yet gets a record of it, one that somebody else owns is refused.

        Raises JournalForeign, JournalMissing, JournalBusy, JournalReadOnly, JournalDiskFull, JournalDamaged,
        JournalVersionError, JournalInUse.
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
            journal = cls(env, lock, lock_timeout_s)
        try:
            if owner is not None:
                journal._own(*owner)
        except BaseException:
            journal.close()
            raise
        return journal

    def _own(self, owner: str, stamp: Stamp) -> None:
        def work(txn: Txn) -> None:
            if owners.check(self.path, owners.read(txn, self._env.tables), owner):  # another may have been first
                owners.state(txn, self._env.tables, owner, stamp, {})

        if owners.check(self.path, self.owner(), owner):
            self._write(work)

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
        lock = self._check_writable()

        def checked(txn: Txn) -> T:
            self._env.check_format(txn)  # a newer program may have come by since we opened
            return work(txn)

        with lock.hold(self._lock_timeout_s):
            return self._env.write(checked)

    def _check_writable(self) -> WriterLock:
        self._check_open()
        if self._lock is None:
            raise JournalReadOnly(f"journal `{self.path}` is open for reading", hint="open it with read_only=False")
        return self._lock

    # -- keeping it small

    def prune(
        self,
        cuts: Sequence[Cut],
        *,
        stamp: Stamp,
        reason: Mapping[str, Any] = step.NO_FACTS,
        roll_before_ns: int | None = None,
    ) -> list[Record]:
        """Remove whole streams, and with them their snapshots and the projections that `cuts` names, in one transaction.

        A tombstone is appended that accounts for what is gone; `reason` is kept in it. With `roll_before_ns`, a wall
        time, older tombstones are taken into the new one. Returns the new tombstones, none when there was nothing to do.
        The file does not shrink: its space is used again.

        Raises StreamMissing, VersionConflict (a stream has grown since), JournalDamaged (a damaged record is not swept
        away), and what `append` raises.
        """
        return self._write(
            lambda txn: prune.prune(txn, self._env.tables, cuts, stamp, reason, roll_before_ns),
        )

    # -- taking it elsewhere

    def export(self, streams: Collection[str], path: str, about: Mapping[str, Any] = step.NO_FACTS) -> bundle.Header:
        """Write whole streams into a bundle (see bundle.py) at `path`; return its header. `about` is kept in it.

        Raises StreamMissing, JournalDamaged (a damaged record is not exported: salvage), InvalidAppend (too much for one),
        JournalError.
        """
        for name in streams:
            self.stream(name)
        return bundle.make(path, self.identity(), list(self.stored(streams)), dict(about))[0]

    def import_bundle(self, source: str, name: str, *, stamp: Stamp) -> Record:
        """Keep a copy of the bundle `source` under `name`, and record that; `imported` reads it.

        Raises ImportExists, what `Bundle.open` raises, and what `append` raises; nothing is kept then.
        """
        self._check_writable()
        with map_errors(self.path):
            kept = imports.place(self.path, source, name)
            try:
                return self._write(lambda txn: imports.append(txn, self._env.tables, stamp, name, kept, forget=False))
            except BaseException:
                imports.remove(self.path, name)
                raise

    def imports(self) -> list[str]:
        """The names of what was imported, sorted."""
        return imports.names(self.path)

    def imported(self, name: str) -> bundle.Bundle:
        """What was imported under `name`. Raises ImportMissing, and what `Bundle.open` raises."""
        return imports.read(self.path, name)

    def forget(self, name: str, *, stamp: Stamp) -> Record:
        """Record that an import is forgotten, and remove it. Raises ImportMissing, and what `append` raises."""
        self._check_writable()
        kept = imports.read(self.path, name)
        record = self._write(lambda txn: imports.append(txn, self._env.tables, stamp, name, kept, forget=True))
        imports.remove(self.path, name)
        return record

    # -- the whole

    def identity(self) -> str:
        """What tells this journal from all others: the digest of its first record, kept when that is pruned. "" so far.

        A copy of a journal has the identity of the original.
        """
        with self._read() as txn:
            found = txn.get(layout.IDENTITY_KEY, db=self._env.tables.meta)
            if found is None:
                found = (txn.get(layout.seq_key(1), db=self._env.tables.records) or b"")[:DIGEST_CHARS]
            return found.decode(errors="replace")

    def owner(self) -> owners.Owner | None:
        """Who owns it, and by which record; None when nobody does so far."""
        with self._read() as txn:
            return owners.read(txn, self._env.tables)

    def adopt(self, owner: str, *, stamp: Stamp, reason: str) -> Record:
        """Make `owner` the owner, whoever is it now; the record says from whom and why. What `append` raises."""

        def work(txn: Txn) -> Record:
            before = owners.read(txn, self._env.tables)
            more = {"from": None if before is None else before.owner, "reason": reason}
            return owners.state(txn, self._env.tables, owner, stamp, more)

        return self._write(work)

    def checkpoint(self, *, stamp: Stamp, signer: checkpoint.Signer | None = None) -> Record:
        """Append a record that states the head, signed if there is a `signer`; return it.

        Raises InvalidAppend for a journal without records, and what `append` raises.
        """

        def work(txn: Txn) -> Record:
            tables = self._env.tables
            head = step.checked_tip(txn, tables).head
            identity = (txn.get(layout.IDENTITY_KEY, db=tables.meta) or b"").decode()
            new = checkpoint.new_record(identity, head, signer)
            rev = step.current_rev(txn, tables, layout.SYSTEM_STREAM)
            todo = step.prepare(layout.SYSTEM_STREAM, [new], stamp=stamp, expected_rev=rev)
            return step.apply(todo, txn, tables)[0]

        return self._write(work)

    def last_checkpoint(self) -> Record | None:
        """The latest checkpoint, or None."""
        records = self.read_stream(layout.SYSTEM_STREAM, reverse=True)
        return next((record for record in records if record.kind == Kind.CHECKPOINT), None)

    def prove(self, head: Head) -> None:
        """Prove that the journal has only grown since its head was `head`, apart from what was pruned.

        Only links are looked at here: that every record is what it was is what `verify` from `head.seq` on says.
        Raises ChainBroken when it has not, JournalPruned when the record is gone and nothing links to it any more.
        """
        now = self.head()
        if head.seq > now.seq:
            raise ChainBroken(
                f"the journal ends with record `{now.seq}`, but its head was once record `{head.seq}`",
                hint="records were taken from its end, or it is another journal",
            )
        if head.seq == 0:
            return
        digest = self._linked_digest(head.seq)
        if digest != head.digest:
            raise ChainBroken(
                f"record `{head.seq}` has digest `{digest}`, but was once `{head.digest}`",
                hint="the journal was written anew from there or before, or it is another journal",
            )

    def _linked_digest(self, seq: int) -> str:
        """The digest of record `seq`, from the record itself or from what links to it."""
        gap = self.gap_of(seq)
        if gap is not None:
            if gap.last == seq:
                return gap.digest
            raise JournalPruned(
                f"record `{seq}` was pruned with all from `{gap.first}` to `{gap.last}`, and nothing links to it",
                hint="compare with a head that is younger than what was pruned; checkpoints stay",
            )
        record = self.get(seq)
        if record is None:
            raise JournalDamaged(f"record `{seq}` is missing", seq=seq)
        return record.digest

    def verify(
        self, from_seq: int = 1, to_seq: int | None = None, public_keys: Collection[bytes] = ()
    ) -> Iterator[Finding]:
        """Check records, chain, index, times, gaps, checkpoints and head; yield what is wrong, nothing when all is well.

        Of the records those from `from_seq` to `to_seq` only. With `public_keys` (raw Ed25519, 32 bytes each) every
        checkpoint must be signed with one of them.
        """
        self._check_open()
        return verify(self._env, from_seq, to_seq, frozenset(public_keys))

    def verify_folds(self, projector: Projector) -> Iterator[Finding]:
        """Compare every projection and snapshot with what the records fold to; yield where they differ."""
        self._check_open()
        return folds.verify(self, projector)

    def reindex(self, projector: Projector) -> int:
        """Write anew every projection that is not what the records fold to; return how many. What `append` raises."""
        return folds.rebuild(self, projector, self._write)

    def stat(self) -> Stat:
        """Counts and sizes; the only cost that grows is counting streams."""
        return measure(self)


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
