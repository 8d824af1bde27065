# SPDX-License-Identifier: Apache-2.0
"""Processes that append and are killed: forked from a parent that has the package loaded and no journal open.

Run as `python -m tests.support.writers PATH ACKS KILLS SEED`. Each of four writers appends to a stream of its own and
writes `seq digest` of every acknowledged record to a file in the directory ACKS: what a process has written to a file
survives its being killed. One of the four is killed at a drawn moment, another is started in its place, and so on.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

from journal import Journal, NewRecord, Stamp

WRITERS = 4
PAUSE_S = 0.012  # moments are drawn up to this: from opening to some appends
PADS = (0, 0, 200, 1_500, 6_000)
CHECKED_EVERY = 250


def write(path: str, acks: str, stream: str, seed: int) -> None:
    """Append until killed."""
    draw = random.Random(seed)
    told = os.open(acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with Journal.open(path, lock_timeout_s=60.0) as journal:
        while True:
            rev = journal.rev(stream)
            stored = journal.append(
                stream,
                [NewRecord("event", "ticked", {"pad": "x" * draw.choice(PADS)}), NewRecord("note", "t", {}, cause=-1)],
                stamp=Stamp(rev, rev, "boot"),
                expected_rev=rev,
                projections={stream.encode(): b"%d" % (rev + 2)},
            )
            os.write(told, b"".join(b"%d %s\n" % (record.seq, record.digest.encode()) for record in stored))


def acknowledged(acks: str) -> dict[int, str]:
    """Seq and digest of every record that was acknowledged to one of the writers."""
    lines = [line.split() for file in Path(acks).iterdir() for line in file.read_text().split("\n")[:-1]]
    return {int(seq): digest for seq, digest in lines}


def check(path: str, acks: dict[int, str]) -> int:
    """Nothing acknowledged is lost, the chain is whole, projections are what the records fold to; how many there are."""
    with Journal.open(path, read_only=True) as journal:
        stored = {record.seq: record.digest for record in journal.read()}
        assert acks.items() <= stored.items(), sorted(acks.items() - stored.items())[:5]
        assert list(journal.verify()) == []
        folded = {i.stream.encode(): b"%d" % i.rev for i in journal.streams()}
        assert dict(journal.projections()) == folded
        return len(stored)


def fork(work: Callable[[], object]) -> int:
    """The pid of a child that does this and exits with 0, or with 1 and a traceback."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        if code:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        sys.stdout.flush()
        os._exit(code)


def main(path: str, acks: str, kills: int, seed: int) -> None:
    """Kill so many writers; print how many were killed with the writer lock in their hands, and how many records are."""
    running: dict[int, int] = {}  # pid by writer
    try:
        locked = _kill_and_check(path, acks, kills, random.Random(seed), running)
    finally:
        for pid in running.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    acks_found = acknowledged(acks)
    print(kills + len(running), locked, len(acks_found), check(path, acks_found))


def _kill_and_check(path: str, acks: str, kills: int, draw: random.Random, running: dict[int, int]) -> int:
    """How many were killed with the writer lock in their hands; `running` is what runs at every moment."""
    locked = 0
    for number in range(kills):
        for writer in range(WRITERS):
            if writer not in running:
                life = number * WRITERS + writer
                running[writer] = fork(
                    lambda writer=writer, life=life: write(path, f"{acks}/{writer}", f"writer-{writer}", life)
                )
        time.sleep(draw.random() * PAUSE_S)  # not for luck: the moment of the kill is what is drawn
        victim = running.pop(draw.randrange(WRITERS))
        os.kill(victim, signal.SIGKILL)
        locked += _holder(path) == victim
        status = os.waitpid(victim, 0)[1]
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, f"a writer ended by itself: {status}"
        if number % CHECKED_EVERY == 0 and os.path.exists(f"{path}/data.mdb"):
            _check_while_stopped(path, acks, running.values())
    return locked


def _check_while_stopped(path: str, acks: str, writers: Collection[int]) -> None:
    """Check what is there while nobody adds to it: the records and their projections are read one after the other."""
    for pid in writers:
        os.kill(pid, signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1]), "a writer ended by itself"
    checker = fork(lambda: check(path, acknowledged(acks)))
    assert os.waitpid(checker, 0)[1] == 0, "the check failed"
    for pid in writers:
        os.kill(pid, signal.SIGCONT)


def _holder(path: str) -> int:
    """Who signed the writer lock last."""
    try:
        return int(Path(path, "writer.lock").read_bytes() or b"0")
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
