# SPDX-License-Identifier: Apache-2.0
"""What each byte of an LMDB file (engine 0.9) is there for, by a page walk that shares nothing with `journal/`.

`UNUSED` are the bytes that say nothing to a reader: free pages, gaps, padding, fields that the engine does not read in
files like ours, and the state before the last one. Everything else is named by what it is part of.
"""

from __future__ import annotations

import struct
import sys

UNUSED = "unused"
META_FLAG = "meta flag"  # of its bits only 0x08 counts
PAD = "pad of a table"  # not used, but it must not be larger than a page
FREE_AGE = "age of a free list"  # when the pages of that list may be used again: not before nobody can need them


def classes(data: bytes) -> list[str]:
    """A class for each byte."""
    return _Classes(data).found


class _Classes:
    def __init__(self, data: bytes) -> None:
        self.data = data
        (self.page_bytes,) = struct.unpack_from("=I", data, 40)
        self.found = [UNUSED] * len(data)
        metas = [0, self.page_bytes]
        txns = [struct.unpack_from("=Q", data, at + 144)[0] for at in metas]
        newest = metas[txns[1] > txns[0]]
        for at in metas:
            self.mark(at, 8, "meta page number")
            self.mark(at + 10 + (sys.byteorder == "big"), 1, META_FLAG)
            self.mark(at + 16, 8, "meta magic")
            self.mark(at + 40, 4, "page size")
            self.mark(at + 144, 8, "transaction")
        self.mark(newest + 136, 8, "last page")
        self.table("free", newest + 40)
        for name, at in self.table("main", newest + 88):
            self.table(name.decode(), at)

    def mark(self, at: int, size: int, name: str) -> None:
        """These bytes are that."""
        self.found[at : at + size] = [name] * size

    def table(self, name: str, at: int) -> list[tuple[bytes, int]]:
        """Mark a table and all below it; its keys, and where their values are."""
        self.mark(at + 4, 44, f"{name} table")
        if name != "free":  # there it is the size of a page
            self.mark(at, 4, PAD)
        (root,) = struct.unpack_from("=Q", self.data, at + 40)
        return [] if root == (1 << 64) - 1 else self.page(name, root, last=True)

    def page(self, name: str, number: int, last: bool) -> list[tuple[bytes, int]]:
        """Mark a tree page and all below it."""
        base = number * self.page_bytes
        kind, lower = struct.unpack_from("=HH", self.data, base + 10)
        self.mark(base, 8, f"{name} page number")
        self.mark(base + 10, 6, f"{name} page header")
        values = []
        count = (lower - 16) // 2
        self.mark(base + 16, 2 * count, f"{name} pointers")
        for place in range(count):
            (offset,) = struct.unpack_from("=H", self.data, base + 16 + 2 * place)
            at = base + offset
            low, high, flags, key_bytes = struct.unpack_from("=HHHH", self.data, at)
            self.mark(at, 8, f"{name} node")
            is_last = last and place == count - 1
            if kind == 1:
                # what is before the second key is there, whatever the first one says
                self.mark(at + 8, key_bytes, UNUSED if place == 0 else f"{name} separator")
                values += self.page(name, low | high << 16 | flags << 32, is_last)
                continue
            self.mark(at + 8, key_bytes, FREE_AGE if name == "free" and not is_last else f"{name} key")
            value_at, size = at + 8 + key_bytes, low | high << 16
            if flags & 1:
                self.mark(value_at, 8, f"{name} overflow number")
                (first,) = struct.unpack_from("=Q", self.data, value_at)
                value_at = first * self.page_bytes + 16
                self.mark(value_at - 16, 8, f"{name} overflow page number")
                self.mark(value_at - 6, 6, f"{name} overflow header")
            if not flags & 2:
                self.mark(value_at, size, f"{name} value")
            values.append((self.data[at + 8 : at + 8 + key_bytes], value_at))
        return values
