# SPDX-License-Identifier: Apache-2.0
"""Append: what is stored, what is refused, and that a refusal changes nothing."""

import hashlib
import json

import msgspec
import pytest

from journal import (
    Head,
    InvalidAppend,
    Journal,
    JournalError,
    Kind,
    NewRecord,
    RequirementFailed,
    VersionConflict,
    layout,
)


def test_a_record_says_all_that_was_given(journal, stamp):
    [first, second] = journal.append(
        "pod@1",
        [
            NewRecord(kind=Kind.COMMAND, type="create", body={"id": "a"}, actor={"uid": 0, "pid": 7}),
            NewRecord(kind=Kind.EVENT, type="created", body={"names": ["ä", None, 1.5]}, cause=-1),
        ],
        stamp=stamp,
        expected_rev=0,
    )
    assert (first.seq, first.rev, first.stream, first.kind, first.type) == (1, 1, "pod@1", "command", "create")
    assert (first.wall_ns, first.mono_ns, first.boot_id) == (stamp.wall_ns, stamp.mono_ns, stamp.boot_id)
    assert (first.actor, first.cause, first.prev) == ({"uid": 0, "pid": 7}, None, "0" * 64)
    assert (second.seq, second.rev, second.cause, second.prev) == (2, 2, 1, first.digest)
    assert second.data == {"names": ["ä", None, 1.5]}
    assert journal.get(1).digest == first.digest
    assert journal.head() == Head(2, second.digest)
    assert journal.get(3) is journal.get(0) is journal.get(-1) is None


def test_the_stored_text_is_plain_json_in_a_fixed_order_and_its_sha256_is_the_digest(journal, put):
    [record] = put(journal, "s", "happened")
    text = journal.get_text(1)
    assert list(json.loads(text)) == [
        *("v", "seq", "stream", "rev", "wall_ns", "mono_ns", "boot_id"),
        *("kind", "type", "actor", "cause", "body", "prev"),
    ]
    assert hashlib.sha256(text).hexdigest() == record.digest


def test_unknown_kinds_and_types_survive(journal, stamp):
    journal.append("s", [NewRecord(kind="omen", type="two.headed.calf", body={})], stamp=stamp, expected_rev=0)
    [record] = journal.read()
    assert (record.kind, record.type) == ("omen", "two.headed.calf")


def test_a_body_given_as_text_is_stored_byte_by_byte(journal, stamp):
    text = b'{ "b":1.50,\n "a" : "\\u00e9", "b":2}'
    journal.append("s", [NewRecord("event", "t", msgspec.Raw(text))], stamp=stamp, expected_rev=0)
    assert bytes(next(journal.read()).body) == text


def test_keys_added_by_a_later_version_are_ignored(journal, put):
    from journal.records import parse

    put(journal, "s")
    text = journal.get_text(1)
    assert parse(text[:-1] + b',"colour":"blue"}', 1).type == "happened"


def test_a_conflicting_writer_is_told_and_changes_nothing(journal, put, stamp):
    put(journal, "s", "one", "two")
    before = journal.head()
    with pytest.raises(VersionConflict, match="`s` is at rev `2`, expected `1`") as caught:
        journal.append(
            "s",
            [NewRecord("event", "late", {})],
            stamp=stamp,
            expected_rev=1,
            projections={b"k": b"v"},
        )
    assert (caught.value.stream, caught.value.expected_rev, caught.value.actual_rev) == ("s", 1, 2)
    assert (journal.head(), journal.projection(b"k")) == (before, None)


@pytest.mark.parametrize(
    ("requires", "key", "actual"),
    [({b"id/a": None}, b"id/a", b"s"), ({b"id/a": b"t"}, b"id/a", b"s"), ({b"id/b": b""}, b"id/b", None)],
)
def test_a_failed_requirement_changes_nothing(journal, put, requires, key, actual):
    put(journal, "s", projections={b"id/a": b"s"})
    before = journal.head()
    with pytest.raises(RequirementFailed) as caught:
        put(journal, "t", projections={b"id/a": b"t"}, requires=requires)
    assert (caught.value.key, caught.value.actual) == (key, actual)
    assert (journal.head(), journal.projection(b"id/a"), journal.rev("t")) == (before, b"s", 0)


def test_projections_are_set_required_scanned_and_deleted(journal, put):
    put(journal, "s", projections={b"c/1": b"one", b"c/2": b"", b"d/1": b"\0\xff"}, requires={b"c/1": None})
    put(journal, "s", projections={b"c/1": None, b"c/absent": None}, requires={b"c/1": b"one", b"c/2": b""})
    assert list(journal.projections(b"c/")) == [(b"c/2", b"")]
    assert list(journal.projections()) == [(b"c/2", b""), (b"d/1", b"\0\xff")]
    assert journal.projection(b"d/1") == b"\0\xff"
    assert journal.projection(b"c/1") is None


def test_a_cause_may_name_a_record_of_the_same_append_or_an_earlier_one(journal, stamp, put):
    put(journal, "s")
    new = [NewRecord("event", "t", {}, cause=cause) for cause in (1, -1, -2, 1, None)]
    assert [r.cause for r in journal.append("s", new, stamp=stamp, expected_rev=1)] == [1, 2, 2, 1, None]


BAD = {
    "no records": [],
    "cause 0": [NewRecord("event", "t", {}, cause=0)],
    "cause before the append": [NewRecord("event", "t", {}, cause=-1)],
    "cause in the future": [NewRecord("event", "t", {}), NewRecord("event", "t", {}, cause=1)],
    "body too large": [NewRecord("event", "t", {"x": "y" * layout.RECORD_BYTES_MAX})],
    "body with a lone surrogate": [NewRecord("event", "t", {"x": "\udc80"})],
    "body of objects": [NewRecord("event", "t", {"x": object()})],
    "body no object": [NewRecord("event", "t", msgspec.Raw(b"[1]"))],
    "body no JSON": [NewRecord("event", "t", msgspec.Raw(b'{"a":1},"seq":9'))],
    "body no UTF-8": [NewRecord("event", "t", msgspec.Raw(b'{"a":"\xff"}'))],
    "actor of objects": [NewRecord("event", "t", {}, actor={"x": object()})],
    "empty type": [NewRecord("event", "", {})],
    "too many records": [NewRecord("event", "t", {})] * (layout.APPEND_RECORDS_MAX + 1),
}


@pytest.mark.parametrize("records", BAD.values(), ids=BAD.keys())
def test_what_cannot_be_stored_is_refused_in_one_line(journal, stamp, records):
    with pytest.raises(InvalidAppend) as caught:
        journal.append("s", records, stamp=stamp, expected_rev=0, projections={b"k": b"v"})
    assert "\n" not in str(caught.value)
    assert (journal.head().seq, journal.projection(b"k")) == (0, None)


@pytest.mark.parametrize("stream", ["", "a\0b", "x" * 301, "\udc80"])
def test_illegal_stream_names_are_refused(journal, put, stamp, stream):
    with pytest.raises(InvalidAppend, match="stream"):
        journal.append(stream, [NewRecord("event", "t", {})], stamp=stamp, expected_rev=0)


@pytest.mark.parametrize("key", [b"", b"x" * 501])
def test_illegal_projection_keys_are_refused(journal, put, key):
    with pytest.raises(InvalidAppend, match="projection key"):
        put(journal, "s", projections={key: b""})


def test_the_longest_names_and_keys_fit(journal, put):
    put(journal, "x" * 300, projections={b"k" * 500: b"v"})
    assert [record.stream for record in journal.read_stream("x" * 300)] == ["x" * 300]
    assert journal.projection(b"k" * 500) == b"v"


def test_a_closed_journal_says_so(path):
    journal = Journal.open(path)
    journal.close()
    journal.close()
    with pytest.raises(JournalError, match="is closed"):
        journal.head()
