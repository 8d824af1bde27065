# SPDX-License-Identifier: Apache-2.0
"""Bundles: exported, read, imported, and refused when they are not what was made."""

import gzip
import hashlib
import json
import os
import shutil
from pathlib import Path

import msgspec
import pytest

from journal import (
    Bundle,
    InvalidAppend,
    Journal,
    JournalDamaged,
    JournalError,
    JournalReadOnly,
    JournalVersionError,
    NewRecord,
    RecordSource,
    StreamMissing,
    bundle,
    layout,
)
from journal.imports import ImportExists, ImportMissing


@pytest.fixture
def filled(journal, put, stamp):
    """Two streams, interleaved, one with text as somebody else encoded it."""
    put(journal, "a", "one", "two")
    put(journal, "b")
    raw = msgspec.Raw(b'{"kept" : "as\\nit came",\n "kept": 2.50}')
    journal.append("a", [NewRecord("omen", "not.known.yet", raw)], stamp=stamp, expected_rev=2)
    put(journal, "b")
    return journal


@pytest.fixture
def exported(filled, tmp_path):
    path = str(tmp_path / "a.kfsm")
    filled.export(["a"], path, {"by": "test"})
    return path


def inside(path):
    return gzip.decompress(Path(path).read_bytes())


def repacked(path, data):
    Path(path).write_bytes(gzip.compress(data))
    return path


def test_a_bundle_reads_as_the_journal_does(filled, tmp_path):
    whole = str(tmp_path / "whole.kfsm")
    filled.export(["b", "a"], whole)
    sources: list[RecordSource] = [filled, Bundle.open(whole)]
    ours, theirs = (
        [
            source.head(),
            source.get(4),
            source.get(99),
            list(source.read()),
            list(source.read(2, 4, reverse=True)),
            list(source.read(kinds=["omen"])),
            list(source.read(until_ns=1)),
            list(source.read_stream("a", 2)),
            list(source.read_stream("a", to_rev=2, reverse=True)),
            list(source.read_stream("c")),
            source.rev("b"),
            source.rev("c"),
            list(source.streams()),
        ]
        for source in sources
    )
    assert ours == theirs
    with pytest.raises(StreamMissing):
        Bundle.open(whole).stream("c")


def test_it_is_private_whole_and_reproducible(filled, exported, tmp_path):
    assert os.stat(exported).st_mode & 0o777 == 0o600
    read = Bundle.open(exported)
    assert [each.value for each in read.stored] == [each.value for each in filled.stored(["a"])]
    assert (read.identity(), read.header.about) == (filled.identity(), {"by": "test"})
    assert [(held.stream, held.records, held.first_seq, held.last_seq) for held in read.header.streams] == [
        ("a", 3, 1, 4)
    ]
    again = str(tmp_path / "again.kfsm")
    filled.export(["a"], again, {"by": "test"})
    assert Path(again).read_bytes() == Path(exported).read_bytes()
    assert inside(exported).startswith(b"hash-chained journal bundle 1\nheader ")


def test_what_is_not_there_or_damaged_is_not_exported(filled, tmp_path):
    path = tmp_path / "x.kfsm"
    with pytest.raises(StreamMissing):
        filled.export(["a", "c"], str(path))
    with filled._env._env.begin(write=True) as txn:
        txn.put(layout.seq_key(2), b"x" * 100, db=filled._env.tables.records)
    with pytest.raises(JournalDamaged):
        filled.export(["a"], str(path))
    with pytest.raises(JournalError, match="No such file"):
        filled.export(["b"], str(tmp_path / "no" / "dir"))
    assert list(tmp_path.glob("*.kfsm*")) == []


def test_a_bundle_larger_than_can_be_read_is_not_made(filled, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "BUNDLE_BYTES_MAX", 1000)
    with pytest.raises(InvalidAppend, match="too much for a bundle"):
        filled.export(["a"], str(tmp_path / "x.kfsm"))


def test_a_bundle_cut_anywhere_or_with_any_byte_changed_is_refused(exported):
    whole = Path(exported).read_bytes()
    for size in range(0, len(whole), 17):
        Path(exported).write_bytes(whole[:size])
        with pytest.raises((JournalDamaged, JournalVersionError)):
            Bundle.open(exported)
    data = inside(repacked(exported, gzip.decompress(whole)))
    good = [each.value for each in Bundle.open(exported).stored]
    for offset in range(0, len(data), 5):
        repacked(exported, data[:offset] + bytes([data[offset] ^ 0x04]) + data[offset + 1 :])
        with pytest.raises((JournalDamaged, JournalVersionError)):
            Bundle.open(exported)
    repacked(exported, data)
    assert [each.value for each in Bundle.open(exported).stored] == good


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"bundle 1\n", b"bundle 2\n", "version `2`"),
        (b"hash-chained", b"hash-chainsaw", "is no bundle"),
        (b"header ", b"header 99999999999", "are legal"),
        (b"header ", b"heading", "is no heading"),
        (b'"records":3,"sha256"', b'"records":2,"sha256"', "does not hold the records"),
        (b'"first_seq":1', b'"first_seq":2', "digest is not"),
    ],
)
def test_each_way_of_being_wrong_is_said(exported, old, new, said):
    data = inside(exported)
    assert old in data
    with pytest.raises(JournalError, match=said):
        Bundle.open(repacked(exported, data.replace(old, new, 1)))


def test_what_is_no_bundle_at_all(tmp_path):
    for content, said in [(b"", "no heading|cut short|is no bundle"), (b"text\n" * 99, "is no bundle"),
                          (gzip.compress(b"text\n" * 99), "is no bundle")]:  # fmt: skip
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(JournalDamaged, match=said):
            Bundle.open(tmp_path / "x")
    with pytest.raises(JournalError, match="No such file"):
        Bundle.open(tmp_path / "none")
    bomb = b"hash-chained journal bundle 1\nother %d\n" % (3 << 30)
    (tmp_path / "bomb").write_bytes(gzip.compress(bomb + b"\0" * 1000))
    with pytest.raises(JournalDamaged, match="are legal"):
        Bundle.open(tmp_path / "bomb")


def test_a_part_of_a_later_version_is_passed_over(exported, tmp_path):
    read = Bundle.open(exported)
    data = inside(exported)
    head, end = data.rsplit(b"\nend ", 1)
    more = head + b"\nfile 3\nabc\n"
    trailer = json.loads(end.split(b"\n")[1])
    trailer["sha256"] = hashlib.sha256(more).hexdigest()
    text = json.dumps(trailer).encode()
    again = Bundle.open(repacked(exported, more + b"end %d\n%s\n" % (len(text), text)))
    assert again.stored == read.stored


def test_an_import_is_kept_as_it_came_and_recorded(filled, exported, tmp_path, put, stamp):
    with Journal.open(tmp_path / "other") as other:
        put(other, "mine")
        record = other.import_bundle(exported, "case-7", stamp=stamp)
        assert (record.stream, record.kind, record.type) == (layout.SYSTEM_STREAM, "note", "journal.import")
        assert record.data["journal"] == filled.identity()
        assert other.imports() == ["case-7"]
        assert list(other.imported("case-7").read_stream("a")) == list(filled.read_stream("a"))
        assert [info.stream for info in other.streams()] == ["mine"]
        assert os.stat(tmp_path / "other" / "imports").st_mode & 0o777 == 0o700
        with pytest.raises(ImportExists):
            other.import_bundle(exported, "case-7", stamp=stamp)
        for name in ("", "../x", "a/b", ".x", "x" * 101, "a\n"):
            with pytest.raises(InvalidAppend):
                other.import_bundle(exported, name, stamp=stamp)
        with pytest.raises(ImportMissing):
            other.imported("case-8")
        assert other.forget("case-7", stamp=stamp).type == "journal.forget"
        assert other.imports() == []
        with pytest.raises(ImportMissing):
            other.forget("case-7", stamp=stamp)
        assert list(other.verify()) == []


def test_an_import_that_cannot_be_recorded_is_not_kept(exported, tmp_path, put, stamp):
    path = tmp_path / "other"
    with Journal.open(path) as other:
        put(other, "mine")
        shutil.copy(exported, tmp_path / "bad")
        Path(tmp_path / "bad").write_bytes(Path(exported).read_bytes()[:-9])
        with pytest.raises(JournalDamaged):
            other.import_bundle(str(tmp_path / "bad"), "x", stamp=stamp)
        with other._env._env.begin(write=True) as txn:
            txn.put(layout.HEAD_KEY, b"{}", db=other._env.tables.meta)
        with pytest.raises(JournalDamaged):
            other.import_bundle(exported, "x", stamp=stamp)
        assert (other.imports(), list((path / "imports").iterdir())) == ([], [])
    with Journal.open(path, read_only=True) as reader, pytest.raises(JournalReadOnly):
        reader.import_bundle(exported, "x", stamp=stamp)
