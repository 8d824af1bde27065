# SPDX-License-Identifier: Apache-2.0
"""Writers that are killed, and writers that are stopped, at whatever instruction they are."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from journal import Journal, JournalBusy, NewRecord, Stamp
from tests.support.writers import acknowledged, check, fork, write

ROOT = Path(__file__).resolve().parents[3]
KILLS = 1_000
STOPS = 60
DEADLINE_S = 0.15
SLACK_S = 20.0  # for a busy machine: what is shown is that waiting ends, not how exactly


def test_a_thousand_killed_writers_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path, acks = tmp_path / "journal", tmp_path / "acks"
    acks.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.writers", path, acks, str(KILLS), "7"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kills, locked, acknowledged_records, records = map(int, done.stdout.split())
    print(
        f"\n{kills} kills, {locked} of whoever had signed the lock last;"
        f" {acknowledged_records} of {records} records acknowledged"
    )
    assert kills >= KILLS
    assert acknowledged_records > KILLS
    assert locked > KILLS // 20, "kills hit writers, not only those who wait"


STAMP = Stamp(wall_ns=1, mono_ns=1, boot_id="boot")


def _append(path: str) -> str:
    """What becomes of an append with a deadline, while another writer is stopped."""
    started = time.monotonic()
    try:
        with Journal.open(path, lock_timeout_s=DEADLINE_S) as journal:
            journal.append("other", [NewRecord("note", "n", {})], stamp=STAMP, expected_rev=journal.rev("other"))
            told = "appended"
    except JournalBusy as error:
        told = f"busy {error.holder_pid}"
    took = time.monotonic() - started
    return told if took < 2 * DEADLINE_S + SLACK_S else f"took {took} s: {told}"


def test_a_writer_stopped_at_any_point_blocks_nobody_beyond_the_deadline(tmp_path: Path) -> None:
    path, acks = str(tmp_path / "journal"), tmp_path / "acks"
    acks.mkdir()
    draw = random.Random(8)
    writer = fork(lambda: write(path, str(acks / "0"), "writer-0", 1))
    verdicts = []
    try:
        _wait_for(lambda: acks.joinpath("0").exists() and acks.joinpath("0").stat().st_size > 0)
        for _ in range(STOPS):
            time.sleep(draw.random() * 0.01)  # not for luck: the moment of the stop is what is drawn
            os.kill(writer, signal.SIGSTOP)
            assert os.WIFSTOPPED(os.waitpid(writer, os.WUNTRACED)[1])
            verdicts.append(_append(path))
            with Journal.open(path, read_only=True) as journal:  # readers wait for nobody
                head = journal.head()
                assert journal.get(head.seq).digest == head.digest
            os.kill(writer, signal.SIGCONT)
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    busy = [verdict for verdict in verdicts if verdict.startswith("busy")]
    print(f"\n{len(verdicts)} stops, {len(busy)} with the lock held")
    assert set(busy) <= {f"busy {writer}"}, "the holder is named"
    assert set(verdicts) - set(busy) <= {"appended"}
    assert len(busy) > STOPS // 10
    acks_found = acknowledged(str(acks))
    with Journal.open(path) as journal:
        revs = {info.stream: info.rev for info in journal.streams()}
        assert revs.get("other", 0) == verdicts.count("appended")
        # `check` wants a projection of every stream
        journal.append(
            "other",
            [NewRecord("note", "n", {})],
            stamp=STAMP,
            expected_rev=revs.get("other", 0),
            projections={b"other": b"%d" % (revs.get("other", 0) + 1)},
        )
    check(path, acks_found)


@pytest.mark.parametrize("ending", [signal.SIGCONT, signal.SIGKILL])
def test_a_writer_stopped_inside_its_transaction(tmp_path: Path, ending: signal.Signals) -> None:
    """In the middle of LMDB's own lock, which has no deadline: ours stands before it."""
    path = str(tmp_path / "journal")
    with Journal.open(path) as journal:
        journal.append("s", [NewRecord("note", "before", {})], stamp=STAMP, expected_rev=0)

    def stop_inside() -> None:
        from journal import step

        whole_step = step.apply

        def stopped(*args: object, **options: object) -> object:
            stored = whole_step(*args, **options)  # type: ignore[arg-type]
            os.kill(os.getpid(), signal.SIGSTOP)
            return stored

        with Journal.open(path) as journal:
            step.apply = stopped  # type: ignore[assignment]
            journal.append("s", [NewRecord("note", "within", {})], stamp=STAMP, expected_rev=1)

    writer = fork(stop_inside)
    assert os.WIFSTOPPED(os.waitpid(writer, os.WUNTRACED)[1])
    assert _append(path) == f"busy {writer}"
    with Journal.open(path, read_only=True) as journal:
        assert [record.type for record in journal.read()] == ["before"], "nobody sees half a step"
        assert list(journal.verify()) == []
    os.kill(writer, ending)
    assert os.WIFEXITED(os.waitpid(writer, 0)[1]) == (ending == signal.SIGCONT)
    assert _append(path) == "appended"
    with Journal.open(path, read_only=True) as journal:
        types = [record.type for record in journal.read()]
        assert types == ["before", *(["within"] if ending == signal.SIGCONT else []), "n"]
        assert list(journal.verify()) == []


def _wait_for(condition: object) -> None:
    end = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.002)
