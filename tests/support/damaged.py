# SPDX-License-Identifier: Apache-2.0
"""A small journal with something of everything in its file, and all that can be read of one."""

from __future__ import annotations

import os
from pathlib import Path

from journal import Journal, JournalError, NewRecord, Stamp, verify_path

STAMP = Stamp(wall_ns=1_700_000_000_000_000_000, mono_ns=12_345, boot_id="00000000-0000-0000-0000-000000000000")

Reading = tuple[object, ...]


def fold(journal: Journal) -> dict[bytes, bytes]:
    """What the projections of `make` must be, by the records: of each stream its rev, and as much filler as it says."""
    found = {}
    for record in journal.read():
        found[record.stream.encode()] = b"%d" % record.rev + b"." * record.data["filler"]
    return found


def make(path: str, appends: int = 26) -> None:
    """Write a journal: tables of one page and of several, values that need pages of their own, and free pages."""
    with Journal.open(path, sync=False) as journal:
        for number in range(appends):
            stream = f"stream-{number % 7}" + "x" * 120 * (number % 3)
            filler = 5_000 if number == 9 else 30 * (number % 5)
            pad = "p" * (6_000 if number == 11 else 200)
            rev = journal.rev(stream)
            journal.append(
                stream,
                [
                    NewRecord("event", "did", {"n": number, "pad": pad, "filler": 0}),
                    NewRecord("note", "ü", {"filler": filler, "text": 'a "brace" } in a \\ text {'}, cause=-1),
                ],
                stamp=STAMP,
                expected_rev=rev,
                projections={stream.encode(): b"%d" % (rev + 2) + b"." * filler},
            )


def read_all(path: str) -> tuple[Reading, dict[bytes, bytes], dict[bytes, bytes]]:
    """Everything the records say by every way to them, the projections, and what these must be."""
    with Journal.open(path, read_only=True) as journal:
        head = journal.head()
        by_seq = tuple(journal.get_text(seq) for seq in range(1, head.seq + 1))
        forwards = tuple(journal.read())
        backwards = tuple(journal.read(reverse=True))
        streams = tuple(journal.streams())
        by_stream = tuple(tuple(journal.read_stream(info.stream)) for info in streams)
        projections = dict(journal.projections())
        for key, value in projections.items():
            assert journal.projection(key) == value, "a projection is found by walking, not by its key"
        return (head, by_seq, forwards, backwards, streams, by_stream), projections, fold(journal)


def judge(path: str, sound: Reading) -> str:
    """What becomes of a damaged journal: `found` or `refused`, `fold` when only projections differ, `same`."""
    try:
        findings = list(verify_path(path))
    except JournalError as error:
        return f"refused {type(error).__name__}"
    if findings:
        return f"found {findings[0].kind}"
    reading, projections, folded = read_all(path)
    if reading != sound:
        return "UNSEEN"
    return "same" if projections == folded else "fold"


def copy_to(path: str | os.PathLike[str], data: bytes) -> str:
    """Make a journal directory with that data file in it and nothing else, like a copy kept as evidence."""
    Path(path).mkdir(exist_ok=True)
    Path(path, "data.mdb").write_bytes(data)
    return os.fspath(path)
