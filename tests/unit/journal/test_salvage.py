# SPDX-License-Identifier: Apache-2.0
"""Salvage takes what proves itself, tells what it left out and what is missing, and leaves the file alone."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from journal import Head, Journal, JournalMissing, NewRecord, Stamp
from journal.records import seal, unseal
from journal.salvage import salvage
from tests.support import damaged

STAMP = Stamp(wall_ns=1, mono_ns=1, boot_id="boot")


@pytest.fixture
def made(path: str) -> str:
    """A closed journal of 52 records."""
    damaged.make(path)
    return path


def _stored(path: str) -> dict[int, bytes]:
    with Journal.open(path, read_only=True) as journal:
        return {record.seq: record.digest.encode() + b" " + journal.get_text(record.seq) for record in journal.read()}


def _everywhere(path: str, old: bytes, new: bytes) -> None:
    """Alter every copy of some bytes in the file."""
    assert len(old) == len(new)
    file = Path(path, "data.mdb")
    data = file.read_bytes()
    assert old in data
    file.write_bytes(data.replace(old, new))


def test_of_a_sound_journal_everything_is_found(made: str) -> None:
    before = Path(made, "data.mdb").read_bytes()
    names = sorted(os.listdir(made))
    stored = _stored(made)
    found = salvage(made)
    assert dict(found.values()) == stored
    assert (found.complete, found.missing, found.breaks, found.dropped) == (True, [], [], [])
    assert found.head == Head(52, stored[52][:64].decode())
    assert found.copies > 0, "pages are copied before they change"
    assert found.report()[1:3] == ["from record 1 to record 52", "the head, record 52, is there"]
    assert (Path(made, "data.mdb").read_bytes(), sorted(os.listdir(made))) == (before, names)
    assert dict(salvage(f"{made}/data.mdb").values()) == stored


def test_what_is_gone_is_missing_and_the_rest_is_there(made: str) -> None:
    stored = _stored(made)
    for seq in (1, 7, 8, 23):  # the 23rd is the large one, on pages of its own
        _everywhere(made, stored[seq][50:100], b"#" * 50)
    found = salvage(made)
    assert dict(found.values()) == {seq: value for seq, value in stored.items() if seq not in (1, 7, 8, 23)}
    assert found.missing == [(1, 1), (7, 8), (23, 23)]
    assert found.head_found
    assert not found.complete
    assert {"missing: 1", "missing: 7 to 8"} <= set(found.report())


def test_without_meta_pages_the_records_speak_for_themselves(made: str) -> None:
    stored = _stored(made)
    data = Path(made, "data.mdb").read_bytes()
    Path(made, "data.mdb").write_bytes(bytes(2 * 4096) + data[2 * 4096 :])
    found = salvage(made)
    assert dict(found.values()) == stored
    assert found.head is None
    assert not found.complete
    assert "the head cannot be read: whether the last record found was the last is not known" in found.report()


def test_without_the_newest_meta_page_what_follows_the_older_head_is_kept(made: str) -> None:
    stored = _stored(made)
    data = Path(made, "data.mdb").read_bytes()
    for page in (0, 1):
        Path(made, "data.mdb").write_bytes(data[: page * 4096] + bytes(4096) + data[(page + 1) * 4096 :])
        found = salvage(made)
        assert dict(found.values()) == stored
        assert not found.complete


def test_of_what_was_never_committed_nothing_is_taken_and_all_is_told(made: str) -> None:
    """A writer that dies before the meta page leaves its records in free pages."""
    stored = _stored(made)
    last = unseal(stored[52], 52)
    import msgspec

    def of(seq: int, prev: str, **changes: object) -> bytes:
        record = msgspec.structs.replace(last, seq=seq, rev=99, prev=prev, digest="", **changes)
        return seal(record)[0]

    before = of(20, stored[19][:64].decode(), type="never")
    after = of(53, stored[52][:64].decode())
    with Path(made, "data.mdb").open("ab") as file:
        for value in (before, after):
            file.write(value.ljust(4096, b"\0"))
    found = salvage(made)
    assert dict(found.values()) == stored
    assert [(dropped.found.seq, dropped.found.digest.encode()) for dropped in found.dropped] == [
        (20, before[:64]),
        (53, after[:64]),
    ]
    assert "what follows has" in found.dropped[0].why
    assert found.dropped[1].why == "it is after the head"
    assert found.complete


def test_where_nothing_tells_two_records_apart_neither_is_taken(made: str) -> None:
    stored = _stored(made)
    twentieth = unseal(stored[20], 20)
    import msgspec

    rival = seal(msgspec.structs.replace(twentieth, type="rival", digest=""))[0]
    loner = seal(msgspec.structs.replace(twentieth, type="loner", prev="5" * 64, digest=""))[0]
    with Path(made, "data.mdb").open("ab") as file:
        file.write(loner.ljust(4096, b"\0"))
    _everywhere(made, stored[21][50:100], b"#" * 50)  # so that nothing follows
    assert dict(salvage(made).values())[20] == stored[20], "the longer chain decides"
    with Path(made, "data.mdb").open("ab") as file:
        file.write(rival.ljust(4096, b"\0"))
    found = salvage(made)
    assert found.missing == [(20, 21)]
    assert {dropped.found.digest.encode() for dropped in found.dropped} == {stored[20][:64], rival[:64], loner[:64]}


def test_a_rewritten_record_is_left_out_for_the_one_that_was_written(made: str) -> None:
    """Its digest fits it, but what follows does not follow it."""
    stored = _stored(made)
    text = stored[50][65:].replace(b'"did"', b'"dod"').replace(b'"note"', b'"nope"')
    assert text != stored[50][65:]
    _everywhere(made, stored[50], sha256(text).hexdigest().encode() + b" " + text)
    found = salvage(made)
    assert found.missing == [(50, 50)]
    assert [dropped.found.seq for dropped in found.dropped] == [50]


def test_bodies_of_any_shape_are_found_whole(path: str) -> None:
    bodies: list[dict[str, object]] = [
        {"a": 'quotes " and \\ and } and {', "b": "ü\u2028\0"},
        {"a": {"b": [{"c": "}"}] * 50}},
        {"text": '0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef {"v":1'},
        {"big": "x" * 900_000},
        {},
    ]
    with Journal.open(path, sync=False) as journal:
        for rev, body in enumerate(bodies):
            journal.append("s", [NewRecord("event", "t", body)], stamp=STAMP, expected_rev=rev)
    found = salvage(path)
    assert found.complete
    assert [unseal(value, seq).data for seq, value in found.values()] == bodies


def test_records_across_the_edges_of_what_is_read_at_once(
    made: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from journal import salvage as module

    stored = _stored(made)
    whole = salvage(made)
    for chunk in (4096, 10_007):
        monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
        found = salvage(made)
        assert dict(found.values()) == stored
        assert found.copies == whole.copies


def test_no_file_is_missing_and_a_file_of_nothing_has_no_records(tmp_path: Path) -> None:
    with pytest.raises(JournalMissing, match=re.escape(str(tmp_path))):
        salvage(tmp_path)
    (tmp_path / "data.mdb").write_bytes(b"\xff" * 10_000)
    found = salvage(tmp_path)
    assert (found.records, found.head, found.complete) == ([], None, False)


def test_what_was_pruned_may_be_found_and_is_genuine(path: str, put: Callable[..., object]) -> None:
    from journal.prune import Cut

    with Journal.open(path, sync=False) as journal:
        put(journal, "gone", "one", "two")
        put(journal, "kept", "three")
        before = {record.seq: record.digest for record in journal.read()}
        journal.prune([Cut("gone", 2)], stamp=STAMP)
    found = salvage(path)
    assert found.complete
    assert {record.seq for record in found.records} >= {3, 4}
    assert all(before.get(record.seq, record.digest) == record.digest for record in found.records)


def test_what_was_pruned_and_is_gone_is_not_missing(path: str, put: Callable[..., object]) -> None:
    from journal.prune import Cut

    with Journal.open(path, sync=False) as journal:
        put(journal, "gone", "one", "two")
        put(journal, "kept", "three")
        journal.prune([Cut("gone", 2)], stamp=STAMP)
        for _ in range(20):
            put(journal, "kept", *["four"] * 10)
    stored = _stored(path)
    data = Path(path, "data.mdb").read_bytes()
    # what is left of them in pages that nobody used again
    Path(path, "data.mdb").write_bytes(data.replace(b'"stream":"gone","rev"', b'"stream":"g##e","rev"'))
    found = salvage(path)
    assert dict(found.values()) == stored
    assert (found.complete, found.missing, found.pruned) == (True, [], [(1, 2)])
    assert "pruned: 1 to 2" in found.report()
