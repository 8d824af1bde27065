# SPDX-License-Identifier: Apache-2.0
"""Journals written once, by format 1 and by format 2, which must read and verify for ever.

`tests/golden/journal-vN/data.mdb` was made by `make.py` beside it with the version of this package that introduced the
format, on a machine with 4 KiB pages, and is never made again: a later format adds a directory of its own. When a test
here fails, the reader is wrong, not the file.
"""

import hashlib
import os
from pathlib import Path

import pytest

from journal import Head, Journal, JournalPruned, Snapshot, StreamInfo, keys, peek

FROZEN = Path(__file__).resolve().parents[2] / "golden" / "journal-v1"
FILE_SHA256 = "b832ef8dbbffe0ffa8211b2c7cd89327dc2a9a8347cac9458089e759388f5db0"
HEAD = Head(9, "f097b47e826ffcddeea67c4d7e0b9830fb25646860d9e8e125aa4ac8301e4894")


@pytest.fixture
def frozen():
    with Journal.open(FROZEN, read_only=True) as journal:
        yield journal
    assert sorted(os.listdir(FROZEN)) == ["data.mdb", "make.py"], "reading left something behind"


def test_the_file_is_the_one_that_was_made():
    assert hashlib.sha256((FROZEN / "data.mdb").read_bytes()).hexdigest() == FILE_SHA256


def test_it_verifies(frozen):
    assert list(frozen.verify()) == []
    assert frozen.head() == HEAD


def test_it_reads(frozen):
    assert [(r.seq, r.stream, r.rev, r.kind, r.type, r.cause) for r in frozen.read()] == [
        (1, "web@0123456789ab", 1, "command", "create", None),
        (2, "web@0123456789ab", 2, "event", "created", 1),
        (3, "web@0123456789ab", 3, "intent", "boot", 2),
        (4, "döner@ba9876543210", 1, "command", "create", None),
        (5, "web@0123456789ab", 4, "outcome", "boot", 3),
        (6, "web@0123456789ab", 5, "event", "running", 5),
        (7, "döner@ba9876543210", 2, "omen", "not.known.yet", None),
        (8, "web@0123456789ab", 6, "note", "large", None),
        (9, "web@0123456789ab", 7, "event", "ended", 6),
    ]
    first = frozen.get(1)
    assert (first.v, first.wall_ns, first.mono_ns) == (1, 1_700_000_000_000_000_000, 1_000)
    assert first.boot_id == "4f1d3f0e-6c5b-4c43-9d0e-2f3f5b0f8a11"
    assert (first.actor, first.prev) == ({"uid": 0, "comm": "engine"}, "0" * 64)
    assert frozen.get(4).data == {"name": "döner", "list": [1, -2.5, True, None, {"": "\x00\u2028"}]}
    assert bytes(frozen.get(7).body) == b'{"kept" : "as it came", "kept": 2.50}'
    assert frozen.get(8).data == {"text": "0123456789" * 900}


def test_its_streams_and_projections(frozen):
    assert list(frozen.streams()) == [
        StreamInfo("döner@ba9876543210", 4, 7, 2),
        StreamInfo("web@0123456789ab", 1, 9, 7),
    ]
    assert list(frozen.projections()) == [(b"c/d\xc3\xb6ner", b"{}"), (b"s/web", b"\x00ended\xff")]


def test_it_can_be_peeked_into():
    with peek.open(str(FROZEN)) as peeked:
        assert peeked.get(b"s/web") == b"\x00ended\xff"
        assert peeked.get(b"c/web") is None


SECOND = FROZEN.parent / "journal-v2"
SECOND_SHA256 = "249c12a834eb3c3ef52506c35aa676f82a329c1f541a8536b7530b9faaaffec1"
SECOND_HEAD = Head(1105, "43d6715a1100fdcabfc566d9980e801108728ca4c87f065a22cd648a4e0fe4c6")


def test_the_second_format_reads_and_verifies():
    """Times, gaps, tombstone, checkpoints with and without a signature, owner, identity, snapshot."""
    assert hashlib.sha256((SECOND / "data.mdb").read_bytes()).hexdigest() == SECOND_SHA256
    public = keys.read_public(str(SECOND / "key.pub.pem"))
    with Journal.open(SECOND, read_only=True) as journal:
        assert list(journal.verify()) == []
        assert [(finding.kind, finding.seq) for finding in journal.verify(public_keys=[public])] == [
            ("checkpoint", 1102)
        ]
        assert journal.head() == SECOND_HEAD
        assert journal.identity() == "a664d842936e45b162b780159761586a6d6fe1bc2d90c8ad3876400348cc3254"
        assert journal.owner().owner == "a-host"
        assert list(journal.streams()) == [StreamInfo("web@0123456789ab", 2, 1105, 551)]
        assert journal.snapshot("web@0123456789ab") == Snapshot(500, b"web@0123456789ab/499")
        assert list(journal.projections()) == [(b"s/web@0123456789ab", b"web@0123456789ab/549")]
        assert [(record.seq, record.kind) for record in journal.read_stream("journal")] == [
            (1, "note"), (1102, "checkpoint"), (1103, "checkpoint"), (1104, "tombstone")
        ]  # fmt: skip
        assert (len(journal.gaps()), journal.gaps()[-1].last) == (550, 1101)
        at = 1_700_000_000_000_000_000
        found = list(journal.read(since_ns=at + 5_000_000_000, until_ns=at + 6_000_000_000))
        assert [(record.seq, record.data) for record in found] == [(12, {"n": 5}), (602, {"n": 300})]
        with pytest.raises(JournalPruned):
            journal.get(3)
    assert sorted(each.name for each in SECOND.iterdir()) == ["data.mdb", "key.pub.pem", "make.py"]
