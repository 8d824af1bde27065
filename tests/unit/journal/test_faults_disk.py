# SPDX-License-Identifier: Apache-2.0
"""A disk that is full at every append of a run, by every amount that is too little, and has space again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from journal import Journal, JournalDiskFull, NewRecord, Stamp, peek, verify_path

APPENDS = 60
PAGE_BYTES = 4096
STAMP = Stamp(wall_ns=1, mono_ns=1, boot_id="boot")


def _limit(disk: Path, pages: int) -> None:
    """Leave so many pages free, by a file that takes the rest."""
    ballast = disk / "ballast"
    with ballast.open("ab") as file:
        free = os.statvfs(disk).f_bavail
        size = os.fstat(file.fileno()).st_size + (free - pages) * PAGE_BYTES
        if free < pages:
            os.ftruncate(file.fileno(), size)
        elif free > pages:
            os.posix_fallocate(file.fileno(), 0, size)
    assert os.statvfs(disk).f_bavail == pages


def test_a_disk_full_at_every_append_by_every_amount(small_disk: Path) -> None:
    path = f"{small_disk}/journal"
    with Journal.open(path):
        pass
    refused = worst = 0
    journal = Journal.open(path)
    for number in range(APPENDS):
        stream = f"stream-{number % 5}"
        rev = journal.rev(stream)
        pad = "x" * (0, 100, 700, 5_000, 0, 20_000)[number % 6]
        before = (journal.head(), dict(journal.projections()))
        for pages in range(APPENDS):
            _limit(small_disk, pages)
            try:
                journal.append(
                    stream,
                    [NewRecord("event", "did", {"n": number, "pad": pad}), NewRecord("note", "n", {}, cause=-1)],
                    stamp=STAMP,
                    expected_rev=rev,
                    projections={stream.encode(): b"%d" % (rev + 2) + b"." * (len(pad) // 3)},
                )
            except JournalDiskFull:
                refused += 1
                worst = max(worst, pages)
                assert (journal.head(), dict(journal.projections())) == before
            else:
                break
        else:
            pytest.fail(f"append {number} was refused whatever the space")
        assert journal.head().seq == 2 * (number + 1)
        assert list(journal.verify()) == []
        if number % 10 == 0:  # and as another process would find it
            journal.close()
            assert list(verify_path(path)) == []
            journal = Journal.open(path)
    journal.close()
    with Journal.open(path, read_only=True) as reader:
        records = [(record.stream, record.rev) for record in reader.read()]
        folded = {info.stream.encode(): info.rev for info in reader.streams()}
        assert {key: int(value.rstrip(b".")) for key, value in reader.projections()} == folded
    assert len(records) == 2 * APPENDS
    print(f"\n{APPENDS} appends, {refused} times refused for want of space, with up to {worst} pages free")
    assert refused > APPENDS


@pytest.mark.parametrize("free", [0, 1])
def test_a_full_disk_can_be_read_and_opened(small_disk: Path, put: Callable[..., object], free: int) -> None:
    path = f"{small_disk}/journal"
    with Journal.open(path) as journal:
        put(journal, "s", projections={b"k": b"v"})
    _limit(small_disk, free)
    with Journal.open(path, read_only=True) as journal:
        assert journal.head().seq == 1
    with peek.open(path) as peeked:
        assert peeked.get(b"k") == b"v"
    assert list(verify_path(path)) == []
    with Journal.open(path) as journal, pytest.raises(JournalDiskFull):
        put(journal, "s", *["filler" * 30] * 50)
