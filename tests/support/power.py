# SPDX-License-Identifier: Apache-2.0
"""Power losses, from the writes that a process really made: recorded by strace, cut anywhere, put together again.

What a disk may hold after the power failed: everything up to the last completed sync, what was written through
(`O_DSYNC`) since, and of all other writes since any sectors of 512 bytes, each of them new or old.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SECTOR_BYTES = 512
CALLS = "openat,open,close,pwrite64,pwritev,write,writev,lseek,fsync,fdatasync,ftruncate,rename"

_CALL = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')

# Appends of several sizes, with projections that grow, shrink and go; each is told on standard output once durable.
PROGRAM = """
import os, random, sys
from journal import Journal, NewRecord, Stamp
draw = random.Random(9)
with Journal.open(sys.argv[1]) as journal:
    for number in range(int(sys.argv[2])):
        stream = f"stream-{draw.randrange(5)}"
        rev = journal.rev(stream)
        size = draw.choice([0, 50, 300, 2_000, 9_000])
        projections = {b"%d" % draw.randrange(40): draw.choice([None, b"x" * size]) for _ in range(draw.randrange(6))}
        for record in journal.append(
            stream, [NewRecord("event", "did", {"pad": "p" * size})] * draw.randrange(1, 4),
            stamp=Stamp(number, number, "boot"), expected_rev=rev, projections=projections,
        ):
            os.write(1, b"%d %s\\n" % (record.seq, record.digest.encode()))
"""


class Event(NamedTuple):
    """What happened to the file: `write` at an offset, perhaps written `through`; `size`; `sync`; an `ack`; `made`."""

    what: str
    offset: int = 0
    data: bytes = b""
    through: bool = False


def record(path: str, trace: str, appends: int) -> list[Event]:
    """Run the program in a journal of its own at `path` and return what it did, in order."""
    subprocess.run(
        [
            *("strace", "-f", "-qq", "-xx", "-s", "10000000", "-e", f"trace={CALLS}", "-e", "signal=none", "-o", trace),
            *(sys.executable, "-c", PROGRAM, path, str(appends)),
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=120,
    )
    return _events(Path(trace).read_text())


def _events(trace: str) -> list[Event]:
    found: list[Event] = []
    files: dict[int, bool] = {}  # descriptors of the data file, and whether they write through
    places: dict[int, int] = {}
    renamed = False
    for line in trace.splitlines():
        match = _CALL.match(line)
        if match is None:
            continue
        name, arguments, result = match[1], match[2], int(match[3])
        if result < 0:
            continue
        texts = [_bytes(text) for text in _TEXT.findall(arguments)]
        fd = int(arguments.split(",")[0]) if arguments.split(",")[0].isdigit() else -1
        if name in ("open", "openat"):
            files.pop(result, None)
            if texts[0].endswith(b"/data.mdb"):
                files[result] = "O_DSYNC" in arguments
        elif name == "close":
            files.pop(fd, None)
        elif name == "rename":
            renamed = renamed or texts[1].endswith(b"/data.mdb")
        elif name in ("fsync", "fdatasync"):
            if fd in files:
                found.append(Event("sync"))
            elif renamed and not any(event.what == "made" for event in found):
                found.append(Event("made"))  # the directory, after the file was put into it
        elif name == "write" and fd == 1:
            found.append(Event("ack", data=texts[0]))
        elif fd not in files:
            continue
        elif name == "lseek":
            places[fd] = result
        elif name == "ftruncate":
            found.append(Event("size", offset=int(arguments.split(",")[1])))
        else:
            data = b"".join(texts)
            assert len(data) == result, f"strace cut `{name}` short"
            at = int(arguments.rsplit(",", 1)[1]) if name in ("pwrite64", "pwritev") else places[fd]
            found.append(Event("write", at, data, files[fd]))
            places[fd] = at + result
    return found


def _bytes(found: tuple[str, str]) -> bytes:
    assert not found[1], "strace cut a text short"
    return bytes.fromhex(found[0].replace("\\x", ""))


def acknowledged(events: list[Event], cut: int) -> dict[int, str]:
    """Seq and digest of what was acknowledged before event `cut`."""
    lines = [event.data.decode().split() for event in events[:cut] if event.what == "ack"]
    return {int(seq): digest for seq, digest in lines}


def image(events: list[Event], cut: int, draw: random.Random) -> bytes:
    """What the disk may hold when the power fails while event `cut` is under way."""
    disk = bytearray()
    pending: list[Event] = []
    for event in events[:cut]:
        if event.what == "sync":
            for done in pending:
                _apply(disk, done.offset, done.data)
            pending = []
        elif event.what == "write" and event.through:
            _apply(disk, event.offset, event.data)
        elif event.what == "write":
            pending.append(event)
    if events[cut].what == "write":
        pending.append(events[cut])
    share = draw.choice([0.0, 0.1, 0.5, 0.9, 1.0])
    for event in pending:
        for at in range(0, len(event.data), SECTOR_BYTES):
            # a sector is on the disk or is not; a write within one sector is one of these
            if draw.random() < share:
                _apply(disk, event.offset + at, event.data[at : at + SECTOR_BYTES])
    if draw.random() < 0.5:  # the length may be written without what is in the new part
        end = max([len(disk), *(event.offset + len(event.data) for event in pending)])
        disk.extend(bytes(end - len(disk)))
    return bytes(disk)


def _apply(disk: bytearray, at: int, data: bytes) -> None:
    if len(disk) < at + len(data):
        disk.extend(bytes(at + len(data) - len(disk)))
    disk[at : at + len(data)] = data
