# SPDX-License-Identifier: Apache-2.0
"""Reading: order, ranges, batches, snapshots, streams."""

import pytest
from msgspec.structs import replace

from journal import JournalDamaged, StreamInfo, layout, records


@pytest.fixture
def filled(journal, put, monkeypatch):
    """Ten records in three streams, read in batches of three."""
    for stream in ("a", "b", "a", "a!", "b", "a", "a", "b", "a!", "a"):
        put(journal, stream, projections={stream.encode(): str(journal.head().seq + 1).encode()})
    monkeypatch.setattr(layout, "BATCH_RECORDS", 3)
    return journal


def seqs(records):
    return [record.seq for record in records]


def test_forwards_and_backwards(filled):
    assert seqs(filled.read()) == list(range(1, 11))
    assert seqs(filled.read(reverse=True)) == list(range(10, 0, -1))


@pytest.mark.parametrize("low", [-1, 1, 4, 10, 11])
@pytest.mark.parametrize("high", [None, 0, 1, 6, 10, 99])
def test_ranges(filled, low, high):
    wanted = [seq for seq in range(1, 11) if low <= seq <= (10 if high is None else high)]
    assert seqs(filled.read(low, high)) == wanted
    assert seqs(filled.read(low, high, reverse=True)) == wanted[::-1]


def test_a_stream_is_read_by_rev(filled):
    assert [(r.rev, r.seq) for r in filled.read_stream("a")] == [(1, 1), (2, 3), (3, 6), (4, 7), (5, 10)]
    assert [(r.rev, r.seq) for r in filled.read_stream("a", 4)] == [(4, 7), (5, 10)]
    assert seqs(filled.read_stream("a", 6)) == seqs(filled.read_stream("nobody")) == []


def test_streams_are_listed_by_name_though_one_name_begins_another(filled):
    assert list(filled.streams()) == [
        StreamInfo("a", 1, 10, 5),
        StreamInfo("a!", 4, 9, 2),
        StreamInfo("b", 2, 8, 3),
    ]
    assert [filled.rev(stream) for stream in ("", "a", "a!", "b", "c")] == [0, 5, 2, 3, 0]


def test_an_empty_journal_has_nothing_to_read(journal):
    assert list(journal.read()) == list(journal.read(reverse=True)) == list(journal.streams()) == []
    assert list(journal.projections()) == list(journal.verify()) == []
    assert (journal.head().seq, journal.head().digest) == (0, "0" * 64)


def test_a_slow_reader_sees_one_snapshot_and_holds_no_transaction(filled, put):
    records, stream, projections = filled.read(), filled.read_stream("a"), filled.projections()
    assert (next(records).seq, next(stream).seq, next(projections)) == (1, 1, (b"a", b"10"))
    slots = filled._env._env.readers().splitlines()[1:]
    assert all(slot.endswith(" -") for slot in slots), "a transaction is open while nobody reads"
    put(filled, "a", projections={b"b": b"later"})
    assert seqs(records) == list(range(2, 11))
    assert seqs(stream) == [3, 6, 7, 10]
    assert list(projections) == [(b"a!", b"9"), (b"b", b"8")]


def test_a_batch_is_bounded_in_bytes(filled, monkeypatch):
    monkeypatch.setattr(layout, "BATCH_BYTES", 1)
    assert seqs(filled.read()) == list(range(1, 11))
    assert seqs(filled.read_stream("b")) == [2, 5, 8]


def test_stat_counts(filled):
    stat = filled.stat()
    assert (stat.records, stat.streams, stat.projections, stat.head.seq, stat.format) == (10, 3, 3, 10, 2)
    assert stat.path == filled.path
    assert 0 < stat.used_bytes <= stat.map_bytes
    assert (stat.sync, stat.read_only) == (False, False)


def test_an_older_record_is_read_as_todays_and_kept_as_it_was_stored(journal, put, monkeypatch):
    """As if records had reached version 3: each step is taken, and the digest stays that of what is stored."""
    put(journal, "s", "one", "two")
    stored = [journal.get_text(seq) for seq in (1, 2)]
    digests = [record.digest for record in journal.read()]
    monkeypatch.setattr(records, "RECORD_VERSION", 3)
    with pytest.raises(JournalDamaged, match="version `1`, which there never was"):
        journal.get(1)
    monkeypatch.setitem(records.UPCASTERS, 1, lambda old: replace(old, v=2, type=old.type.upper()))
    monkeypatch.setitem(records.UPCASTERS, 2, lambda old: replace(old, v=3, kind="fact"))
    assert [(record.v, record.kind, record.type) for record in journal.read()] == [
        (3, "fact", "ONE"),
        (3, "fact", "TWO"),
    ]
    assert [record.digest for record in journal.read()] == digests
    assert [journal.get_text(seq) for seq in (1, 2)] == stored
    assert list(journal.verify()) == []
