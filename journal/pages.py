# SPDX-License-Identifier: Apache-2.0
"""LMDB's pages as bytes: just enough of engine 0.9 to look at a file without handing it to the engine.

Layout (64 bit, this host's byte order), all of it from LMDB's mdb.c:

- page header, 16 bytes: page number (8), pad (2), flags (2), then lower (2) and upper (2), or the number of pages (4)
- a tree page has 2-byte offsets of its nodes from 16 to lower, and the nodes from upper to the end
- node, 8 bytes: size low (2), size high (2), flags (2), key size (2), then the key; in a branch the three numbers before
  the key size are the child's page number, in a leaf the data follows the key, or the page number of where it is
- table (`MDB_db`), 48 bytes: pad (4), flags (2), depth (2), branch, leaf and overflow pages, entries, root (8 each)
- meta page: header, magic (4), version (4), address (8), map size (8), the tables of free pages and of names, last
  page (8), transaction (8); the pad of the first table is the size of a page
"""

import os
import sys
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from journal import layout

HEADER_BYTES = 16
NODE_BYTES = 8
TABLE_BYTES = 48
NO_PAGE = (1 << 64) - 1
DEPTH_MAX = 32

BRANCH, LEAF, OVERFLOW = 1, 2, 4  # of a page
BIG, TABLE = 1, 2  # of a node
INTEGER_KEY = 8  # of a table


_HEADER = Struct("=HHH")  # flags, lower, upper
_NODE = Struct("=IHH")  # size, flags, size of the key


class Unreadable(Exception):
    """A page is not what the one that refers to it says."""


class Table(NamedTuple):
    """One B-tree: its flags, and the number of its root page, `NO_PAGE` when it is empty."""

    flags: int
    root: int


class Meta(NamedTuple):
    """A meta page: the state of the whole file after one transaction."""

    txn: int
    last_page: int
    page_bytes: int
    free: Table
    main: Table


class Node(NamedTuple):
    """An entry of a tree page. `data` is of a leaf, `child` of a branch; of large data it is the page it begins on."""

    offset: int
    size: int  # with header and padding
    flags: int
    key: bytes
    data: bytes
    data_bytes: int
    child: int


class TreePage(NamedTuple):
    """A page of a tree: where its nodes begin, and the nodes in the order of their keys."""

    is_leaf: bool
    upper: int
    nodes: list[Node]


class Pages:
    """The pages of one data file, by an open descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.metas = _metas(fd)
        self.page_bytes = self.metas[0].page_bytes

    @property
    def newest(self) -> Meta:
        """The meta page that LMDB takes."""
        return self.metas[0] if self.metas[0].txn >= self.metas[1].txn else self.metas[1]

    def page(self, number: int) -> bytes:
        """A whole page. Raises Unreadable when the file ends before it does."""
        return self._pages(number, 1)

    def tree_page(self, number: int) -> TreePage:
        """A page of a tree. Raises Unreadable."""
        page = self.page(number)
        flags, lower, upper = _HEADER.unpack_from(page, 10)
        if (
            flags not in (BRANCH, LEAF)
            or _int(page, 0, 8) != number
            or lower % 2
            or not HEADER_BYTES <= lower <= len(page)
        ):
            raise Unreadable(f"page `{number}` is no page of a tree")
        is_leaf = flags == LEAF
        offsets = Struct(f"={(lower - HEADER_BYTES) // 2}H").unpack_from(page, HEADER_BYTES)
        return TreePage(is_leaf, upper, [_node(page, at, is_leaf) for at in offsets])

    def value(self, node: Node) -> bytes:
        """The data of a leaf's node, wherever it is. Raises Unreadable."""
        if not node.flags & BIG:
            return node.data
        pages = (HEADER_BYTES + node.data_bytes - 1) // self.page_bytes + 1
        return self._pages(node.child, pages)[HEADER_BYTES : HEADER_BYTES + node.data_bytes]

    def leaves(self, root: int, depth: int = 0) -> Iterator[list[Node]]:
        """The nodes of each leaf below `root`, in order. Raises Unreadable."""
        if root == NO_PAGE:
            return
        if depth > DEPTH_MAX:
            raise Unreadable("a tree is too deep")
        page = self.tree_page(root)
        if page.is_leaf:
            yield page.nodes
        else:
            for node in page.nodes:
                yield from self.leaves(node.child, depth + 1)

    def last(self, root: int) -> Node | None:
        """The last node of a tree, None of an empty one. Raises Unreadable."""
        for _ in range(DEPTH_MAX):
            if root == NO_PAGE:
                return None
            page = self.tree_page(root)
            if not page.nodes:
                raise Unreadable(f"page `{root}` is empty")
            if page.is_leaf:
                return page.nodes[-1]
            root = page.nodes[-1].child
        raise Unreadable("a tree is too deep")

    def tables(self, meta: Meta) -> dict[bytes, Table]:
        """The named tables. Raises Unreadable."""
        return {
            node.key: table(node.data, 0)
            for nodes in self.leaves(meta.main.root)
            for node in nodes
            if node.flags == TABLE and len(node.data) == TABLE_BYTES
        }

    def free_pages(self, meta: Meta) -> Iterator[int]:
        """The numbers of all pages that are listed as free. Raises Unreadable."""
        for nodes in self.leaves(meta.free.root):
            for node in nodes:
                numbers = self.value(node)
                yield from (_int(numbers, at, 8) for at in range(8, len(numbers) - 7, 8))

    def _pages(self, number: int, count: int) -> bytes:
        try:
            found = os.pread(self._fd, count * self.page_bytes, number * self.page_bytes)
        except (OSError, OverflowError) as error:  # a bad block, or no such place in any file
            raise Unreadable(f"page `{number}` cannot be read: {error}") from error
        if len(found) != count * self.page_bytes:
            raise Unreadable(f"page `{number}` is beyond the end of the file")
        return found


def table(found: bytes, at: int) -> Table:
    """The table whose description is at that place."""
    return Table(_int(found, at + 4, 2), _int(found, at + 40, 8))


def _metas(fd: int) -> tuple[Meta, Meta]:
    first = _meta(_meta_bytes(fd, 0))
    if not layout.is_page_size(first.page_bytes):
        raise Unreadable(f"a page cannot have `{first.page_bytes}` bytes")
    return first, _meta(_meta_bytes(fd, first.page_bytes))


def _meta_bytes(fd: int, at: int) -> bytes:
    try:
        found = os.pread(fd, layout.META_BYTES, at)
    except OSError as error:
        raise Unreadable(f"a meta page cannot be read: {error}") from error
    if len(found) < layout.META_BYTES or _int(found, 16, 4) != layout.META_MAGIC:
        raise Unreadable("a meta page is missing")
    return found


def _meta(found: bytes) -> Meta:
    return Meta(
        txn=_int(found, 144, 8),
        last_page=_int(found, 136, 8),
        page_bytes=_int(found, 40, 4),
        free=table(found, 40),
        main=table(found, 88),
    )


def _node(page: bytes, at: int, leaf: bool) -> Node:
    if at + NODE_BYTES > len(page):
        raise Unreadable("a node is beyond the end of its page")
    low, flags, key_bytes = _NODE.unpack_from(page, at)
    data_at = at + NODE_BYTES + key_bytes
    size = (8 if flags & BIG else low) if leaf else 0
    if data_at + size > len(page):
        raise Unreadable("a node is beyond the end of its page")
    data = page[data_at : data_at + size]
    child = _int(data, 0, 8) if leaf else low | flags << 32
    return Node(at, (NODE_BYTES + key_bytes + size + 1) & ~1, flags, page[at + NODE_BYTES : data_at], data, low, child)


def _int(found: bytes, at: int, size: int) -> int:
    return int.from_bytes(found[at : at + size], sys.byteorder)
