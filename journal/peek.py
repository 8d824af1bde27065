# SPDX-License-Identifier: Apache-2.0
"""Projections for verbs that must start fast: imports lmdb, `os` and a handful of constants, and nothing else.

Opening takes well under a millisecond, does not lock out a writer and writes nothing but a reader's slot.
"""

import lmdb

from journal import layout


class Peek:
    """Projections of a journal, read-only. Made by `journal.peek.open`; close it, or let the process end."""

    def __init__(self, env: lmdb.Environment, projections: "lmdb._Database") -> None:
        self._env = env
        self._projections = projections

    def __enter__(self) -> "Peek":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the journal. Closing twice is allowed."""
        self._env.close()

    def get(self, key: bytes) -> bytes | None:
        """The value of one projection, or None."""
        with _begin(self._env) as txn:
            return txn.get(key, db=self._projections)

    def scan(self, prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
        """Every (key, value) whose key starts with `prefix`, in key order, as of one moment."""
        found = []
        with _begin(self._env) as txn, txn.cursor(self._projections) as cursor:
            more = cursor.set_range(prefix) if prefix else cursor.first()
            while more and (key := cursor.key()).startswith(prefix):
                found.append((key, cursor.value()))
                more = cursor.next()
        return found


def open(path: str) -> Peek:
    """Open the journal in the directory `path`.

    Raises JournalMissing (also a FileNotFoundError) when there is none, JournalVersionError when it is of a newer
    format, JournalDamaged when the file is no journal, JournalError for any other failure.
    """
    try:
        env = _open(path) if layout.has_data(path) else None
    except (lmdb.Error, OSError) as error:
        raise _unreadable(path, error) from error
    if env is None:
        raise _missing(path)
    try:
        return _peek(path, env)
    except BaseException:
        env.close()
        raise


def _open(path: str) -> lmdb.Environment:
    if layout.flaw(path):
        _check_whole(path)
    return lmdb.open(
        path,
        map_size=layout.MAP_BYTES,
        readonly=True,
        create=False,
        lock=layout.lock_usable(path),
        max_dbs=layout.TABLES_MAX,
        max_readers=layout.READERS_MAX,
        lib_version=layout.ENGINE,
    )


def _peek(path: str, env: lmdb.Environment) -> Peek:
    try:
        meta = env.open_db(b"meta", create=False)
        projections = env.open_db(b"projections", create=False)
    except lmdb.NotFoundError as error:
        raise _wrong_format(path, None) from error
    except lmdb.Error as error:
        raise _unreadable(path, error) from error
    with _begin(env) as txn:
        found = txn.get(layout.FORMAT_KEY, db=meta)
    if found not in layout.FORMATS_READ:
        raise _wrong_format(path, found)
    return Peek(env, projections)


def _begin(env: lmdb.Environment) -> "lmdb.Transaction[bytes]":
    try:
        return env.begin()
    except lmdb.MapResizedError:  # a writer doubled the map since: adopt its size
        env.set_mapsize(0)
    except lmdb.ReadersFullError:  # slots of killed readers
        env.reader_check()
    return env.begin()


def _missing(path: str) -> Exception:
    from journal.errors import JournalMissing

    return JournalMissing(f"no journal in `{path}`", hint="opening it for writing creates it")


def _wrong_format(path: str, found: bytes | None) -> Exception:
    from journal.env import wrong_format

    return wrong_format(path, found)


def _check_whole(path: str) -> None:
    from journal.env import check_whole

    check_whole(path)


def _unreadable(path: str, error: Exception) -> Exception:
    from journal.env import translated

    return translated(path, error)
