# SPDX-License-Identifier: Apache-2.0
"""Names, keys and limits of the stored layout (see FORMAT.md). Imports only `os`: `journal.peek` needs it as well."""

import os

# Written under the key `format` of the table `meta`. The number grows when an older reader could misread the layout.
FORMAT_MAGIC = b"hash-chained journal "
FORMAT_NUMBER = 2
FORMAT = FORMAT_MAGIC + str(FORMAT_NUMBER).encode()
FORMATS_READ = {FORMAT_MAGIC + str(number).encode(): number for number in range(1, FORMAT_NUMBER + 1)}
FORMAT_KEY = b"format"
HEAD_KEY = b"head"
IDENTITY_KEY = b"identity"
OWNER_KEY = b"owner"

TABLES_V1 = (b"meta", b"records", b"streams", b"projections")
TABLES_V2 = (b"snapshots", b"times", b"gaps")
TABLES_MAX = 16  # room for tables of later formats, which an older reader ignores

# The journal's own records stand in a stream of this name: checkpoints, tombstones, imports. Nobody else may append to it.
SYSTEM_STREAM = "journal"

# So many records share one entry of the time index, which is written when the last of them is.
TIMES_BLOCK = 1024

DATA_FILE = "data.mdb"
LMDB_LOCK_FILE = "lock.mdb"
WRITER_LOCK_FILE = "writer.lock"
IMPORTS = "imports"

# LMDB's engine. The package carries two engines with files of different formats; 0 is the 0.9 series.
ENGINE = 0

# The map is address space, not disk: the file grows by what is written. It is doubled when it is full.
MAP_BYTES = 1 << 30
MAP_BYTES_MAX = 1 << 40

# With less than this left, an input/output error is taken for a full disk.
DISK_FULL_BYTES = 1 << 20

# A slot is 64 bytes of the lock file and is held only during one batch of one read, or by a process that was killed.
READERS_MAX = 1000
LMDB_LOCK_FILE_BYTES = 1 << 16

# LMDB's keys end at 511 bytes. A stream's index key is its name, one NUL and 8 bytes.
STREAM_BYTES_MAX = 300
PROJECTION_KEY_BYTES_MAX = 500

# LMDB copies a value into the pages of one transaction: large blobs belong into files, with their digest in a record.
RECORD_BYTES_MAX = 1 << 20
PROJECTION_BYTES_MAX = 16 << 20
NAME_BYTES_MAX = 200  # kind, type, boot id
APPEND_RECORDS_MAX = 1000

# One read transaction fetches at most this much, so that it is short whatever the consumer does with it.
BATCH_RECORDS = 1000
BATCH_BYTES = 4 << 20

ZERO_DIGEST = "0" * 64


def seq_key(seq: int) -> bytes:
    """The key of a record: 8 bytes, big-endian, so that byte order is number order."""
    return seq.to_bytes(8, "big")


def stream_key(stream: str, rev: int) -> bytes:
    """The index key of a stream's record. A name has no NUL, so one stream's keys are never between another's."""
    return stream.encode() + b"\0" + rev.to_bytes(8, "big")


def stream_end(stream: bytes) -> bytes:
    """A key just after every index key of the stream and before those of any other."""
    return stream + b"\1"


def split_stream_key(key: bytes) -> tuple[bytes, int]:
    """The inverse of `stream_key`: the name's bytes, and the rev."""
    return key[:-9], int.from_bytes(key[-8:], "big")


def times_block(seq: int) -> int:
    """Which block of the time index the record `seq` belongs to: 0 for the first `TIMES_BLOCK` ones."""
    return (seq - 1) // TIMES_BLOCK


def times_value(low_ns: int, high_ns: int) -> bytes:
    """The least and the greatest wall time of a block, as two signed numbers of 8 bytes, big-endian."""
    return low_ns.to_bytes(8, "big", signed=True) + high_ns.to_bytes(8, "big", signed=True)


def split_times(value: bytes) -> tuple[int, int]:
    """The inverse of `times_value`."""
    return int.from_bytes(value[:8], "big", signed=True), int.from_bytes(value[8:16], "big", signed=True)


def snapshot_value(rev: int, data: bytes) -> bytes:
    """A snapshot as stored: the rev it was taken at (8 bytes, big-endian), then the user's bytes."""
    return rev.to_bytes(8, "big") + data


def split_snapshot(value: bytes) -> tuple[int, bytes]:
    """The inverse of `snapshot_value`."""
    return int.from_bytes(value[:8], "big"), value[8:]


def lock_usable(path: str) -> bool:
    """May a reader of the journal at `path` use LMDB's lock file?

    A read-only file system or a copy without the file cannot: there it reads without, which is safe because nobody
    can be writing. Where the file is missing it is not created: a copied journal may be evidence.
    """
    return os.access(f"{path}/{LMDB_LOCK_FILE}", os.W_OK)


def has_data(path: str) -> bool:
    """Is there a data file with anything in it? (LMDB takes an empty one for a new one.)"""
    try:
        return os.stat(f"{path}/{DATA_FILE}").st_size > 0
    except (FileNotFoundError, NotADirectoryError):
        return False
