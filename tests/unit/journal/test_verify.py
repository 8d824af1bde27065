# SPDX-License-Identifier: Apache-2.0
"""Verify names what is wrong, and where; readers refuse what was altered."""

import hashlib
import re
from pathlib import Path

import pytest

from journal import Finding, Journal, JournalDamaged, JournalVersionError, layout


@pytest.fixture
def filled(journal, put, monkeypatch):
    """Eight records in two streams, verified in batches of three."""
    for stream in "abab":
        put(journal, stream, "first", "second", projections={stream.encode(): b"x"})
    monkeypatch.setattr(layout, "BATCH_RECORDS", 3)
    assert list(journal.verify()) == []
    return journal


class Hand:
    """Alters a journal behind its back."""

    def __init__(self, journal):
        self.tables = journal._env.tables
        self._begin = lambda: journal._env._env.begin(write=True)

    def get(self, seq):
        with self._begin() as txn:
            return txn.get(layout.seq_key(seq), db=self.tables.records)

    def put(self, seq, value):
        with self._begin() as txn:
            txn.put(layout.seq_key(seq), value, db=self.tables.records)

    def drop(self, seq):
        with self._begin() as txn:
            txn.delete(layout.seq_key(seq), db=self.tables.records)

    def meta(self, value):
        with self._begin() as txn:
            txn.put(layout.HEAD_KEY, value, db=self.tables.meta)

    def index(self, stream, rev, seq):
        with self._begin() as txn:
            key = layout.stream_key(stream, rev)
            if seq is None:
                txn.delete(key, db=self.tables.streams)
            else:
                txn.put(key, layout.seq_key(seq), db=self.tables.streams)

    def rewrite(self, seq, old, new):
        """Replace text in a record and give it the digest that fits."""
        text = self.get(seq)[65:].replace(old, new)
        self.put(seq, hashlib.sha256(text).hexdigest().encode() + b" " + text)


def found(journal):
    return [(finding.kind, finding.seq) for finding in journal.verify()]


def test_a_modified_record_is_named_itself(filled):
    hand = Hand(filled)
    hand.put(4, hand.get(4).replace(b"second", b"fourth"))
    assert found(filled) == [("modified", 4)]
    with pytest.raises(JournalDamaged, match="record `4` was modified") as caught:
        list(filled.read())
    assert caught.value.seq == 4
    assert [record.seq for record in filled.read(5)] == [5, 6, 7, 8], "the others can still be read"


@pytest.mark.parametrize("together", [1, 3, 1000])
@pytest.mark.parametrize("damage", [(b"second", b"fourth"), (b'"rev":', b'"revolution":'), (b'{"v":1,', b'{"v":2,')])
def test_a_reader_gets_every_record_before_a_bad_one(filled, monkeypatch, together, damage):
    """Though many are checked together: the fault is told when it is that record's turn, and is told as its own."""
    monkeypatch.setattr(layout, "BATCH_RECORDS", together)
    hand = Hand(filled)
    if damage[1] == b"fourth":
        hand.put(6, hand.get(6).replace(*damage))
    else:
        hand.rewrite(6, *damage)
    for records, before in (
        (filled.read(), [1, 2, 3, 4, 5]),
        (filled.read(reverse=True), [8, 7]),
        (filled.read_stream("a"), [1, 2, 5]),
        (filled.read_stream("a", reverse=True), []),
    ):
        assert [next(records).seq for _ in before] == before
        with pytest.raises((JournalDamaged, JournalVersionError), match="record `6`"):
            next(records)


@pytest.mark.parametrize("together", [2, 3, 1000])
@pytest.mark.parametrize("dropped", [{1}, {4}, {8}, {3, 4, 6}, {1, 2, 7, 8}])
def test_missing_records_do_not_move_the_others(filled, monkeypatch, together, dropped):
    monkeypatch.setattr(layout, "BATCH_RECORDS", together)
    for seq in dropped:
        Hand(filled).drop(seq)
    left = [seq for seq in range(1, 9) if seq not in dropped]
    assert [record.seq for record in filled.read()] == left
    assert [record.seq for record in filled.read(reverse=True)] == left[::-1]
    for low in range(1, 9):
        for high in range(low, 9):
            wanted = [seq for seq in left if low <= seq <= high]
            assert [record.seq for record in filled.read(low, high)] == wanted
            assert [record.seq for record in filled.read(low, high, reverse=True)] == wanted[::-1]


def test_a_record_rewritten_with_its_digest_breaks_the_chain_after_it(filled):
    Hand(filled).rewrite(4, b"second", b"fourth")
    assert found(filled) == [("chain", 5)]


def test_the_last_record_rewritten_with_its_digest_is_not_the_head(filled):
    Hand(filled).rewrite(8, b"second", b"eighth")
    assert found(filled) == [("head", 8)]


@pytest.mark.parametrize("seqs", [(1,), (4,), (3, 4, 5)])
def test_missing_records_are_named_once(filled, seqs):
    for seq in seqs:
        Hand(filled).drop(seq)
    assert found(filled) == [("missing", seqs[0])]


def test_a_cut_tail_is_missing_and_not_the_head(filled, put):
    for seq in (7, 8):
        Hand(filled).drop(seq)
    assert list(filled.verify()) == [
        Finding("missing", 7, "records `7` to `8` are missing"),
        Finding("head", 6, "the last record is `6`, the head says `8`"),
    ]
    with pytest.raises(JournalDamaged, match="the head is record `8`, the last record is `6`"):
        put(filled, "a")


def test_swapped_records_are_reordered(filled):
    hand = Hand(filled)
    third, sixth = hand.get(3), hand.get(6)
    hand.put(3, sixth)
    hand.put(6, third)
    assert found(filled) == [("reordered", 3), ("reordered", 6)]
    with pytest.raises(JournalDamaged, match="record `6` is stored in the place of record `3`"):
        filled.get(3)


@pytest.mark.parametrize("value", [b"", b"garbage", b"x" * 100, b'{"seq":3}'])
def test_what_is_no_record_is_named_as_such(filled, value):
    Hand(filled).put(3, value)
    assert found(filled) == [("codec", 3)]
    with pytest.raises(JournalDamaged):
        filled.get(3)


def test_text_that_is_no_record_but_has_its_digest(filled):
    hand = Hand(filled)
    hand.rewrite(3, b'"rev":', b'"revolution":')
    assert found(filled) == [("codec", 3), ("chain", 4)]


def test_a_record_of_a_later_version_is_said_to_be_one(filled):
    hand = Hand(filled)
    hand.rewrite(3, b'{"v":1,', b'{"v":2,')
    with pytest.raises(JournalVersionError, match="record `3` has version `2`"):
        filled.get(3)
    hand.rewrite(3, b'"rev":', b'"revolution":')
    with pytest.raises(JournalVersionError, match="record `3` has version `2`"):
        filled.get(3)


def test_the_index_must_equal_the_records(filled):
    hand = Hand(filled)
    hand.index("a", 2, None)
    assert found(filled) == [("index", 2), ("index", 5)]
    hand.index("a", 2, 3)
    assert found(filled) == [("index", 2)]
    with pytest.raises(JournalDamaged, match="index of stream `a` is wrong at rev `2`"):
        list(filled.read_stream("a"))
    hand.index("a", 2, 2)
    assert found(filled) == []
    hand.index("ghost", 1, 3)
    hand.index("a", 5, 99)
    assert sorted(found(filled)) == [("index", 3), ("index", 99)]


@pytest.mark.parametrize("head", [b"", b"{}", b'{"seq":8,"digest":"%s"}' % (b"0" * 64), b'{"seq":7,"digest":"x"}'])
def test_a_wrong_head_is_found_and_stops_writers(filled, put, head):
    Hand(filled).meta(head)
    assert [kind for kind, _ in found(filled)] == ["head"]
    with pytest.raises(JournalDamaged):
        put(filled, "a")


def test_any_damaged_byte_of_a_record_is_found(path, put):
    """Flip each byte of a stored record, in the file, as a bad disk would."""
    with Journal.open(path) as journal:
        put(journal, "s", "first", "second", "third")
    data = Path(path, "data.mdb")
    whole = data.read_bytes()
    with Journal.open(path, read_only=True) as journal:
        text = journal.get_text(2)
    # An LMDB file may hold the same page twice; the one that counts is the one whose damage is seen.
    start = [match.start() for match in re.finditer(re.escape(text), whole)][-1] - 65
    for offset in range(start, start + 65 + len(text), 7):
        data.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x20]) + whole[offset + 1 :])
        with Journal.open(path, read_only=True) as journal:
            assert {finding.seq for finding in journal.verify()} == {2}, f"offset {offset - start}"
