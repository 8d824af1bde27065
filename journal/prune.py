# SPDX-License-Identifier: Apache-2.0
"""Pruning: whole streams are removed, and a tombstone accounts for every record that is gone.

One transaction appends the tombstone, removes records, index entries, snapshots and the projections the user names, and
notes in the table `gaps` which ranges of seqs are gone and the digest of the last record of each, so that the chain can
still be followed over them. Gaps that come to touch each other become one; what was in them the tombstones tell.

A tombstone's body:

    streams    what was removed: for each stream its name, how many records, first and last seq, first and last wall time,
               and `digest`, the SHA-256 of its records' digests (raw, in the order of rev)
    seqs       every seq that it accounts for, packed (see runs.py)
    rolled     null, or what older tombstones that this one replaces accounted for: how many `tombstones`, `streams` and
               `records`, and the SHA-256 of the tombstones' digests. Their seqs, and their own, are among `seqs`.
    reason     the user's

So nothing grows for ever: streams go, and in the end their tombstones go into one.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import lmdb
import msgspec

from journal import layout, runs, step
from journal.env import Tables, Txn
from journal.errors import JournalDamaged, StreamMissing, VersionConflict
from journal.records import Kind, NewRecord, Record, Stamp, unseal
from journal.source import Gap, gap_value, read_gap

TYPE = "journal.tombstone"

# How many seqs one tombstone can list: two numbers of at most 20 digits for each range, in a record of 1 MiB.
RANGES_MAX = 20_000


class Cut(msgspec.Struct, frozen=True):
    """A stream to remove. `rev` is its last one as the caller saw it; `projections` are the keys that go with it."""

    stream: str
    rev: int
    projections: tuple[bytes, ...] = ()


class PrunedStream(msgspec.Struct, frozen=True):
    """What a tombstone says of one stream."""

    stream: str
    records: int
    first_seq: int
    last_seq: int
    first_wall_ns: int
    last_wall_ns: int
    digest: str


class Rolled(msgspec.Struct, frozen=True):
    """What a tombstone says of those it replaces."""

    tombstones: int
    streams: int
    records: int
    digest: str


class Tombstone(msgspec.Struct, frozen=True):
    """The body of a tombstone."""

    streams: list[PrunedStream]
    seqs: list[int]
    rolled: Rolled | None = None
    reason: dict[str, Any] = {}

    def ranges(self) -> list[runs.Range]:
        """The seqs that it accounts for. Raises ValueError."""
        return runs.unpacked(self.seqs)


def read_tombstone(record: Record) -> Tombstone | None:
    """The tombstone that a record is; None when it is none. Raises JournalDamaged when it is a broken one."""
    if record.stream != layout.SYSTEM_STREAM or record.kind != Kind.TOMBSTONE:
        return None
    try:
        tombstone = msgspec.json.decode(record.body, type=Tombstone)
        tombstone.ranges()
    except (msgspec.MsgspecError, ValueError) as error:
        raise JournalDamaged(f"tombstone `{record.seq}` cannot be decoded: {error}", seq=record.seq) from error
    return tombstone


class _Removed(msgspec.Struct):
    """What one transaction takes away, collected before anything is."""

    digests: dict[int, str]  # of every record, by seq
    index_keys: list[bytes]


def prune(
    txn: Txn, tables: Tables, cuts: Sequence[Cut], stamp: Stamp, reason: Mapping[str, Any], roll_before_ns: int | None
) -> list[Record]:
    """Remove the streams of `cuts`, and tombstones older than `roll_before_ns` (wall time); return the new tombstones.

    Whoever calls commits. Raises StreamMissing, VersionConflict, JournalDamaged.
    """
    removed = _Removed({}, [])
    streams = [_collect(txn, tables, cut, removed) for cut in cuts]
    rolled, ranges = _roll(txn, tables, roll_before_ns, removed) if roll_before_ns is not None else (None, [])
    ranges = runs.union(sorted([*ranges, *runs.of(sorted(removed.digests))]))
    if not ranges:
        return []
    stored = _append(txn, tables, streams, ranges, rolled, stamp, reason)
    for key in removed.index_keys:
        txn.delete(key, db=tables.streams)
    for cut in cuts:
        txn.delete(cut.stream.encode(), db=tables.snapshots)
        for key in cut.projections:
            txn.delete(key, db=tables.projections)
    for first, last in runs.of(sorted(removed.digests)):
        for seq in range(first, last + 1):
            txn.delete(layout.seq_key(seq), db=tables.records)
        _note_gap(txn, tables, Gap(first, last, removed.digests[last]))
    return stored


def _collect(txn: Txn, tables: Tables, cut: Cut, removed: _Removed) -> PrunedStream:
    """Note everything of one stream as to be removed."""
    own = sha256()
    seqs: list[int] = []
    walls: list[int] = []
    rev = 0
    for record in _entries(txn, tables, cut.stream, removed):
        own.update(bytes.fromhex(record.digest))
        seqs.append(record.seq)
        walls.append(record.wall_ns)
        rev = record.rev
    if not seqs:
        raise StreamMissing(f"there is no stream `{cut.stream}` to prune")
    if rev != cut.rev:
        raise VersionConflict(cut.stream, cut.rev, rev)
    return PrunedStream(cut.stream, len(seqs), seqs[0], seqs[-1], walls[0], walls[-1], own.hexdigest())


def _roll(txn: Txn, tables: Tables, before_ns: int, removed: _Removed) -> tuple[Rolled | None, list[runs.Range]]:
    """Note the tombstones older than that as to be removed; what they accounted for."""
    own = sha256()
    ranges: list[runs.Range] = []
    tombstones = streams = records = 0

    def is_old(record: Record) -> bool:
        return record.kind == Kind.TOMBSTONE and record.wall_ns < before_ns

    for record in _entries(txn, tables, layout.SYSTEM_STREAM, removed, is_old):
        tombstone = read_tombstone(record)
        assert tombstone is not None
        ranges += tombstone.ranges()
        own.update(bytes.fromhex(record.digest))
        before = tombstone.rolled or Rolled(0, 0, 0, "")
        tombstones += 1 + before.tombstones
        streams += len(tombstone.streams) + before.streams
        records += sum(stream.records for stream in tombstone.streams) + before.records
    rolled = Rolled(tombstones, streams, records, own.hexdigest()) if tombstones else None
    return rolled, runs.union(sorted(ranges))


def _entries(
    txn: Txn, tables: Tables, stream: str, removed: _Removed, only: Callable[[Record], bool] | None = None
) -> list[Record]:
    """A stream's records that are to go, noted in `removed`. Damage is not swept away: it raises JournalDamaged."""
    found = []
    name = stream.encode()
    with txn.cursor(tables.streams) as cursor:
        more = cursor.set_range(layout.stream_key(stream, 0))
        while more:
            key, at = cursor.item()
            owner, rev = layout.split_stream_key(key)
            if owner != name:
                break
            seq = int.from_bytes(at, "big")
            value = txn.get(at, db=tables.records)
            if value is None:
                raise JournalDamaged(f"rev `{rev}` of stream `{stream}` is missing", seq=seq)
            record = unseal(value, seq)
            if only is None or only(record):
                removed.digests[seq] = record.digest
                removed.index_keys.append(key)
                found.append(record)
            more = cursor.next()
    return found


def _append(
    txn: Txn,
    tables: Tables,
    streams: list[PrunedStream],
    ranges: list[runs.Range],
    rolled: Rolled | None,
    stamp: Stamp,
    reason: Mapping[str, Any],
) -> list[Record]:
    """Append the tombstone; several, when it would be too long for one record."""
    bodies = []
    for at in range(0, len(ranges), RANGES_MAX):
        last = at + RANGES_MAX >= len(ranges)
        part = Tombstone(
            streams if last else [], runs.packed(ranges[at : at + RANGES_MAX]), rolled if last else None, dict(reason)
        )
        bodies.append(NewRecord(Kind.TOMBSTONE, TYPE, msgspec.to_builtins(part)))
    rev = step.current_rev(txn, tables, layout.SYSTEM_STREAM)
    return step.apply(step.prepare(layout.SYSTEM_STREAM, bodies, stamp=stamp, expected_rev=rev), txn, tables)


def _note_gap(txn: Txn, tables: Tables, gap: Gap) -> None:
    """Add a gap to the table, as one with those that it touches."""
    assert tables.gaps is not None
    with txn.cursor(tables.gaps) as cursor:
        after = cursor.set_range(layout.seq_key(gap.first))
        if after:
            right = read_gap(*cursor.item())
            if right.first == gap.last + 1:
                gap = Gap(gap.first, right.last, right.digest)
                cursor.delete()
        left = _before(cursor, gap.first)
        if left is not None and left.last == gap.first - 1:
            gap = Gap(left.first, gap.last, gap.digest)
    txn.put(layout.seq_key(gap.first), gap_value(gap), db=tables.gaps)


def _before(cursor: "lmdb.Cursor[bytes]", seq: int) -> Gap | None:
    found = cursor.prev() if cursor.set_range(layout.seq_key(seq)) else cursor.last()
    return read_gap(*cursor.item()) if found else None
