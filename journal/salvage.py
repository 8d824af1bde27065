# SPDX-License-Identifier: Apache-2.0
"""What can still be read of a damaged journal, proven record by record. Never writes to it, never uses liblmdb.

LMDB keeps a value in one piece, so a stored record is found by its own shape, wherever in the file it lies and whatever
became of the pages that led to it: 64 hex digits, a space, and a text whose SHA-256 they are. What has that shape is
genuine; nothing else is taken. What is found so may be more than was ever in the journal at one time:

- the same record many times, since LMDB copies a page to change it: the same digest, so it is one record
- a record that was pruned and whose page nobody has used again: genuine, and so it is shown. What a tombstone that was
  found accounts for is not missing, be it there or not
- a record of a transaction that was never committed: another record may have its seq. The chain decides: whatever is
  followed by the head, or by a record that is, was committed, and what contradicts it was not. Where nothing follows,
  the longer chain before it decides, and where that is the same, nothing can: both are left out, and told.

The head is the one that the newest legible meta page leads to. Unless both are legible, there may have been a later
one: then what follows the head is kept as well, and nobody can tell whether the last record was the last.
"""

import os
import re
from collections.abc import Iterator
from hashlib import sha256
from typing import NamedTuple

import msgspec

from journal import layout, runs
from journal.errors import JournalDamaged, JournalError, JournalMissing
from journal.pages import Pages, Unreadable
from journal.prune import read_tombstone
from journal.records import DIGEST_CHARS, TEXT_AT, Head, Kind, unseal

CHUNK_BYTES = 8 << 20
BLOCK_BYTES = 4096  # what is given up when the disk cannot read it

_BEGIN = b' {"v":'
_DIGEST = re.compile(rb"[0-9a-f]{64}")
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}]', re.DOTALL)


class Found(NamedTuple):
    """A genuine record: what it says of itself, and where in the file one copy of it is."""

    seq: int
    digest: str
    prev: str
    offset: int
    size: int
    tombstone: bool  # whether it says that it is one


class Dropped(NamedTuple):
    """A genuine record that is not part of the journal, and why."""

    found: Found
    why: str


class Salvaged:
    """What was found. `values` gives the records; everything else says what they are worth.

    records: in order of seq, one for each. missing: first and last seq of each run of seqs, from 1 to the last one known
    of, of which no record was found. pruned: the same of those for which a tombstone accounts. dropped: genuine records
    that were left out. head: what the newest legible meta page says, None when there is none. head_certain: whether no
    later one can have been. head_found: whether its record is there. breaks: seqs of records that do not follow the one
    before them. copies: how often a record was found again. unreadable: first byte and length of what the disk could not
    read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.file_bytes = 0
        self.head: Head | None = None
        self.head_certain = False
        self.head_found = False
        self.records: list[Found] = []
        self.missing: list[runs.Range] = []
        self.pruned: list[runs.Range] = []
        self.breaks: list[int] = []
        self.dropped: list[Dropped] = []
        self.copies = 0
        self.unreadable: list[tuple[int, int]] = []

    @property
    def complete(self) -> bool:
        """Whether every record from the first to the head is here or was pruned, and follows the one before it."""
        return self.head_certain and self.head_found and not self.missing and not self.breaks

    def values(self) -> Iterator[tuple[int, bytes]]:
        """Each record's seq and stored value (digest, space, text), in order of seq, read from the file again.

        Raises JournalDamaged when the file has changed since.
        """
        fd = _open(self.path)
        try:
            for found in self.records:
                value = os.pread(fd, found.size, found.offset)
                if sha256(value[TEXT_AT:]).hexdigest() != found.digest:
                    raise JournalDamaged(f"record `{found.seq}` is not any more where it was found", seq=found.seq)
                yield found.seq, value
        finally:
            os.close(fd)

    def report(self) -> list[str]:
        """What was found and what was not, a line each."""
        lines = [f"{len(self.records)} records found in {self.file_bytes} bytes, and {self.copies} further copies"]
        if self.records:
            lines.append(f"from record {self.records[0].seq} to record {self.records[-1].seq}")
        if self.head is None:
            lines.append("the head cannot be read: whether the last record found was the last is not known")
        else:
            lines.append(f"the head, record {self.head.seq}, is {'there' if self.head_found else 'not there'}")
            if not self.head_certain:
                lines.append("a meta page cannot be read: there may have been a later head")
        for what, ranges in (("pruned", self.pruned), ("missing", self.missing)):
            lines += [f"{what}: {low}" if low == high else f"{what}: {low} to {high}" for low, high in ranges]
        lines += [f"record {seq} does not follow the record before it" for seq in self.breaks]
        lines += [f"left out: record {d.found.seq}, sha256:{d.found.digest}: {d.why}" for d in self.dropped]
        lines += [f"not readable: {size} bytes at {offset}" for offset, size in self.unreadable]
        return lines


def salvage(path: str | os.PathLike[str]) -> Salvaged:
    """Find the records in the journal directory `path` (or in a data file by itself), whatever state it is in.

    Nobody should be writing to it: what moves meanwhile may be missed. Raises JournalMissing when there is no file,
    JournalError when it may not be read.
    """
    directory = os.fspath(path)
    result = Salvaged(f"{directory}/{layout.DATA_FILE}" if os.path.isdir(directory) else directory)
    fd = _open(result.path)
    try:
        result.file_bytes = os.fstat(fd).st_size
        result.head, result.head_certain = _head(fd)
        _judge(result, _scan(fd, result))
        _account(result, _accounted(fd, result.records))
    finally:
        os.close(fd)
    return result


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise JournalMissing(f"no data file `{path}`", hint="name the journal's directory") from error
    except OSError as error:
        raise JournalError(f"`{path}` cannot be read: {error}") from error


# --- finding ----------------------------------------------------------------------------------------------------------


class _Link(msgspec.Struct):
    """Of a record of whatever version, what places it in the chain."""

    seq: int
    prev: str
    kind: str = ""


_LINK = msgspec.json.Decoder(_Link)
_HEAD = msgspec.json.Decoder(Head)

Candidates = dict[int, dict[str, Found]]


def _scan(fd: int, result: Salvaged) -> Candidates:
    """Every genuine record in the file, by seq and digest."""
    found: Candidates = {}
    # What begins in one chunk may end in the next, by the length of the longest record.
    at = 0
    while at < result.file_bytes:
        window = _read(fd, at, CHUNK_BYTES + layout.RECORD_BYTES_MAX, result)
        begin = window.find(_BEGIN)
        while 0 <= begin < CHUNK_BYTES + DIGEST_CHARS:
            start = begin - DIGEST_CHARS
            if 0 <= start < CHUNK_BYTES:
                record = _record(window, start, at)
                if record is not None:
                    same = found.setdefault(record.seq, {})
                    result.copies += record.digest in same
                    same.setdefault(record.digest, record)
            begin = window.find(_BEGIN, begin + 1)
        at += CHUNK_BYTES
    return found


def _read(fd: int, at: int, size: int, result: Salvaged) -> bytes:
    try:
        return os.pread(fd, size, at)
    except OSError:
        pass
    parts = []
    for block in range(at, min(at + size, result.file_bytes), BLOCK_BYTES):
        try:
            parts.append(os.pread(fd, BLOCK_BYTES, block))
        except OSError:
            parts.append(bytes(BLOCK_BYTES))
            if (block, BLOCK_BYTES) not in result.unreadable:
                result.unreadable.append((block, BLOCK_BYTES))
    return b"".join(parts)


def _record(window: bytes, start: int, base: int) -> Found | None:
    """The record that begins at `start`, if one does."""
    digest = window[start : start + DIGEST_CHARS]
    if not _DIGEST.fullmatch(digest):
        return None
    text_at = start + TEXT_AT
    text = window[text_at : _end(window, text_at)]
    if sha256(text).hexdigest().encode() != digest:
        return None
    try:
        link = _LINK.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None  # it has its digest, but it is no record
    if link.seq < 1:
        return None
    tombstone = link.kind == Kind.TOMBSTONE
    return Found(link.seq, digest.decode(), link.prev, base + start, TEXT_AT + len(text), tombstone)


def _end(window: bytes, at: int) -> int:
    """Where the JSON object that begins at `at` ends, as far as its strings and braces tell."""
    depth = 0
    for token in _TOKEN.finditer(window, at, at + layout.RECORD_BYTES_MAX):
        first = token.group()
        depth += (first == b"{") - (first == b"}")
        if depth == 0:
            return token.end()
    return at


def _head(fd: int) -> tuple[Head | None, bool]:
    """The head by the newest meta page that leads to one, and whether that is the newest there was."""
    try:
        pages = Pages(fd)
    except Unreadable:
        return None, False
    for meta in sorted(pages.metas, reverse=True):
        certain = meta.txn == pages.newest.txn
        try:
            root = pages.tables(meta)[b"meta"].root
            for node in (node for nodes in pages.leaves(root) for node in nodes):
                if node.key == layout.HEAD_KEY:
                    return _HEAD.decode(pages.value(node)), certain
            return Head(0, layout.ZERO_DIGEST), certain
        except (Unreadable, KeyError, ValueError, msgspec.MsgspecError):
            continue
    return None, False


# --- judging ----------------------------------------------------------------------------------------------------------


def _judge(result: Salvaged, candidates: Candidates) -> None:
    """Choose one record for each seq, from the last to the first; fill in what the result says of them."""
    chain = _chain_lengths(candidates)
    head = result.head if result.head_certain else None
    wanted: dict[int, str] = {}  # the digest that the record with that seq must have
    if result.head is not None:
        wanted[result.head.seq] = result.head.digest
    for seq in sorted(candidates, reverse=True):
        if head is not None and seq > head.seq:
            result.dropped += [Dropped(found, "it is after the head") for found in candidates[seq].values()]
            continue
        chosen = _choose(result, candidates[seq], wanted.get(seq), chain)
        if chosen is not None:
            result.records.append(chosen)
            wanted.setdefault(seq - 1, chosen.prev)
    result.records.reverse()
    result.dropped.sort()


def _choose(result: Salvaged, same_seq: dict[str, Found], wanted: str | None, chain: dict[str, int]) -> Found | None:
    if wanted is not None:
        for digest, found in same_seq.items():
            if digest != wanted:
                result.dropped.append(Dropped(found, f"what follows has `{wanted}` before it"))
        return same_seq.get(wanted)
    best = max(chain[digest] for digest in same_seq)
    longest = [found for digest, found in same_seq.items() if chain[digest] == best]
    if len(longest) > 1:
        result.dropped += [
            Dropped(found, "nothing tells which of several was committed") for found in same_seq.values()
        ]
        return None
    for found in same_seq.values():
        if found is not longest[0]:
            result.dropped.append(Dropped(found, f"record `{longest[0].digest}` has more records before it than this"))
    return longest[0]


def _chain_lengths(candidates: Candidates) -> dict[str, int]:
    """For each digest, how many records stand one behind the other up to it."""
    lengths: dict[str, int] = {}
    for seq in sorted(candidates):
        for digest, found in candidates[seq].items():
            before = found.prev in candidates.get(seq - 1, {})
            lengths[digest] = 1 + (lengths[found.prev] if before else 0)
    return lengths


def _accounted(fd: int, records: list[Found]) -> list[runs.Range]:
    """The seqs that the tombstones among the records account for."""
    ranges: list[runs.Range] = []
    for found in records:
        if found.tombstone:
            try:
                tombstone = read_tombstone(unseal(os.pread(fd, found.size, found.offset), found.seq))
            except (JournalError, OSError):
                continue  # of a later version, or gone since: what it accounts for is missing then
            ranges += [] if tombstone is None else tombstone.ranges()
    return runs.union(sorted(ranges))


def _account(result: Salvaged, accounted: list[runs.Range]) -> None:
    """What is missing and what does not follow, given the records."""
    seq, prev = 0, layout.ZERO_DIGEST
    head = result.head
    lacking: list[runs.Range] = []
    for found in result.records:
        if found.seq > seq + 1:
            lacking.append((seq + 1, found.seq - 1))
        elif found.prev != prev:
            result.breaks.append(found.seq)
        seq, prev = found.seq, found.digest
        result.head_found |= head is not None and (seq, prev) == (head.seq, head.digest)
    if head is not None:
        result.head_found |= head.seq == 0
        if head.seq > seq:
            lacking.append((seq + 1, head.seq))
    result.missing = runs.difference(lacking, accounted)
    result.pruned = runs.difference(lacking, result.missing)
