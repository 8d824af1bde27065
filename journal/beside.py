# SPDX-License-Identifier: Apache-2.0
"""Is what stands beside the records right? Gaps and tombstones, the index's strays, times, snapshots, the owner."""

from collections.abc import Iterator
from itertools import islice

from journal import layout, owner, runs
from journal.env import Env, Tables, Txn
from journal.errors import JournalDamaged, JournalError
from journal.findings import Finding
from journal.prune import read_tombstone
from journal.records import parse, split
from journal.source import Gap, read_gap
from journal.step import Tip, current_rev


def next_gap(txn: Txn, tables: Tables, seq: int) -> Gap | None:
    """The gap that holds `seq`, or else the first one after it. Raises JournalDamaged."""
    if tables.gaps is None:
        return None
    with txn.cursor(tables.gaps) as cursor:
        after = cursor.set_range(layout.seq_key(seq + 1))
        following = read_gap(*cursor.item()) if after else None
        if cursor.prev() if after else cursor.last():
            before = read_gap(*cursor.item())
            if seq in before:
                return before
        return following


def accounts(txn: Txn, tables: Tables) -> Iterator[Finding]:
    """The gaps are just what the tombstones account for."""
    if tables.gaps is None:
        return
    told: list[runs.Range] = []
    with txn.cursor(tables.streams) as cursor:
        more = cursor.set_range(layout.stream_key(layout.SYSTEM_STREAM, 0))
        while more and layout.split_stream_key(cursor.key())[0] == layout.SYSTEM_STREAM.encode():
            told += _told(txn, tables, cursor.value())
            more = cursor.next()
    told = runs.union(sorted(told))
    with txn.cursor(tables.gaps) as cursor:
        try:
            gaps = runs.union(sorted((gap.first, gap.last) for gap in (read_gap(*item) for item in cursor.iternext())))
        except JournalDamaged as error:
            yield Finding("gap", 0, error.message)
            return
    for first, last in runs.difference(gaps, told):
        yield Finding("gap", first, f"records `{first}` to `{last}` were taken out, and no tombstone accounts for them")
    for first, last in runs.difference(told, gaps):
        yield Finding("gap", first, f"a tombstone accounts for records `{first}` to `{last}`, which were not taken out")


def _told(txn: Txn, tables: Tables, seq_key: bytes) -> list[runs.Range]:
    """What the record accounts for, if it is a tombstone; one that cannot be read is reported as what it is."""
    seq = int.from_bytes(seq_key, "big")
    try:
        value = txn.get(seq_key, db=tables.records)
        tombstone = None if value is None else read_tombstone(parse(split(value, seq)[1], seq))
    except JournalError:
        return []
    return [] if tombstone is None else tombstone.ranges()


def time_entries(txn: Txn, tables: Tables, tip: Tip) -> Iterator[Finding]:
    """As many entries as there are whole blocks, at least those that the head knew of."""
    if tables.times is not None:
        with txn.cursor(tables.times) as cursor:
            blocks = int.from_bytes(cursor.key(), "big") + 1 if cursor.last() else 0
        entries = txn.stat(tables.times)["entries"]
        if blocks != entries or blocks < tip.seq // layout.TIMES_BLOCK:
            yield Finding("time", 0, f"the time index has `{entries}` entries for `{blocks}` blocks")


def owner_findings(txn: Txn, tables: Tables) -> Iterator[Finding]:
    """The owner that is kept is the one that the record says."""
    try:
        kept = owner.read(txn, tables)
        value = txn.get(layout.seq_key(kept.seq), db=tables.records) if kept else None
        record = parse(split(value, kept.seq)[1], kept.seq) if kept and value else None
        told = record.data.get("owner") if record is not None and record.type == owner.TYPE else None
    except JournalError as error:
        yield Finding("head", 0, error.message)
        return
    if kept is not None and told != kept.owner:
        yield Finding("head", kept.seq, f"record `{kept.seq}` does not say that the owner is `{kept.owner}`")


def snapshots(txn: Txn, tables: Tables) -> Iterator[Finding]:
    """Every snapshot is of a stream that is there, at a rev that it has."""
    if tables.snapshots is None:
        return
    with txn.cursor(tables.snapshots) as cursor:
        for name, value in cursor.iternext():
            stream = name.decode(errors="backslashreplace")
            rev = layout.split_snapshot(value)[0]
            has = current_rev(txn, tables, stream)
            if not 0 < rev <= has:
                yield Finding(
                    "snapshot", 0, f"the snapshot of stream `{stream}` is of rev `{rev}`, the last is `{has}`"
                )


def strays(env: Env, last_seq: int) -> Iterator[Finding]:
    """Index entries that name no record, or one of another stream or rev. Runs only when the counts differ."""
    at = b""
    while True:
        findings = []
        with env.read() as txn, txn.cursor(env.tables.streams) as cursor:
            if not (cursor.set_range(at) if at else cursor.first()):
                return
            for key, value in islice(cursor.iternext(), layout.BATCH_RECORDS):
                at = key + b"\0"
                finding = _stray(txn, env.tables, key, value, last_seq)
                if finding is not None:
                    findings.append(finding)
        yield from findings


def _stray(txn: Txn, tables: Tables, key: bytes, value: bytes, last_seq: int) -> Finding | None:
    name, rev = layout.split_stream_key(key)
    seq = int.from_bytes(value, "big")
    if 0 < seq <= last_seq and txn.get(value, db=tables.records) is None:
        try:
            gap = next_gap(txn, tables, seq)
        except JournalDamaged:
            gap = None  # reported as what it is
        if gap is None or seq not in gap:
            return None  # reported as missing
    stored = txn.get(value, db=tables.records)
    try:
        record = None if stored is None else parse(split(stored, seq)[1], seq)
    except JournalError:
        return None  # reported as what it is
    if record is not None and (record.stream.encode(), record.rev) == (name, rev):
        return None
    stream = name.decode(errors="backslashreplace")
    return Finding("index", seq, f"the index has record `{seq}` at rev `{rev}` of stream `{stream}`, where it is not")
