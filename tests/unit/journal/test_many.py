# SPDX-License-Identifier: Apache-2.0
"""Many processes and threads: the lock and its deadline, growth, killed writers, a full disk."""

import os
import signal
import threading

import pytest

from journal import Journal, JournalBusy, JournalDiskFull
from journal.clock import Clock
from journal.lock import WriterLock

LIMIT_S = 120.0


def acknowledged(output):
    """`{seq: digest}` of the whole lines a writer printed."""
    lines = [line.split() for line in output.split(b"\n")[:-1]]
    return {int(seq): digest.decode() for seq, digest, _ in lines}


def check(path, acks):
    """Nothing acknowledged is lost, the chain is whole, and each projection is what the records fold to."""
    with Journal.open(path, read_only=True) as journal:
        stored = {record.seq: record.digest for record in journal.read()}
        assert acks.items() <= stored.items()
        assert list(journal.verify()) == []
        assert dict(journal.projections()) == {i.stream.encode(): b"%d" % i.rev for i in journal.streams()}
        return len(stored)


def test_four_processes_append_at_once(path, start_writer):
    writers = [start_writer(path, f"writer-{number}", 60) for number in range(4)]
    acks = [acknowledged(writer.communicate(timeout=LIMIT_S)[0]) for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4
    assert sum(map(len, acks)) == check(path, {seq: d for ack in acks for seq, d in ack.items()}) == 4 * 60 * 2


def test_a_stopped_writer_is_named_at_the_deadline_and_blocks_no_reader(path, put, start):
    with Journal.open(path) as journal:
        put(journal, "s")
    holder = start(
        "import sys; from journal.lock import WriterLock\n"
        "with WriterLock(sys.argv[1] + '/writer.lock').hold(9): print('held', flush=True); sys.stdin.read(1)",
        path,
    )
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(JournalBusy) as caught:
        Journal.open(path, lock_timeout_s=0.05)
    assert caught.value.holder_pid == holder.pid
    assert f"process `{holder.pid}`" in str(caught.value)
    with Journal.open(path, read_only=True) as journal:
        assert [record.stream for record in journal.read()] == ["s"]
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(JournalBusy):
        Journal.open(path, lock_timeout_s=0.05)
    holder.kill()  # the kernel drops its lock
    with Journal.open(path, lock_timeout_s=LIMIT_S) as journal:
        put(journal, "s")


class StoppedClock(Clock):
    """A clock that only sleeping moves."""

    def __init__(self):
        self.now_s = 0.0
        self.pauses = []

    def monotonic_s(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds
        self.pauses.append(seconds)


def test_waiting_backs_off_and_ends_at_the_deadline(tmp_path):
    clock = StoppedClock()
    path = str(tmp_path / "lock")
    holder, waiter = WriterLock(path), WriterLock(path, clock)
    with holder.hold(1.0), pytest.raises(JournalBusy, match=f"process `{os.getpid()}`"), waiter.hold(10.0):
        pass
    assert clock.now_s == pytest.approx(10.0)
    assert clock.pauses[0] < 0.001
    assert max(clock.pauses) <= 0.01
    with waiter.hold(0.0):
        pass
    holder.close()
    waiter.close()


def test_threads_of_one_process_take_turns_while_the_map_grows_under_readers(path, put):
    failures = []

    def write(journal, stream):
        try:
            for _ in range(40):
                put(journal, stream, *["filler" * 30] * 20)
        except BaseException as error:
            failures.append(error)

    with Journal.open(path, sync=False, map_bytes=1 << 17) as journal:
        threads = [threading.Thread(target=write, args=(journal, f"thread-{n}")) for n in range(3)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            seen = [record.seq for record in journal.read()]
            assert seen == list(range(1, len(seen) + 1))
        for thread in threads:
            thread.join(LIMIT_S)
        assert failures == []
        assert journal.head().seq == 3 * 40 * 20
        assert journal.stat().map_bytes >= 1 << 20
        assert list(journal.verify()) == []


def test_a_map_that_another_process_made_larger_is_adopted(path, put, start_writer):
    with Journal.open(path, map_bytes=1 << 16) as journal:
        put(journal, "mine")
        before = journal.stat().map_bytes
        writer = start_writer(path, "other", 40, pad=20_000)
        acks = acknowledged(writer.communicate(timeout=LIMIT_S)[0])
        assert journal.head().seq == len(acks) + 1 == 81
        put(journal, "mine")
        assert journal.stat().map_bytes > before
        assert list(journal.verify()) == []


def test_a_record_larger_than_the_whole_map_makes_it_grow(path, stamp):
    from journal import NewRecord

    with Journal.open(path, map_bytes=1 << 16) as journal:
        journal.append("s", [NewRecord("event", "big", {"x": "y" * 900_000})] * 3, stamp=stamp, expected_rev=0)
        assert [len(record.body) for record in journal.read()] == [900_008] * 3


def test_slots_of_killed_readers_are_cleared_at_the_next_open(path, start):
    Journal.open(path).close()
    readers = [
        start(
            "import sys, lmdb; env = lmdb.open(sys.argv[1], readonly=True, max_dbs=9, lib_version=0)\n"
            "txn = env.begin(); print('reading', flush=True); sys.stdin.read(1)",
            path,
        )
        for _ in range(3)
    ]
    assert [reader.stdout.readline() for reader in readers] == [b"reading\n"] * 3
    for reader in readers:
        reader.kill()
        reader.wait(LIMIT_S)
    with Journal.open(path) as journal:
        assert "no active readers" in journal._env._env.readers()


def test_a_full_disk_refuses_the_append_and_keeps_all_before(small_disk, put):
    path = f"{small_disk}/journal"
    with Journal.open(path) as journal:
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"x" * 400_000)

        def fill():
            while True:
                put(journal, "s", "filler" * 30, projections={b"last": str(journal.rev("s") + 1).encode()})

        with pytest.raises(JournalDiskFull, match="no space"):
            fill()
        head = journal.head()
        with pytest.raises(JournalDiskFull):
            put(journal, "s", *["filler" * 30] * 50)
        assert (journal.head(), journal.projection(b"last")) == (head, str(head.seq).encode())
        assert list(journal.verify()) == []
        ballast.unlink()
        put(journal, "s", *["filler" * 30] * 50)
        assert journal.head().seq == head.seq + 50
        assert list(journal.verify()) == []


def test_no_space_to_create_a_journal_is_said_so(small_disk):
    """Wherever it runs out: tried with every number of free pages up to what a journal needs."""
    path = f"{small_disk}/journal"
    ballast = small_disk / "ballast"
    sizes = range(os.statvfs(small_disk).f_bavail, 0, -1)
    opened = False
    for free, pages in enumerate(sizes):
        ballast.write_bytes(b"x" * 4096 * pages)
        try:
            Journal.open(path).close()
            opened = True
            break
        except JournalDiskFull:
            assert free < 40
        finally:
            ballast.unlink()
    assert opened
    assert free > 3
