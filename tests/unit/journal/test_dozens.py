# SPDX-License-Identifier: Apache-2.0
"""Dozens of processes at once: as many supervisors and command lines as a busy host has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from journal import Journal

ROOT = Path(__file__).resolve().parents[3]
WRITERS, READERS, STEPS = 24, 8, 20
LIMIT_S = 120.0

CROWD = """
import os, sys
from journal import Journal, NewRecord, Stamp

path, writers, readers, steps = sys.argv[1], *map(int, sys.argv[2:])

def write(number):
    stream = f"s{number}"
    with Journal.open(path, lock_timeout_s=100.0) as journal:
        for step in range(steps):
            records = [NewRecord("event", "one", {"n": step}), NewRecord("event", "two", {"n": step}, cause=-1)]
            journal.append(stream, records, stamp=Stamp(step, step, "b"), expected_rev=2 * step,
                           projections={stream.encode(): b"%d" % (2 * step + 2)})

def read(number):
    # Never half a step: of each stream an even number of records, and the projection that belongs to some even number.
    with Journal.open(path, read_only=True) as journal:
        seen = 0
        while seen < writers * steps * 2:
            seen = sum(1 for _ in journal.read())
            for info in journal.streams():
                assert info.rev % 2 == 0, info
                told = journal.projection(info.stream.encode())
                assert int(told) >= info.rev and int(told) % 2 == 0, (told, info)
            records = [record.type for record in journal.read_stream("s0")]
            assert records == ["one", "two"] * (len(records) // 2), records

def fork(work, number):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(number)
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    return child

children = [fork(write, number) for number in range(writers)] + [fork(read, number) for number in range(readers)]
sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""


def test_dozens_of_writers_and_readers_at_once(path: str) -> None:
    """All of them finish, nobody sees half a step, nothing is lost."""
    Journal.open(path).close()
    ran = subprocess.run(
        [sys.executable, "-c", CROWD, path, *map(str, (WRITERS, READERS, STEPS))],
        cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    with Journal.open(path, read_only=True) as journal:
        assert journal.head().seq == WRITERS * STEPS * 2
        assert {info.rev for info in journal.streams()} == {STEPS * 2}
        assert list(journal.verify()) == []
