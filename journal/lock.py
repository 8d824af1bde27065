# SPDX-License-Identifier: Apache-2.0
"""The outer lock: who may begin a write transaction.

LMDB's own writer mutex has no deadline, cannot be interrupted and is held for ever by a writer that is stopped or in a
frozen cgroup. So every writer of ours first takes an flock on a file of its own, with a deadline, and writes its pid
into it, so that whoever gives up can name whom it waited for. The kernel drops the flock with its holder, however that
ends. The pid is a courtesy: the lock is the flock, never the content.

An flock that is waited for with a deadline must be polled, and that alone is unfair: whoever releases it and comes back
at once finds it free while the others sleep. So there is a place *in line*, a second lock on one byte of the same file:
only who is there polls the flock, at short intervals, so that handing over takes some 0.1 ms; all others, who has just
released the flock among them, poll for the place in line, at longer ones. That is a courtesy as well. The kernel drops
it with its holder, but not with one that is merely stopped; so whoever has waited for `PATIENCE_S` polls the flock out
of turn.

Both locks belong to the open file, not to the thread: threads of one process are kept apart by a mutex before them.
"""

import fcntl
import os
import struct
import threading

from journal.clock import CLOCK, Clock
from journal.errors import JournalBusy

# A step holds the lock for 0.3 to 8 ms. In line, a pause is a small part of what was waited, so what it adds is small.
IN_LINE_POLL_S = 0.00005
IN_LINE_PART = 16
# The place in line becomes free once in a step. Pauses grow late, lest those who came last look more often than others.
POLL_S = 0.002
PART = 64
POLL_LAST_S = 0.01
PATIENCE_S = 0.02

# Always the same length: overwritten in place, so that it needs no space on a full disk and is never read half.
PID_DIGITS = 20

# `struct flock`: type, whence, start, length, pid (0 for a lock of the open file). The byte lies behind the pid.
_LINE_AT = 64
_TAKE_LINE = struct.pack("@hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, _LINE_AT, 1, 0)
_LEAVE_LINE = struct.pack("@hhqqi0q", fcntl.F_UNLCK, os.SEEK_SET, _LINE_AT, 1, 0)

_STATES = {"T": "stopped", "t": "stopped by a debugger", "D": "waiting for a device", "Z": "ended"}


class WriterLock:
    """The lock file of one journal. Opens it at once (mode 0600, closed in children), locks it only in `hold`."""

    def __init__(self, path: str, clock: Clock = CLOCK) -> None:
        self.path = path
        self._clock = clock
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._threads = threading.Lock()

    def close(self) -> None:
        """Close the file, and so drop the lock. Closing twice is allowed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def hold(self, timeout_s: float) -> "Held":
        """Hold the lock for a body. Raises JournalBusy when it is not free within `timeout_s` seconds."""
        return Held(self, timeout_s)

    def take(self, timeout_s: float) -> None:
        """Take it, for `hold`."""
        started_s = self._clock.monotonic_s()
        if not self._threads.acquire(timeout=max(0.0, timeout_s)):
            raise self._busy(timeout_s, os.getpid())
        try:
            self._take(started_s, timeout_s)
        except BaseException:
            self._threads.release()
            raise
        try:
            self._sign()
        except BaseException:  # an interrupt
            self.drop()
            raise

    def drop(self) -> None:
        """Let it go, for `hold`."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        finally:
            self._threads.release()

    def _take(self, started_s: float, timeout_s: float) -> None:
        in_line = self._take_line()
        try:
            if in_line and self._take_now():
                return
            now_s = in_line_s = self._clock.monotonic_s()
            while True:
                waited_s = now_s - started_s
                left_s = timeout_s - waited_s
                if (in_line or waited_s >= PATIENCE_S or left_s <= 0) and self._take_now():
                    return
                if left_s <= 0:
                    raise self._busy(timeout_s, self._holder())
                pause_s = max(POLL_S, waited_s / PART)
                if in_line:
                    pause_s = max(IN_LINE_POLL_S, (now_s - in_line_s) / IN_LINE_PART)
                self._clock.sleep(min(pause_s, POLL_LAST_S, left_s))
                now_s = self._clock.monotonic_s()
                if not in_line:
                    in_line, in_line_s = self._take_line(), now_s
        finally:
            if in_line:
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _LEAVE_LINE)

    def _take_now(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _take_line(self) -> bool:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _TAKE_LINE)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: POSIX leaves open which
            return False
        return True

    def _sign(self) -> None:
        signature = b"%*d\n" % (PID_DIGITS, os.getpid())
        try:
            if os.pread(self._fd, len(signature), 0) != signature:  # who writes alone has signed already
                os.pwrite(self._fd, signature, 0)
        except OSError:
            pass  # a full disk must not stop a writer from finding that out where it matters

    def _holder(self) -> int | None:
        try:
            return int(os.pread(self._fd, PID_DIGITS, 0))
        except (OSError, ValueError):
            return None

    def _busy(self, timeout_s: float, holder_pid: int | None) -> JournalBusy:
        return JournalBusy(self.path, timeout_s, holder_pid, "" if holder_pid is None else describe(holder_pid))


class Held:
    """The lock, held for a body. A class, not a generator: every step of every sandbox passes here."""

    __slots__ = ("_lock", "_timeout_s")

    def __init__(self, lock: WriterLock, timeout_s: float) -> None:
        self._lock = lock
        self._timeout_s = timeout_s

    def __enter__(self) -> None:
        self._lock.take(self._timeout_s)

    def __exit__(self, *exc_info: object) -> None:
        self._lock.drop()


def describe(pid: int) -> str:
    """What a process is called, in backquotes, and in what state it is if that matters; empty when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except OSError:
        return ""
    # pid (comm) state ...: the name is anything, parentheses and line breaks included
    name, _, rest = stat.partition(b"(")[2].rpartition(b")")
    shown = "".join(char if char.isprintable() else "?" for char in name.decode(errors="replace"))
    state = _STATES.get(rest.split()[0].decode())
    return f"`{shown}`, {state}" if state else f"`{shown}`"
