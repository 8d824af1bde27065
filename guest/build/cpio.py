# SPDX-License-Identifier: Apache-2.0
"""The initramfs archive: cpio "newc" as the kernel reads it (Documentation/driver-api/early-userspace/buffer-format.rst).

Deterministic: entries come in the order given, inode numbers count from 1, times are zero, owners are root.
"""

import stat
from collections.abc import Iterable, Iterator

from guest.build.errors import BuildError
from guest.build.tree import Entry

MAGIC = b"070701"
HEADER_SIZE = 110  # the magic and 13 fields of 8 hex digits
TRAILER = "TRAILER!!!"
SIZE_LIMIT = 0xFFFF_FFFF  # a field's 8 hex digits


def pack(entries: Iterable[Entry]) -> bytes:
    """The archive's bytes, padded to 512 as the `cpio` tool does."""
    out = bytearray()
    for inode, entry in enumerate(entries, start=1):
        _append(out, inode, entry)
    _append(out, 0, Entry(TRAILER, 0))
    out += bytes(-len(out) % 512)
    return bytes(out)


def _append(out: bytearray, inode: int, entry: Entry) -> None:
    if len(entry.data) > SIZE_LIMIT:
        raise BuildError(f"`/{entry.path}` has {len(entry.data)} bytes, legal is up to {SIZE_LIMIT}")
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    #         inode  mode        uid gid links mtime size              dev(2)  rdev          name length  checksum
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
    out += MAGIC + b"".join(b"%08X" % field for field in fields) + name
    out += bytes(-len(out) % 4)
    out += entry.data
    out += bytes(-len(out) % 4)


def unpack(archive: bytes) -> Iterator[Entry]:
    """The entries of an archive made by `pack`. Raises BuildError when it is malformed."""
    at = 0
    while True:
        head = archive[at : at + HEADER_SIZE]
        if len(head) < HEADER_SIZE or head[:6] != MAGIC:
            raise BuildError(f"no cpio header at byte {at}")
        fields = [int(head[i : i + 8], 16) for i in range(6, HEADER_SIZE, 8)]
        mode, size, major, minor, name_size = fields[1], fields[6], fields[9], fields[10], fields[11]
        name = archive[at + HEADER_SIZE : at + HEADER_SIZE + name_size - 1].decode()
        if name == TRAILER:
            return
        start = (at + HEADER_SIZE + name_size + 3) & ~3
        if start + size > len(archive):
            raise BuildError(f"`{name}` is cut short")
        yield Entry(name, mode, archive[start : start + size], (major, minor))
        at = (start + size + 3) & ~3
