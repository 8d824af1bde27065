# SPDX-License-Identifier: Apache-2.0
"""Names, keys and limits of the stored layout (see FORMAT.md). Imports next to nothing: `journal.peek` needs it too."""

import os
import sys

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

# A meta page of LMDB, up to its last field.
META_BYTES = 152
META_MAGIC = 0xBEEFC0DE
PAGE_BYTES_MIN, PAGE_BYTES_MAX = 256, 0x8000

# A sound file may end before the last page it speaks of (see structure.py), by what one transaction took in vain.
TAIL_PAGES_MAX = 1 << 20


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


def is_page_size(size: int) -> bool:
    """Can a page have so many bytes?"""
    return PAGE_BYTES_MIN <= size <= PAGE_BYTES_MAX and size & (size - 1) == 0


def flaw(path: str) -> str:
    """Why LMDB would be led astray by the data file before it has read a page of it; empty when it would not.

    LMDB maps the file and believes its meta pages: to read a page that they promise and the file does not have ends
    the process by SIGBUS. Costs four system calls. What LMDB itself refuses at open is left to it. Raises OSError.
    """
    fd = os.open(f"{path}/{DATA_FILE}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        first = os.pread(fd, META_BYTES, 0)
        page_bytes = _meta_int(first, 40, 4)
        if _meta_int(first, 16, 4) != META_MAGIC:
            return ""
        if not is_page_size(page_bytes):
            return f"the data file says that its pages have `{page_bytes}` bytes"
        second = os.pread(fd, META_BYTES, page_bytes)
        # The size is asked for last: a writer writes pages first and then the meta page that speaks of them, so that a
        # file that grows meanwhile is at least as long as what was read says, even if that was read half.
        size = os.fstat(fd).st_size
    finally:
        os.close(fd)
    newest = max((first, second), key=lambda meta: _meta_int(meta, 144, 8))
    promised = (_meta_int(newest, 136, 8) + 1) * page_bytes
    return f"the data file is truncated: it has `{size}` bytes of `{promised}`" if size < promised else ""


def _meta_int(meta: bytes, at: int, size: int) -> int:
    return int.from_bytes(meta[at : at + size], sys.byteorder)
