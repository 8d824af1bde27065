# SPDX-License-Identifier: Apache-2.0
"""Projections and snapshots are compared with what the records fold to, and projections can be made anew."""

import pytest

from journal import Cut, Journal, Projector


class Counting(Projector):
    """`n/STREAM` counts the stream's records, `open/NAME` is there while the last record is `open`."""

    def __init__(self):
        self.meanwhile = lambda: None

    def project(self, stream, records):
        records = list(records)
        self.meanwhile()
        is_open = records[-1].type == "open"
        return {
            b"n/" + stream.encode(): b"%d" % len(records),
            b"open/" + stream.encode()[:1]: stream.encode() if is_open else None,
        }

    def snapshot(self, stream, records, stored):
        count = sum(1 for _ in records)
        return None if stored == b"%d" % count else f"it says `{stored.decode()}`, `{count}` are there"


@pytest.fixture
def projector():
    return Counting()


@pytest.fixture
def filled(journal, put):
    """a1 was closed before a2 took its name; b is open, with an older snapshot."""
    put(journal, "a1", "open", projections={b"n/a1": b"1", b"open/a": b"a1"})
    put(journal, "a1", "shut", projections={b"n/a1": b"2", b"open/a": None})
    put(journal, "a2", "open", projections={b"n/a2": b"1", b"open/a": b"a2"})
    put(journal, "b", "open", projections={b"n/b": b"1", b"open/b": b"b"}, snapshot=b"1")
    put(journal, "b", "open", projections={b"n/b": b"2"})
    return journal


def found(journal, projector):
    return [(finding.kind, finding.detail) for finding in journal.verify_folds(projector)]


def alter(journal, key, value, table="projections"):
    with journal._env._env.begin(write=True) as txn:
        if value is None:
            txn.delete(key, db=getattr(journal._env.tables, table))
        else:
            txn.put(key, value, db=getattr(journal._env.tables, table))


def test_all_is_well(filled, projector):
    assert found(filled, projector) == []
    assert filled.reindex(projector) == 0


def test_each_difference_is_named(filled, projector):
    before = dict(filled.projections())
    alter(filled, b"n/a1", b"7")
    alter(filled, b"open/b", None)
    alter(filled, b"stray", b"x")
    alter(filled, b"b", (1).to_bytes(8, "big") + b"5", table="snapshots")
    assert found(filled, projector) == [
        ("projection", "projection `n/a1` of stream `a1` is not what the records fold to"),
        ("snapshot", "the snapshot of stream `b` at rev `1`: it says `5`, `1` are there"),
        ("projection", "projection `open/b` of stream `b` is missing"),
        ("projection", "projection `stray` is there, but no stream folds to it"),
    ]
    assert filled.reindex(projector) == 3
    assert dict(filled.projections()) == before


def test_a_stream_that_grows_meanwhile_is_no_fault(filled, projector, put):
    more = iter("123")

    def grow():
        number = next(more, None)
        if number:
            rev = filled.rev("b") + 1
            put(filled, "b", "open", projections={b"n/b": b"%d" % rev})

    projector.meanwhile = grow
    assert found(filled, projector) == []
    more = iter("123")
    assert filled.reindex(projector) == 0
    assert filled.projection(b"n/b") == b"8"


def test_a_pruned_stream_takes_the_projections_along_that_are_named(filled, projector, stamp):
    filled.prune([Cut("a1", 2, (b"n/a1",))], stamp=stamp)
    assert found(filled, projector) == []


def test_a_snapshot_of_what_is_not_there_is_found(filled):
    alter(filled, b"b", (9).to_bytes(8, "big") + b"9", table="snapshots")
    alter(filled, b"ghost", (1).to_bytes(8, "big"), table="snapshots")
    assert [(finding.kind, finding.detail) for finding in filled.verify()] == [
        ("snapshot", "the snapshot of stream `b` is of rev `9`, the last is `2`"),
        ("snapshot", "the snapshot of stream `ghost` is of rev `1`, the last is `0`"),
    ]


def test_a_wrong_index_of_times_is_found(path, put, monkeypatch):
    monkeypatch.setattr("journal.layout.TIMES_BLOCK", 2)
    with Journal.open(path, sync=False) as journal:
        put(journal, "s", "one", "two", "three")
        for key, value in [
            ((0).to_bytes(8, "big"), b"\0" * 16),
            ((0).to_bytes(8, "big"), b""),
            ((7).to_bytes(8, "big"), b""),
        ]:
            alter(journal, key, value, table="times")
            assert {finding.kind for finding in journal.verify()} == {"time"}
