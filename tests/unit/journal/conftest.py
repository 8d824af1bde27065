# SPDX-License-Identifier: Apache-2.0
"""What the journal's tests share: a journal, records to put into it, processes that write, a small disk."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from journal import Journal, NewRecord, Record, Stamp

ROOT = Path(__file__).resolve().parents[3]
STAMP = Stamp(wall_ns=1_700_000_000_000_000_000, mono_ns=12_345, boot_id="00000000-0000-0000-0000-000000000000")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where a journal may be made."""
    return str(tmp_path / "journal")


@pytest.fixture
def journal(path: str) -> Iterator[Journal]:
    """A fresh journal. Not synced: these tests do not cut the power."""
    with Journal.open(path, sync=False, map_bytes=1 << 20) as journal:
        yield journal


def put(journal: Journal, stream: str, *types: str, **options: Any) -> list[Record]:
    """Append one event per type to the stream, at its current rev."""
    records = [NewRecord(kind="event", type=name, body={"of": stream}) for name in types or ("happened",)]
    return journal.append(stream, records, stamp=STAMP, expected_rev=journal.rev(stream), **options)


@pytest.fixture(name="put")
def put_fixture() -> Callable[..., list[Record]]:
    """`put(journal, stream, *types, **append options)`: append events at the stream's current rev."""
    return put


@pytest.fixture
def stamp() -> Stamp:
    """A moment."""
    return STAMP


WRITER = """
import os, sys
from journal import Journal, NewRecord, Stamp
path, stream, count, pad = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with Journal.open(path) as journal:
    for number in range(count):
        rev = journal.rev(stream)
        for record in journal.append(
            stream,
            [NewRecord("event", "ticked", {"n": number, "pad": "x" * pad}), NewRecord("note", "tock", {}, cause=-1)],
            stamp=Stamp(number, number, "boot"), expected_rev=rev, projections={stream.encode(): b"%d" % (rev + 2)},
        ):
            os.write(1, b"%d %s %d\\n" % (record.seq, record.digest.encode(), record.rev))
"""


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """`start(code, *argv)`: run Python code in a process of its own, with pipes; killed at the end."""
    running: list[subprocess.Popen[bytes]] = []

    def start(code: str, *argv: object) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, argv)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def start_writer(start: Callable[..., "subprocess.Popen[bytes]"]) -> Callable[..., "subprocess.Popen[bytes]"]:
    """`start_writer(path, stream, count, pad=0)`: a process that appends, and prints `seq digest rev` once durable."""

    def start_writer(path: str, stream: str, count: int, pad: int = 0) -> "subprocess.Popen[bytes]":
        return start(WRITER, path, stream, count, pad)

    return start_writer


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB in memory."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    mountpoint = tmp_path / "disk"
    mountpoint.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", mountpoint], check=True)
    yield mountpoint
    subprocess.run(["umount", mountpoint], check=True)
