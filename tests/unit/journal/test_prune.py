# SPDX-License-Identifier: Apache-2.0
"""Pruning whole streams: what goes, what accounts for it, what can still be proven."""

import hashlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from journal import (
    ChainBroken,
    Cut,
    Finding,
    Head,
    Journal,
    JournalDamaged,
    JournalPruned,
    NewRecord,
    Stamp,
    StreamMissing,
    VersionConflict,
    layout,
    runs,
)
from journal.prune import RANGES_MAX, read_tombstone

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True, database=None)
ranges = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 5)).map(lambda t: (t[0], t[0] + t[1])))


def seqs_of(found):
    return {seq for first, last in found for seq in range(first, last + 1)}


@given(ranges, ranges)
@SETTINGS
def test_sets_of_seqs(one, other):
    mine, without = runs.union(sorted(one)), runs.union(sorted(other))
    assert seqs_of(mine) == seqs_of(one)
    assert all(before[1] + 1 < after[0] for before, after in pairwise(mine))
    assert seqs_of(runs.difference(mine, without)) == seqs_of(mine) - seqs_of(without)
    assert runs.of(sorted(seqs_of(one))) == mine
    assert runs.count(mine) == len(seqs_of(one))
    assert runs.unpacked(runs.packed(mine)) == mine


@pytest.mark.parametrize("numbers", [[1], [0, 0], [0, 1, 0, 1], [-1, 2], [0, 1, 2, -3]])
def test_what_is_no_set_of_seqs(numbers):
    with pytest.raises(ValueError):
        runs.unpacked(numbers)


def cut(journal, stream, *projections):
    return Cut(stream, journal.rev(stream), projections)


def test_a_pruned_stream_is_gone_and_accounted_for(journal, put, stamp):
    for stream in ("a", "b", "a", "a", "b"):
        put(journal, stream, projections={stream.encode(): b"x", b"n/" + stream.encode(): b"y"}, snapshot=b"s")
    digests = [record.digest for record in journal.read_stream("a")]
    [tombstone] = journal.prune([cut(journal, "a", b"a", b"n/a")], stamp=stamp, reason={"policy": "30d"})
    assert (tombstone.seq, tombstone.stream, tombstone.kind) == (6, layout.SYSTEM_STREAM, "tombstone")
    body = read_tombstone(tombstone)
    assert body.ranges() == [(1, 1), (3, 4)]
    assert body.reason == {"policy": "30d"}
    [told] = body.streams
    assert (told.stream, told.records, told.first_seq, told.last_seq) == ("a", 3, 1, 4)
    assert told.digest == hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()
    assert [record.seq for record in journal.read()] == [2, 5, 6]
    assert [info.stream for info in journal.streams()] == ["b"]
    assert (list(journal.read_stream("a")), journal.rev("a"), journal.snapshot("a")) == ([], 0, None)
    assert [key for key, _ in journal.projections()] == [b"b", b"n/b"]
    assert [(gap.first, gap.last, gap.digest) for gap in journal.gaps()] == [(1, 1, digests[0]), (3, 4, digests[2])]
    assert list(journal.verify()) == []
    for seq in (1, 3, 4):
        with pytest.raises(JournalPruned, match=f"record `{seq}` was pruned"):
            journal.get(seq)
    assert journal.get(9) is None
    assert journal.stat().pruned == 3
    put(journal, "a")  # the name is free again
    assert journal.rev("a") == 1
    assert list(journal.verify()) == []


def test_what_was_not_as_expected_prunes_nothing(journal, put, stamp):
    put(journal, "a", "one", "two")
    put(journal, "b")
    before = journal.head()
    with pytest.raises(VersionConflict):
        journal.prune([cut(journal, "b"), Cut("a", 1)], stamp=stamp)
    with pytest.raises(StreamMissing):
        journal.prune([cut(journal, "b"), Cut("c", 1)], stamp=stamp)
    assert journal.prune([], stamp=stamp) == []
    assert (journal.head(), [record.seq for record in journal.read()]) == (before, [1, 2, 3])


def test_damage_is_not_swept_away(journal, put, stamp):
    put(journal, "a", "one", "two")
    with journal._env._env.begin(write=True) as txn:
        txn.put(layout.seq_key(1), b"x" * 100, db=journal._env.tables.records)
    with pytest.raises(JournalDamaged):
        journal.prune([cut(journal, "a")], stamp=stamp)
    assert [(finding.kind, finding.seq) for finding in journal.verify()] == [("codec", 1)]


@given(st.data())
@SETTINGS
def test_any_order_of_growing_and_pruning_verifies_and_gaps_grow_together(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("j") / "journal"
    names = "abcd"
    with pytest.MonkeyPatch.context() as patch, Journal.open(path, sync=False, map_bytes=1 << 20) as journal:
        patch.setattr(layout, "TIMES_BLOCK", data.draw(st.integers(1, 5)))
        patch.setattr(layout, "BATCH_RECORDS", data.draw(st.integers(1, 4)))
        gone = set()
        heads = []
        moves = data.draw(st.lists(st.sampled_from(names + names.upper()), min_size=1, max_size=30))
        for wall_ns, name in enumerate(moves, start=1):
            now = Stamp(wall_ns, 0, "boot")
            if name.islower():
                journal.append(name, [NewRecord("event", "t", {})] * 2, stamp=now, expected_rev=journal.rev(name))
                heads.append(journal.head())
            elif journal.rev(name.lower()):
                gone |= {record.seq for record in journal.read_stream(name.lower())}
                roll = data.draw(st.none() | st.just(wall_ns))
                if roll:
                    gone |= {r.seq for r in journal.read_stream(layout.SYSTEM_STREAM) if r.kind == "tombstone"}
                journal.prune([cut(journal, name.lower())], stamp=now, roll_before_ns=roll)
        assert list(journal.verify()) == []
        assert seqs_of([(gap.first, gap.last) for gap in journal.gaps()]) == gone
        assert len(journal.gaps()) == len(runs.of(sorted(gone)))
        assert {r.seq for r in journal.read()} == set(range(1, journal.head().seq + 1)) - gone
        for head in heads:
            after = journal.gap_of(head.seq)
            if after is None or after.last == head.seq:
                journal.prove(head)
            else:
                with pytest.raises(JournalPruned):
                    journal.prove(head)


def test_old_tombstones_become_one(journal, put, stamp):
    for stream in "abc":
        put(journal, stream, "one", "two")
    for stream in "ab":
        journal.prune([cut(journal, stream)], stamp=stamp)
    later = Stamp(stamp.wall_ns + 1, stamp.mono_ns, stamp.boot_id)
    [tombstone] = journal.prune([cut(journal, "c")], stamp=later, roll_before_ns=later.wall_ns)
    body = read_tombstone(tombstone)
    assert (body.rolled.tombstones, body.rolled.streams, body.rolled.records) == (2, 2, 4)
    assert body.ranges() == [(1, 8)]
    assert [record.seq for record in journal.read()] == [9]
    assert [record.rev for record in journal.read_stream(layout.SYSTEM_STREAM)] == [3]
    assert [record.rev for record in journal.read_stream(layout.SYSTEM_STREAM, reverse=True)] == [3]
    assert list(journal.verify()) == []
    put(journal, "d")
    [again] = journal.prune([], stamp=Stamp(later.wall_ns + 2, 0, "b"), roll_before_ns=later.wall_ns + 1)
    assert read_tombstone(again).rolled.tombstones == 3
    assert list(journal.verify()) == []


def test_a_stream_of_more_ranges_than_a_record_holds_has_several_tombstones(journal, put, stamp, monkeypatch):
    monkeypatch.setattr("journal.prune.RANGES_MAX", 2)
    for _ in range(5):
        put(journal, "a")
        put(journal, "b")
    stored = journal.prune([cut(journal, "a")], stamp=stamp)
    assert [len(read_tombstone(record).ranges()) for record in stored] == [2, 2, 1]
    assert [len(read_tombstone(record).streams) for record in stored] == [0, 0, 1]
    assert list(journal.verify()) == []
    assert RANGES_MAX * 2 * 21 < layout.RECORD_BYTES_MAX


class Hand:
    """Takes and puts behind the journal's back."""

    def __init__(self, journal):
        self.tables = journal._env.tables
        self.begin = lambda: journal._env._env.begin(write=True)

    def gap(self, first, value):
        with self.begin() as txn:
            if value is None:
                txn.delete(layout.seq_key(first), db=self.tables.gaps)
            else:
                txn.put(layout.seq_key(first), value, db=self.tables.gaps)

    def take(self, stream, rev, seq):
        with self.begin() as txn:
            txn.delete(layout.seq_key(seq), db=self.tables.records)
            txn.delete(layout.stream_key(stream, rev), db=self.tables.streams)


@pytest.fixture
def pruned(journal, put, stamp):
    """Records 1, 2 (b), 3, 4 (a, gone), 5 (b), 6 (tombstone)."""
    put(journal, "b", "one", "two")
    put(journal, "a", "one", "two")
    put(journal, "b", "three")
    journal.prune([cut(journal, "a")], stamp=stamp)
    assert list(journal.verify()) == []
    return journal


def kinds(journal):
    return [(finding.kind, finding.seq) for finding in journal.verify()]


def test_a_gap_that_no_tombstone_accounts_for_is_found(pruned, put):
    digest = pruned.get(5).digest
    Hand(pruned).take("b", 3, 5)
    assert ("missing", 5) in kinds(pruned)
    Hand(pruned).gap(5, b'{"last":5,"digest":"%s"}' % digest.encode())
    assert list(pruned.verify()) == [
        Finding("gap", 5, "records `5` to `5` were taken out, and no tombstone accounts for them")
    ]


def test_a_tombstone_without_its_gap_is_found(pruned):
    Hand(pruned).gap(3, None)
    assert kinds(pruned) == [("missing", 3), ("gap", 3)]


def test_a_gap_with_another_digest_breaks_the_chain(pruned):
    Hand(pruned).gap(3, b'{"last":4,"digest":"%s"}' % (b"0" * 64))
    assert kinds(pruned) == [("chain", 5)]


def test_a_gap_over_a_record_that_is_there_is_found(pruned):
    Hand(pruned).gap(3, b'{"last":5,"digest":"%s"}' % (b"0" * 64))
    assert kinds(pruned) == [("gap", 5), ("gap", 5)]
    Hand(pruned).gap(3, b"nonsense")
    assert kinds(pruned) == [("gap", 3), ("missing", 3), ("gap", 0)]


def test_a_head_is_proven_past_what_was_pruned_or_it_is_said_why_not(pruned):
    whole = [Head(record.seq, record.digest) for record in pruned.read()]
    for head in [Head(0, layout.ZERO_DIGEST), *whole, Head(4, pruned.gaps()[0].digest)]:
        pruned.prove(head)
    with pytest.raises(JournalPruned, match="record `3` was pruned"):
        pruned.prove(Head(3, "0" * 64))
    for head in (Head(2, "0" * 64), Head(4, "0" * 64), Head(7, "0" * 64)):
        with pytest.raises(ChainBroken):
            pruned.prove(head)
