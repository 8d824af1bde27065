# SPDX-License-Identifier: Apache-2.0
"""Is the file a sound LMDB environment? Read as bytes, never by the engine, which trusts every page it follows.

A page number, offset or size that a bad disk altered leads liblmdb out of its map, and the process ends by a signal:
a damaged file must pass here before anything walks it. Two readers look at it:

- `lmdb.verify`, which ships with lmdb: every page reachable exactly once, keys in order, counters true, and pages in
  use and free pages together the whole file
- what that leaves out, below: nodes fill their page without gap or overlap, keys lie between the keys of the branch
  above, flags are those of our tables, and a meta page is as old as the last transaction in its list of free pages

`lmdb.verify` takes a value on pages of its own that was put twice in one transaction, and shorter the second time, for
damage, since LMDB keeps the pages it does not need any more. So no transaction of ours puts a large value twice.

The last is how an older state that poses as the newest is seen: transaction N lists what it freed under N.

Nobody may write to what is looked at. `audit` arranges that without stopping writers: a read transaction keeps every
page of its state, and of all later ones, from being used again, so what a walk finds while others append is one sound
state. Only when it finds something wrong it looks again, under the writer lock: a meta page may have been read half.
"""

import os
import sys
from collections.abc import Iterator

from journal import layout
from journal.env import Env
from journal.lock import WriterLock
from journal.pages import BIG, INTEGER_KEY, NO_PAGE, TABLE, Pages, Table, Unreadable

FLAWS_MAX = 200

Bounds = tuple[bytes | int | None, bytes | int | None]


def audit(env: Env, lock_timeout_s: float = 10.0) -> list[str]:
    """What is wrong with the structure of an open journal's file, a line each; nothing when it is sound.

    Raises JournalBusy when something looks wrong and the writer lock is not free in time to look again.
    """
    with env.read():
        found = flaws(env.path)
    writer_lock = f"{env.path}/{layout.WRITER_LOCK_FILE}"
    # Where that file cannot be written, or is not there as beside a copy, nobody appends.
    if not found or not os.access(writer_lock, os.W_OK):
        return found
    lock = WriterLock(writer_lock)
    try:
        with lock.hold(lock_timeout_s):
            return flaws(env.path)
    finally:
        lock.close()


def flaws(path: str) -> list[str]:
    """What is wrong with the data file in the directory `path`, which nobody may be writing to. Raises OSError."""
    from lmdb import verify as lmdb_verify

    short = layout.flaw(path)
    if short and not lost_nothing(path):
        return [short]
    try:
        found: list[str] = lmdb_verify.verify(f"{path}/{layout.DATA_FILE}")  # type: ignore[no-untyped-call]
    except OSError:
        raise
    except lmdb_verify.VerifyError as error:
        return [str(error)]
    except Exception as error:  # it is made not to fail; if a file makes it, then not a sound one
        return [f"the file cannot be audited: {type(error).__name__}: {error}"]
    return found or _own_flaws(path)


def lost_nothing(path: str) -> bool:
    """Whether all pages that a file is too short for are free ones.

    LMDB does not write a page that was taken and given back within one transaction, so that a sound file may end
    before the last page it speaks of. To tell that from a truncated file, its list of free pages has to be read.
    """
    fd = os.open(f"{path}/{layout.DATA_FILE}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        pages = Pages(fd)
        whole = os.fstat(fd).st_size // pages.page_bytes
        wanted = pages.newest.last_page + 1 - whole
        if wanted > layout.TAIL_PAGES_MAX:
            return False
        return len({number for number in pages.free_pages(pages.newest) if number >= whole}) >= wanted
    except Unreadable:
        return False
    finally:
        os.close(fd)


def _own_flaws(path: str) -> list[str]:
    """What lmdb.verify does not look at, in a file it found sound."""
    fd = os.open(f"{path}/{layout.DATA_FILE}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        walk = _Walk(Pages(fd))
        found = []
        for flaw in walk.all():
            found.append(flaw)
            if len(found) == FLAWS_MAX:
                break
        return found
    except Unreadable as error:
        return [str(error)]
    finally:
        os.close(fd)


class _Walk:
    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    def all(self) -> Iterator[str]:
        meta = self._pages.newest
        yield from self._ages()
        yield from self._tree("the list of free pages", meta.free, INTEGER_KEY, (0, BIG))
        yield from self._tree("the list of tables", meta.main, 0, (TABLE,))
        for name, table in self._pages.tables(meta).items():
            yield from self._tree(f"table `{name.decode(errors='backslashreplace')}`", table, 0, (0, BIG))

    def _ages(self) -> Iterator[str]:
        """Both meta pages, each against its own list of free pages; the first two transactions have none."""
        for place, meta in enumerate(self._pages.metas):
            try:
                last = self._pages.last(meta.free.root)
            except Unreadable:
                if meta is not self._pages.newest:
                    continue  # what it refers to is nobody's any more
                raise
            age = 0 if last is None else _number(last.key)
            if age != meta.txn and (last is not None or meta.txn > 1):
                yield f"meta page `{place}` is of transaction `{meta.txn}`, its last free pages of `{age}`"

    def _tree(self, name: str, table: Table, flags: int, legal: tuple[int, ...]) -> Iterator[str]:
        if table.flags != flags:
            yield f"{name} has the flags `{table.flags:#x}`, not `{flags:#x}`"
            return
        if table.root != NO_PAGE:
            yield from self._page(name, table.root, (None, None), flags == INTEGER_KEY, legal)

    def _page(self, name: str, number: int, bounds: Bounds, integers: bool, legal: tuple[int, ...]) -> Iterator[str]:
        page = self._pages.tree_page(number)
        at = page.upper
        for node in sorted(page.nodes):
            if node.offset != at:
                yield f"page `{number}` of {name} has a node at `{node.offset}` where one must be at `{at}`"
                return
            at += node.size
        if at != self._pages.page_bytes:
            yield f"page `{number}` of {name} has nodes up to `{at}`"
            return
        # The first key of a branch counts for nothing: everything before the second is there.
        keys = [_number(node.key) if integers else node.key for node in page.nodes[0 if page.is_leaf else 1 :]]
        if keys and not _within(keys[0], keys[-1], bounds):
            yield f"page `{number}` of {name} has keys that are not between those above it"
        if page.is_leaf:
            for node in page.nodes:
                if node.flags not in legal:
                    yield f"page `{number}` of {name} has a node with the flags `{node.flags:#x}`"
            return
        edges = [bounds[0], *keys, bounds[1]]
        for node, low, high in zip(page.nodes, edges, edges[1:], strict=False):
            yield from self._page(name, node.child, (low, high), integers, legal)


def _within(first: bytes | int, last: bytes | int, bounds: Bounds) -> bool:
    low, high = bounds
    return (low is None or low <= first) and (high is None or last < high)  # type: ignore[operator]


def _number(key: bytes) -> int:
    return int.from_bytes(key, sys.byteorder)
