# SPDX-License-Identifier: Apache-2.0
"""The writer lock: turns, deadlines, waiters that die or stop, and what is told of the holder."""

import fcntl
import os
import signal
import time

import pytest

from journal import JournalBusy
from journal.clock import Clock
from journal.lock import PATIENCE_S, POLL_LAST_S, WriterLock, describe

LIMIT_S = 120.0

HOLDER = """
import sys; from journal.lock import WriterLock
with WriterLock(sys.argv[1]).hold(9): print('held', flush=True); sys.stdin.read(1)
"""

WAITER = """
import sys; from journal.lock import WriterLock
lock = WriterLock(sys.argv[1])
with lock.hold(float(sys.argv[2])): print('held', flush=True)
"""


class Scripted(Clock):
    """A clock that only sleeping moves; `on_sleep` is called at each pause with its number, from 1."""

    def __init__(self, on_sleep=lambda number: None):
        self.now_s = 0.0
        self.pauses = []
        self.on_sleep = on_sleep

    def monotonic_s(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds
        self.pauses.append(seconds)
        self.on_sleep(len(self.pauses))


class Slept(Exception):
    """The lock was not to be had at once."""


def refuse(number):
    raise Slept


@pytest.fixture
def lock_path(tmp_path):
    return str(tmp_path / "writer.lock")


@pytest.fixture
def make_lock(lock_path):
    """`make_lock(clock)`: a lock of its own open file, as of another process."""
    made = []

    def make_lock(clock=None):
        made.append(WriterLock(lock_path, clock or Clock()))
        return made[-1]

    yield make_lock
    for lock in made:
        lock.close()


def until(condition):
    """Wait for a condition."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.001)


def line_is_taken(make_lock):
    """Is somebody next in line?"""
    probe = make_lock()
    try:
        return not probe._take_line()
    finally:
        probe.close()


def test_it_is_taken_at_once_when_nobody_has_it(make_lock):
    first, second = make_lock(Scripted(refuse)), make_lock(Scripted(refuse))
    for lock in (first, second, first, first, second):
        with lock.hold(9.0):
            pass


def test_whoever_releases_it_does_not_get_it_again_before_the_next_in_line(make_lock):
    """Without luck: it is released, and asked for again, while the other one sleeps."""
    hog = make_lock(Scripted(refuse))
    held = hog.hold(9.0)
    held.__enter__()

    def release_and_retake(number):
        if number == 3:  # by then the waiter is in line
            held.__exit__(None, None, None)
            with pytest.raises(Slept), hog.hold(9.0):
                pass

    clock = Scripted(release_and_retake)
    with make_lock(clock).hold(9.0):
        assert len(clock.pauses) == 3
        with pytest.raises(Slept), hog.hold(9.0):
            pass
    with hog.hold(9.0):
        pass


def test_whoever_comes_second_waits_behind_the_first(make_lock):
    """The place in line goes to one, who gets the lock; the other gets the place, and then the lock."""
    holder, turns = make_lock(), []
    held = holder.hold(9.0)
    held.__enter__()

    def second_comes(number):
        if number == 1:
            with pytest.raises(JournalBusy), make_lock(late).hold(PATIENCE_S / 2):
                pass
            turns.append("second gave up")
            held.__exit__(None, None, None)

    late = Scripted()
    with make_lock(Scripted(second_comes)).hold(9.0):
        turns.append("first")
    assert turns == ["second gave up", "first"]
    assert late.now_s == pytest.approx(PATIENCE_S / 2)


def test_pauses_are_short_at_first_and_never_long(make_lock):
    clock, behind = Scripted(), Scripted()
    with make_lock().hold(1.0):
        with pytest.raises(JournalBusy), make_lock(clock).hold(10.0):
            pass
        place = make_lock()
        assert place._take_line()
        with pytest.raises(JournalBusy), make_lock(behind).hold(10.0):
            pass
    assert clock.now_s == behind.now_s == pytest.approx(10.0)
    assert clock.pauses[0] <= 0.0001
    assert max(clock.pauses + behind.pauses) <= POLL_LAST_S


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_waiter_that_dies_or_stops_in_line_blocks_nobody(make_lock, lock_path, start, sent):
    lock = make_lock()
    with lock.hold(LIMIT_S):
        waiter = start(WAITER, lock_path, 1000)
        until(lambda: line_is_taken(make_lock))
        waiter.send_signal(sent)
        os.waitid(os.P_PID, waiter.pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
    clock = Scripted()
    for _ in range(3):
        before_s = clock.now_s
        with make_lock(clock).hold(9.0):
            assert clock.now_s - before_s <= (PATIENCE_S + POLL_LAST_S if sent == signal.SIGSTOP else 0)


def test_a_holder_that_is_killed_hands_it_over(lock_path, start):
    holder = start(HOLDER, lock_path)
    assert holder.stdout.readline() == b"held\n"
    waiters = [start(WAITER, lock_path, LIMIT_S) for _ in range(3)]
    holder.kill()
    assert [waiter.stdout.readline() for waiter in waiters] == [b"held\n"] * 3


def test_one_who_takes_it_again_and_again_starves_nobody(make_lock, lock_path, start):
    """Four processes get ten turns each while we never leave it alone."""
    turns = "from journal.lock import WriterLock; import sys\nlock = WriterLock(sys.argv[1])\n"
    turns += f"for _ in range(10):\n    with lock.hold({LIMIT_S}): pass\n"
    others = [start(turns, lock_path) for _ in range(4)]
    hog = make_lock()
    deadline = time.monotonic() + LIMIT_S
    while any(other.poll() is None for other in others):
        assert time.monotonic() < deadline
        with hog.hold(LIMIT_S):
            pass
    assert [other.returncode for other in others] == [0] * 4


def test_the_holder_is_named_and_said_to_be_stopped(make_lock, lock_path, start):
    holder = start(HOLDER, lock_path)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(JournalBusy, match=rf"process `{holder.pid}` \(`python[^`]*`\), gave up") as caught:
        make_lock(Scripted()).hold(0.1).__enter__()
    assert caught.value.holder_pid == holder.pid
    holder.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
    with pytest.raises(JournalBusy, match=rf"process `{holder.pid}` \(`python[^`]*`, stopped\), gave up"):
        make_lock(Scripted()).hold(0.1).__enter__()


def test_a_holder_that_did_not_sign_is_unknown_and_one_that_is_gone_has_no_name(make_lock, lock_path, start):
    """Another program, or an older version of this one, that only takes the flock."""
    lock = make_lock(Scripted())
    fd = os.open(lock_path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(JournalBusy, match=r"locked by an unknown process, gave up") as caught:
        lock.hold(0.1).__enter__()
    assert caught.value.holder_pid is None
    gone = start("")
    gone.wait(LIMIT_S)
    os.pwrite(fd, b"%20d\n" % gone.pid, 0)
    with pytest.raises(JournalBusy, match=rf"process `{gone.pid}`, gave up"):
        lock.hold(0.1).__enter__()
    os.close(fd)
    with lock.hold(0.0):
        pass


def test_a_name_is_one_line_whatever_is_in_it(start):
    process = start(
        "import sys; open('/proc/self/comm', 'w').write('a) R (\\nb'); print('named', flush=True); sys.stdin.read(1)"
    )
    assert process.stdout.readline() == b"named\n"
    assert describe(process.pid) == "`a) R (?b`"
