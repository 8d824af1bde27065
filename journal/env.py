# SPDX-License-Identifier: Apache-2.0
"""The LMDB environment: how it is opened, how it grows, and what each of its errors means.

Rules, each learnt from a failure of lmdb 3.0 with engine 0.9:

- the engine is pinned; the package's default may change and the two engines cannot read each other's files
- never `writemap`: a full disk is then a SIGBUS
- the directory is made by us with 0700 (LMDB gives it the files' mode, without the x bits), and the first file is not
  made in place (see create.py)
- one of the two descriptors of the data file lacks close-on-exec, and would leak into every child: cleared at once (a
  thread that execs a child in that moment would still leak it: open before starting threads)
- slots of killed readers pin old pages for ever: `reader_check` at each open and when the table is full
- a full map poisons its transaction, and the map may only be resized while this process has no transaction at all
- the reader table is a sparse file written through a map: on a full disk that is a SIGBUS too, so its space is
  reserved before LMDB sees it
- an environment does not survive fork
- a page that the file does not have is a SIGBUS when it is read: the file's length is checked before LMDB maps it
- LMDB locks `lock.mdb` with POSIX record locks, which end when *any* descriptor of the file is closed: nothing else
  in this process may open that file
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias, TypeVar

import lmdb

from journal import layout
from journal.create import reserve
from journal.errors import (
    JournalDamaged,
    JournalDiskFull,
    JournalError,
    JournalInUse,
    JournalMissing,
    JournalReadOnly,
    JournalVersionError,
)
from journal.gate import Gate

T = TypeVar("T")
Txn: TypeAlias = "lmdb.Transaction[bytes]"

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_WRITING = (errno.EROFS, errno.EACCES, errno.EPERM)


class Tables(NamedTuple):
    """Handles of the named databases. Those that format 1 lacks are None in a journal of format 1 opened for reading."""

    meta: "lmdb._Database"
    records: "lmdb._Database"
    streams: "lmdb._Database"
    projections: "lmdb._Database"
    snapshots: "lmdb._Database | None" = None
    times: "lmdb._Database | None" = None
    gaps: "lmdb._Database | None" = None

    def with_newer(self, newer: "Iterable[lmdb._Database]") -> "Tables":
        """These, with the tables of `layout.TABLES_V2`."""
        return self._replace(**dict(zip(self._fields[len(layout.TABLES_V1) :], newer, strict=True)))


class Env:
    """One open environment. `tables` is set by `open_tables`, without which nothing can be read."""

    tables: Tables
    format: int = 0

    def __init__(self, path: str, *, read_only: bool, sync: bool, map_bytes: int) -> None:
        self.path = path
        self.read_only = read_only
        self.sync = sync
        self._pid = os.getpid()
        self._gate = Gate()
        self._resizes = 0  # of the map, by this process
        self._reaches = 0  # the file is known to be as long
        with map_errors(path):
            if not layout.has_data(path):
                raise missing(path)
            check_whole(path)
            locked = not read_only or layout.lock_usable(path)
            if not read_only:
                _reserve_readers(f"{path}/{layout.LMDB_LOCK_FILE}")
            self._env = lmdb.open(
                path,
                map_size=map_bytes,
                readonly=read_only,
                create=False,
                lock=locked,
                sync=sync,
                mode=0o600,
                max_dbs=layout.TABLES_MAX,
                max_readers=layout.READERS_MAX,
                lib_version=layout.ENGINE,
            )
            try:
                for fd in _descriptors(f"{path}/{layout.DATA_FILE}"):
                    os.set_inheritable(fd, False)
                if locked:
                    self._env.reader_check()
                self._page_bytes = self._env.stat()["psize"]
            except BaseException:
                self._env.close()
                raise

    def close(self) -> None:
        """Unmap. Closing twice is allowed."""
        self._env.close()

    def open_tables(self) -> None:
        """Find the tables and check the format. Raises JournalVersionError, JournalDamaged.

        A writer calls this under the writer lock: lmdb begins a write transaction to open a table.
        """
        with map_errors(self.path):
            try:
                self.tables = Tables(*(self._env.open_db(name, create=False) for name in layout.TABLES_V1))
            except lmdb.NotFoundError as error:
                raise wrong_format(self.path, None) from error
            with self.read() as txn:
                self.check_format(txn)
            if self.format == layout.FORMAT_NUMBER:
                try:
                    newer = (self._env.open_db(name, create=False) for name in layout.TABLES_V2)
                    self.tables = self.tables.with_newer(newer)
                except lmdb.NotFoundError as error:
                    raise JournalDamaged(f"journal `{self.path}` lacks a table of its format") from error

    def upgrade(self, fill: Callable[[Txn, Tables], None]) -> None:
        """Bring a journal of format 1 to this one, in one transaction. Only under the writer lock.

        `fill` writes into the new tables what they must hold.
        """

        def work(txn: Txn) -> Tables:
            tables = self.tables.with_newer(self._env.open_db(name, txn=txn) for name in layout.TABLES_V2)
            fill(txn, tables)
            txn.put(layout.FORMAT_KEY, layout.FORMAT, db=tables.meta)
            return tables

        self.tables = self.write(work)
        self.format = layout.FORMAT_NUMBER

    def check_format(self, txn: Txn) -> None:
        """Note the journal's format. Raises unless it is one that this program knows."""
        found = txn.get(layout.FORMAT_KEY, db=self.tables.meta)
        number = layout.FORMATS_READ.get(found or b"")
        if number is None:
            raise wrong_format(self.path, found)
        self.format = number

    def read(self) -> "Reading":
        """A read transaction. Keep it short, with no code of others in it: it pins pages and holds up growth."""
        return Reading(self)

    def write(self, work: Callable[[Txn], T]) -> T:
        """Run `work` in a write transaction on this thread and commit it durably; return what it returned.

        Only under the writer lock. `work` is run again after the map has grown, so it must do nothing but read and
        write in its transaction. Any exception leaves the journal as it was.
        """
        with map_errors(self.path):
            while True:
                seen = self._resizes
                txn = self.enter(write=True)
                try:
                    with txn:  # commits
                        result = work(txn)
                    self._extend()
                    return result
                except lmdb.MapFullError:
                    if 2 * self._map_bytes() > layout.MAP_BYTES_MAX:
                        raise
                finally:
                    self.leave()
                self._resize(seen, adopt=False)

    def info(self) -> dict[str, int]:
        """LMDB's numbers: `map_size` in bytes, `last_pgno`, `psize` (bytes of a page), `num_readers` and others."""
        with self.read():
            found: dict[str, int] = {**self._env.info(), **self._env.stat()}  # type: ignore[dict-item]
            return found

    def enter(self, *, write: bool) -> Txn:
        """Begin a transaction, which nobody may resize the map under until `leave`. Raises LMDB's errors."""
        self._check_process()
        while True:
            seen = self._resizes
            self._gate.enter()
            try:
                txn = self._begin(write=write)
            except BaseException:
                self._gate.leave()
                raise
            if txn is not None:
                return txn
            self._gate.leave()
            self._resize(seen, adopt=True)

    def leave(self) -> None:
        """The transaction that was begun by `enter` is over."""
        self._gate.leave()

    def _begin(self, *, write: bool) -> "Txn | None":
        """A transaction, or None when another process has made the map larger than ours."""
        try:
            return self._env.begin(write=write)
        except lmdb.MapResizedError:
            return None
        except lmdb.ReadersFullError:
            self._env.reader_check()
            return self._env.begin(write=write)

    def _extend(self) -> None:
        """Make the file as long as it says it is, which costs no space.

        LMDB leaves out trailing pages that a transaction took and gave back. Such a file is sound, but looks truncated
        until its list of free pages has been read, which everybody who opens it would have to do.
        """
        data = f"{self.path}/{layout.DATA_FILE}"
        promised = (self._env.info()["last_pgno"] + 1) * self._page_bytes
        if promised <= self._reaches:
            return
        try:
            if os.stat(data).st_size < promised:
                os.truncate(data, promised)
            self._reaches = promised
        except OSError:
            pass  # the append is durable already; whoever opens the file will find out what is the matter

    def _map_bytes(self) -> int:
        return self._env.info()["map_size"]

    def _resize(self, seen: int, *, adopt: bool) -> None:
        """Adopt the size another process has set, or double ours; nothing when another thread was first."""
        with self._gate.exclusive():
            if self._resizes == seen:
                self._env.set_mapsize(0 if adopt else 2 * self._map_bytes())
                self._resizes += 1

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise JournalInUse(f"journal `{self.path}` was opened before a fork", hint="open it after the fork")


class Reading:
    """A read transaction as a context. A class, not a generator: a step of a sandbox and a look at it make dozens."""

    __slots__ = ("_env", "_txn")

    def __init__(self, env: Env) -> None:
        self._env = env

    def __enter__(self) -> Txn:
        try:
            self._txn = self._env.enter(write=False)
        except (lmdb.Error, OSError) as error:
            raise translated(self._env.path, error) from error
        return self._txn

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self._txn.abort()
        finally:
            self._env.leave()
        if isinstance(error, (lmdb.Error, OSError)):
            raise translated(self._env.path, error) from error


def check_whole(path: str) -> None:
    """Raise JournalDamaged unless the data file is as long as it says. Raises OSError when it cannot be read."""
    flaw = layout.flaw(path)
    if flaw:
        from journal.structure import lost_nothing

        if not lost_nothing(path):
            raise JournalDamaged(
                f"journal `{path}` is damaged: {flaw}", hint="restore a copy, or salvage what can be read"
            )


def _descriptors(path: str) -> list[int]:
    """This process's descriptors of a file. (lmdb does not tell their numbers.)"""
    wanted = os.stat(path)
    descriptors = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found = os.fstat(int(name))
        except OSError:
            continue  # closed meanwhile; the listing's own descriptor always is
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            descriptors.append(int(name))
    return descriptors


def _reserve_readers(path: str) -> None:
    """Give LMDB's lock file its space, unless it has it, or is open here already and so must not be closed."""
    try:
        if os.stat(path).st_blocks * 512 >= layout.LMDB_LOCK_FILE_BYTES or _descriptors(path):
            return
    except FileNotFoundError:
        pass
    reserve(path, layout.LMDB_LOCK_FILE_BYTES)


@contextmanager
def map_errors(path: str) -> Iterator[None]:
    """Turn the errors of LMDB and of the file system into ours."""
    try:
        yield
    except JournalError:
        raise
    except (lmdb.Error, OSError) as error:
        raise translated(path, error) from error


def translated(path: str, error: Exception) -> JournalError:
    """Which of our errors an error of lmdb or of the operating system means."""
    code = getattr(error, "errno", None) or getattr(error, "code", 0)
    if isinstance(error, lmdb.MapFullError):
        return JournalDiskFull(f"journal `{path}` has reached its largest size, `{layout.MAP_BYTES_MAX}` bytes")
    if code in _NO_SPACE or (code == errno.EIO and _looks_full(path)):
        return JournalDiskFull(
            f"no space for journal `{path}`: {error}", hint="free space and retry; what was written before is intact"
        )
    if code == errno.EACCES and not _may_read(path):
        return JournalError(
            f"journal `{path}` may not be read: {error}", hint="be the user whose journal it is, or root"
        )
    if isinstance(error, lmdb.ReadonlyError) or code in _NO_WRITING:
        return JournalReadOnly(f"journal `{path}` cannot be written: {error}", hint="open it with read_only=True")
    if code == errno.ENOENT:
        return missing(path)
    if isinstance(error, lmdb.VersionMismatchError):
        return JournalVersionError(f"journal `{path}` is of another lmdb data format: {error}")
    if isinstance(error, lmdb.PanicError):
        return JournalError(f"journal `{path}` failed at a commit: {error}", hint="close it and open it again")
    if isinstance(error, (lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError)):
        return JournalDamaged(
            f"journal `{path}` is damaged or no journal: {error}", hint="restore a copy, or salvage what can be read"
        )
    if "already open in this process" in str(error):
        return JournalInUse(f"journal `{path}` is open in this process already", hint="share the open one")
    return JournalError(f"journal `{path}` failed: {error}")


def _looks_full(path: str) -> bool:
    """LMDB calls a write that was cut short by a full disk an input/output error, without asking further."""
    try:
        disk = os.statvfs(path)
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < layout.DISK_FULL_BYTES


def _may_read(path: str) -> bool:
    """Whether this user could read the data file, or would, were there one."""
    try:
        os.stat(f"{path}/{layout.DATA_FILE}")
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return os.access(f"{path}/{layout.DATA_FILE}", os.R_OK)


def missing(path: str) -> JournalMissing:
    """There is nothing at `path` that a reader could open."""
    return JournalMissing(f"no journal in `{path}`", hint="opening it for writing creates it")


def wrong_format(path: str, found: bytes | None) -> JournalError:
    """Why a journal whose format reads `found` cannot be used."""
    number = (found or b"").removeprefix(layout.FORMAT_MAGIC)
    if found and found.startswith(layout.FORMAT_MAGIC) and number.isdigit() and int(number) > layout.FORMAT_NUMBER:
        return JournalVersionError(
            f"journal `{path}` has format `{int(number)}`, this program knows up to `{layout.FORMAT_NUMBER}`",
            hint="use the version of the program that wrote it, or a later one",
        )
    return JournalDamaged(f"`{path}` holds an lmdb environment that is no journal", hint="name another directory")
