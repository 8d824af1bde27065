# SPDX-License-Identifier: Apache-2.0
"""The journal's durable step, and others' that make the same bytes durable, each in a directory of its own.

- *file*: the floor. One write of the bytes to the end of a file, and fdatasync: no index, no lock, nothing to find again.
- *file, two flushes*: the same, and a second write of 120 bytes in place to a file that writes through. These are LMDB's two
  flushes: its pages first, then the page that names them. No journal over it can be faster.
- *lmdb alone*: the same bytes in the same tables by LMDB, in one transaction: no lock before it, no digest, no check.
  Between this and the floor are the pages that trees change; between this and the journal is what is ours.
- *journal, waiting in the kernel*: ours, with an flock instead of its own lock: no deadline, no holder named, and whoever is
  next is woken by the kernel. No lock of ours hands over faster.
- *sqlite*: WAL, synchronous=FULL. Tables like the journal's; it is given the records as bytes, and makes no digests.
- *eventsourcing*: the package's recorder over SQLite with WAL. It has no projections, and gets the bodies as bytes.

Run as `python -m bench.stores NAME DIRECTORY NUMBER LIFE SECONDS`, it is one of many writers (see `bench/journal.py`).
"""

from __future__ import annotations

import fcntl
import importlib
import os
import pickle
import sqlite3
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import lmdb

from bench.life import STAMP, Step
from journal import Journal, layout

LIMIT_S = 60.0


class Store(Protocol):
    """`step` makes the records and projections of a step durable, as those that follow `rev` in `stream`."""

    def __init__(self, directory: Path) -> None: ...

    def step(self, stream: str, rev: int, step: Step) -> None: ...

    def close(self) -> None: ...


class File:
    def __init__(self, directory: Path) -> None:
        self._fd = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def step(self, stream: str, rev: int, step: Step) -> None:
        os.write(self._fd, step.all_bytes)
        os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class FileTwice(File):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._meta = os.open(directory / "meta", os.O_RDWR | os.O_CREAT | os.O_DSYNC, 0o600)
        os.pwrite(self._meta, bytes(8192), 0)
        self._count = 0

    def step(self, stream: str, rev: int, step: Step) -> None:
        super().step(stream, rev, step)
        self._count += 1
        os.pwrite(self._meta, b"m" * 120, 4096 * (self._count % 2))

    def close(self) -> None:
        super().close()
        os.close(self._meta)


class Ours:
    def __init__(self, directory: Path) -> None:
        self._journal = Journal.open(directory / "journal", lock_timeout_s=LIMIT_S)

    def step(self, stream: str, rev: int, step: Step) -> None:
        self._journal.append(stream, step.records, stamp=STAMP, expected_rev=rev, projections=step.projections)

    def close(self) -> None:
        self._journal.close()


class _KernelLock:
    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextmanager
    def hold(self, timeout_s: float) -> Iterator[None]:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._fd)


class OursInTheKernel(Ours):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        assert self._journal._lock is not None
        self._journal._lock.close()
        self._journal._lock = _KernelLock(directory / "lock")  # type: ignore[assignment]


class LmdbAlone:
    def __init__(self, directory: Path) -> None:
        self._env = lmdb.open(str(directory), map_size=1 << 30, max_dbs=layout.TABLES_MAX, lib_version=layout.ENGINE)
        names = (*layout.TABLES_V1, *layout.TABLES_V2)
        self._meta, self._records, self._streams, self._projections, *_ = (self._env.open_db(name) for name in names)
        self._seq = 0

    def step(self, stream: str, rev: int, step: Step) -> None:
        with self._env.begin(write=True) as txn:
            for place, value in enumerate(step.stored, 1):
                self._seq += 1
                txn.put(layout.seq_key(self._seq), value, append=True, db=self._records)
                txn.put(layout.stream_key(stream, rev + place), layout.seq_key(self._seq), db=self._streams)
            txn.put(layout.HEAD_KEY, step.stored[-1][:120], db=self._meta)
            for key, wanted in step.projections.items():
                if wanted is None:
                    txn.delete(key, db=self._projections)
                else:
                    txn.put(key, wanted, db=self._projections)

    def close(self) -> None:
        self._env.close()


_TABLES = """
create table if not exists records (seq integer primary key, stream text, rev integer, value blob, unique (stream, rev));
create table if not exists projections (key blob primary key, value blob);
"""


class Sqlite:
    def __init__(self, directory: Path) -> None:
        self._db = sqlite3.connect(directory / "sqlite", timeout=LIMIT_S, isolation_level=None)
        (mode,) = self._db.execute("pragma journal_mode = wal").fetchone()
        assert mode == "wal", mode
        self._db.execute("pragma synchronous = full")
        self._db.executescript(_TABLES)

    def step(self, stream: str, rev: int, step: Step) -> None:
        rows = [(stream, rev + number, value) for number, value in enumerate(step.stored, 1)]
        run = self._db.execute
        run("begin immediate")
        run("select max(rev) from records where stream = ?", (stream,)).fetchone()
        self._db.executemany("insert into records (stream, rev, value) values (?, ?, ?)", rows)
        for key, value in step.projections.items():
            if value is None:
                run("delete from projections where key = ?", (key,))
            else:
                run("insert or replace into projections values (?, ?)", (key, value))
        run("commit")

    def close(self) -> None:
        self._db.close()


class Eventsourcing:
    """Raises ImportError when the package is not installed."""

    def __init__(self, directory: Path) -> None:
        self._event = importlib.import_module("eventsourcing.persistence").StoredEvent
        package: Any = importlib.import_module("eventsourcing.sqlite")
        self._recorder = package.SQLiteApplicationRecorder(package.SQLiteDatastore(str(directory / "eventsourcing")))
        self._recorder.create_table()

    def step(self, stream: str, rev: int, step: Step) -> None:
        owner = uuid.uuid5(uuid.NAMESPACE_OID, stream)
        records = zip(step.records, step.stored, strict=True)
        self._recorder.insert_events(
            [self._event(owner, rev + number, new.type, value) for number, (new, value) in enumerate(records, 1)]
        )

    def close(self) -> None:
        self._recorder.datastore.close()


WAITING = "journal, waiting in the kernel"
STORES: dict[str, type[Store]] = {
    "file": File,
    "file, two flushes": FileTwice,
    "lmdb alone": LmdbAlone,
    "journal": Ours,
    "sqlite": Sqlite,
    "eventsourcing": Eventsourcing,
    WAITING: OursInTheKernel,
}


class Writer:
    """Writes life after life, each in a stream of its own."""

    def __init__(self, store: Store, steps: list[Step], name: str) -> None:
        self._store = store
        self._steps = steps
        self._name = name
        self._at = self._rev = self._lives = 0

    def step(self) -> float:
        """Make the next step durable; seconds it took."""
        step = self._steps[self._at]
        stream = f"{self._name}-{self._lives}"
        started = time.perf_counter()
        self._store.step(stream, self._rev, step)
        took = time.perf_counter() - started
        self._at, self._rev = self._at + 1, self._rev + len(step.records)
        if self._at == len(self._steps):
            self._at, self._rev, self._lives = 0, 0, self._lives + 1
        return took


def main(name: str, directory: str, number: str, life: str, seconds: str) -> None:
    """Print a line when ready, begin when one is read, and print how many steps were made within `seconds`."""
    writer = Writer(STORES[name](Path(directory)), pickle.loads(Path(life).read_bytes()), f"writer-{number}")
    writer.step()
    print("ready", flush=True)
    sys.stdin.readline()
    end, count = time.monotonic() + float(seconds), 0
    while time.monotonic() < end:
        writer.step()
        count += 1
    print(count, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
