# SPDX-License-Identifier: Apache-2.0
"""Made `data.mdb` beside this file, once. Kept to show how; it refuses to make it again."""

import os
import sys
from pathlib import Path

import msgspec

from journal import Journal, NewRecord, Stamp

HERE = Path(__file__).resolve().parent
WEB, DONER = "web@0123456789ab", "döner@ba9876543210"


def stamp(number: int) -> Stamp:
    """A moment of the story."""
    return Stamp(1_700_000_000_000_000_000 + number, 1_000 + number, "4f1d3f0e-6c5b-4c43-9d0e-2f3f5b0f8a11")


def fill(journal: Journal) -> None:
    """Append the story that the test tells."""
    command = NewRecord("command", "create", {"id": "web"}, actor={"uid": 0, "comm": "engine"})
    journal.append(
        WEB,
        [
            command,
            NewRecord("event", "created", {}, cause=-1),
            NewRecord("intent", "boot", {"argv": ["qemu"]}, cause=-1),
        ],
        stamp=stamp(0),
        expected_rev=0,
        projections={b"c/web": b"{}"},
        requires={b"c/web": None},
    )
    odd = {"name": "döner", "list": [1, -2.5, True, None, {"": "\x00\u2028"}]}
    journal.append(
        DONER,
        [NewRecord("command", "create", odd)],
        stamp=stamp(1),
        expected_rev=0,
        projections={"c/döner".encode(): b"{}"},
    )
    outcome = [
        NewRecord("outcome", "boot", {"pid": 42}, cause=3),
        NewRecord("event", "running", {}, cause=-1),
    ]
    journal.append(WEB, outcome, stamp=stamp(2), expected_rev=3)
    raw = msgspec.Raw(b'{"kept" : "as it came", "kept": 2.50}')
    journal.append(DONER, [NewRecord("omen", "not.known.yet", raw)], stamp=stamp(3), expected_rev=1)
    large = {"text": "0123456789" * 900}
    journal.append(WEB, [NewRecord("note", "large", large)], stamp=stamp(4), expected_rev=5)
    journal.append(
        WEB,
        [NewRecord("event", "ended", {}, cause=6)],
        stamp=stamp(5),
        expected_rev=6,
        projections={b"c/web": None, b"s/web": b"\x00ended\xff"},
    )


if __name__ == "__main__":
    if (HERE / "data.mdb").exists():
        sys.exit("the frozen journal exists, and stays")
    with Journal.open(HERE, map_bytes=1 << 17) as journal:
        fill(journal)
        print(journal.head())
    os.unlink(HERE / "lock.mdb")
    os.unlink(HERE / "writer.lock")
    os.chmod(HERE / "data.mdb", 0o644)
