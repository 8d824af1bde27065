# SPDX-License-Identifier: Apache-2.0
"""Reading by time, by type, backwards, the last ones, those to come; snapshots; a journal of the first format grows up."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from journal import InvalidAppend, Journal, NewRecord, Snapshot, Stamp, StreamInfo, StreamMissing, layout

FROZEN = Path(__file__).resolve().parents[2] / "golden" / "journal-v1"


def tick(journal, wall_ns, stream="s", type_="tick", kind="event", **options):
    """One record at a time of our choosing."""
    at = Stamp(wall_ns, 0, "boot")
    return journal.append(stream, [NewRecord(kind, type_, {})], stamp=at, expected_rev=journal.rev(stream), **options)


def seqs(records):
    return [record.seq for record in records]


@given(st.data())
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_a_time_range_is_what_a_filter_of_everything_says(tmp_path_factory, data):
    """Whatever the clock did, whatever a block of the index holds, and in both directions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "TIMES_BLOCK", data.draw(st.integers(1, 7)))
        times = data.draw(st.lists(st.integers(-50, 50), min_size=1, max_size=40))
        since = data.draw(st.none() | st.integers(-60, 60))
        until = data.draw(st.none() | st.integers(-60, 60))
        low, high = data.draw(st.integers(0, 45)), data.draw(st.none() | st.integers(0, 45))
        with Journal.open(tmp_path_factory.mktemp("j") / "journal", sync=False, map_bytes=1 << 20) as journal:
            for wall_ns in times:
                tick(journal, wall_ns)
            wanted = (
                [
                    seq
                    for seq, wall_ns in enumerate(times, start=1)
                    if low <= seq <= (high or 1 << 60)
                    and (since is None or wall_ns >= since)
                    and (until is None or wall_ns < until)
                ]
                if high != 0
                else []
            )
            assert seqs(journal.read(low, high, since_ns=since, until_ns=until)) == wanted
            assert seqs(journal.read(low, high, True, since_ns=since, until_ns=until)) == wanted[::-1]
            assert list(journal.verify()) == []


def test_a_time_range_does_not_read_what_lies_outside(journal, monkeypatch):
    monkeypatch.setattr(layout, "TIMES_BLOCK", 10)
    for wall_ns in range(100):
        tick(journal, wall_ns)
    looked_at = []
    whole = Journal._batch
    monkeypatch.setattr(Journal, "_batch", lambda self, *at: looked_at.append(at) or whole(self, *at))
    assert seqs(journal.read(since_ns=42, until_ns=44)) == [43, 44]
    assert {(low, high) for low, high, _ in looked_at} == {(41, 50)}


def test_by_kind_and_by_type(journal):
    for kind, name in [("event", "a"), ("note", "b"), ("event", "b"), ("command", "c")]:
        tick(journal, 1, type_=name, kind=kind)
    assert seqs(journal.read(types=["b"])) == [2, 3]
    assert seqs(journal.read(types=["b", "c"], reverse=True)) == [4, 3, 2]
    assert seqs(journal.read(kinds=["event"], types=["b"])) == [3]
    assert seqs(journal.read(2, 3, kinds=["event"])) == [3]


def test_the_last_ones(journal):
    assert journal.last(3) == []
    for wall_ns in range(5):
        tick(journal, wall_ns)
    assert seqs(journal.last(3)) == [3, 4, 5]
    assert seqs(journal.last(9)) == [1, 2, 3, 4, 5]
    assert journal.last(0) == []


def test_following_sees_what_is_appended_meanwhile(journal):
    tick(journal, 0)
    more = iter(["two", "three"])

    def wait():
        name = next(more, None)
        if name is not None:
            tick(journal, 0, type_=name)
        return name is not None

    assert [record.type for record in journal.follow(1, wait)] == ["tick", "two", "three"]
    assert seqs(journal.follow(None, lambda: False)) == []


def test_a_stream_backwards_and_in_part(journal, monkeypatch):
    monkeypatch.setattr(layout, "BATCH_RECORDS", 2)
    for wall_ns in range(6):
        tick(journal, wall_ns, "a")
        tick(journal, wall_ns, "a!")
    assert [record.rev for record in journal.read_stream("a", reverse=True)] == [6, 5, 4, 3, 2, 1]
    assert [record.rev for record in journal.read_stream("a", 2, 4)] == [2, 3, 4]
    assert [record.rev for record in journal.read_stream("a!", 5, 99, reverse=True)] == [6, 5]
    assert list(journal.read_stream("b", reverse=True)) == []
    assert journal.stream("a") == StreamInfo("a", 1, 11, 6)
    for name in ("b", "a\N{CENT SIGN}", ""):
        with pytest.raises(StreamMissing, match="has no stream"):
            journal.stream(name)


def test_a_snapshot_comes_with_its_records_or_not_at_all(journal):
    assert journal.snapshot("s") is None
    tick(journal, 0, snapshot=b"one")
    assert journal.snapshot("s") == Snapshot(1, b"one")
    tick(journal, 0)
    assert journal.snapshot("s") == Snapshot(1, b"one")
    with pytest.raises(InvalidAppend):
        tick(journal, 0, type_="", snapshot=b"three")
    tick(journal, 0, snapshot=b"")
    assert journal.snapshot("s") == Snapshot(3, b"")
    with pytest.raises(InvalidAppend, match="snapshot"):
        tick(journal, 0, snapshot=b"x" * (layout.PROJECTION_BYTES_MAX + 1))


def test_nobody_appends_to_the_stream_of_the_journal_itself(journal):
    with pytest.raises(InvalidAppend, match="the journal's own"):
        tick(journal, 0, layout.SYSTEM_STREAM)


def test_a_journal_of_the_first_format_becomes_one_of_this_when_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "TIMES_BLOCK", 4)
    shutil.copy(FROZEN / "data.mdb", tmp_path)
    (tmp_path / "data.mdb").chmod(0o600)
    with Journal.open(tmp_path, read_only=True) as journal:
        assert journal.stat().format == 1
        assert (journal.snapshot("web@0123456789ab"), journal.gaps()) == (None, [])
        before, head = list(journal.read()), journal.head()
        assert seqs(journal.read(since_ns=before[4].wall_ns)) == [5, 6, 7, 8, 9]
    with Journal.open(tmp_path, map_bytes=1 << 20) as journal:
        assert journal.stat().format == 2
        assert (list(journal.read()), journal.head()) == (before, head)
        tick(journal, before[-1].wall_ns, snapshot=b"x")
        assert seqs(journal.read(since_ns=before[4].wall_ns)) == [5, 6, 7, 8, 9, 10]
        assert list(journal.verify()) == []
    with Journal.open(tmp_path, read_only=True) as journal:
        assert journal.stat().format == 2
