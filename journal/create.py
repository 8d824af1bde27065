# SPDX-License-Identifier: Apache-2.0
"""A new journal: made complete in a directory of its own and renamed into place, so that it is whole or absent.

LMDB writes the first pages of a file in place. Were it left to make the journal, a full disk or a crash in that moment
would leave a file that is neither empty nor valid, for ever.
"""

import os

import lmdb

from journal import layout

UNFINISHED = "unfinished"


def make_directory(path: str) -> None:
    """Make the directory `path`, and those above it that are missing, durably and with mode 0700."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.exists(parent):
        make_directory(parent)
    try:
        os.mkdir(path, mode=0o700)
    except FileExistsError:
        return  # another process was first, or it is no directory, which the next step finds out
    fsync_directory(parent)


def create(path: str, map_bytes: int) -> None:
    """Make an empty journal in the existing directory `path`. Only under the writer lock.

    When this returns, file and names are durable. Raises lmdb.Error or OSError, and leaves nothing then.
    """
    unfinished = f"{path}/{UNFINISHED}"
    _remove(unfinished)  # of one who was killed here
    os.mkdir(unfinished, mode=0o700)
    try:
        reserve(f"{unfinished}/{layout.LMDB_LOCK_FILE}", layout.LMDB_LOCK_FILE_BYTES)
        env = lmdb.open(
            unfinished, map_size=map_bytes, mode=0o600, max_dbs=layout.TABLES_MAX, lib_version=layout.ENGINE
        )
        try:
            with env.begin(write=True) as txn:
                tables = {name: env.open_db(name, txn=txn) for name in layout.TABLES_V1 + layout.TABLES_V2}
                txn.put(layout.FORMAT_KEY, layout.FORMAT, db=tables[b"meta"])
        finally:
            env.close()
        os.rename(f"{unfinished}/{layout.DATA_FILE}", f"{path}/{layout.DATA_FILE}")
    finally:
        _remove(unfinished)
    fsync_directory(path)
    fsync_directory(os.path.dirname(os.path.abspath(path)))


def reserve(path: str, size: int) -> None:
    """Make a file of at least `size` bytes that has all its space on disk."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
    finally:
        os.close(fd)


def _remove(unfinished: str) -> None:
    try:
        for name in os.listdir(unfinished):
            os.unlink(f"{unfinished}/{name}")
        os.rmdir(unfinished)
    except FileNotFoundError:
        pass


def fsync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
