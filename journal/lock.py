# SPDX-License-Identifier: Apache-2.0
"""The outer lock: who may begin a write transaction.

LMDB's own writer mutex has no deadline, cannot be interrupted and is held for ever by a writer that is stopped or in a
frozen cgroup. So every writer of ours first takes an flock on a file of its own, with a deadline, and writes its pid
into it, so that whoever gives up can name whom it waited for. The kernel drops the flock with its holder, however that
ends. The pid is a courtesy: the lock is the flock, never the content.

An flock belongs to the open file, not to the thread: threads of one process are kept apart by a mutex before it.
"""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from journal.clock import CLOCK, Clock
from journal.errors import JournalBusy

# A commit takes 0.3 to 8 ms. Polling starts well below that and backs off far enough to cost nothing when it lasts.
POLL_FIRST_S = 0.0002
POLL_LAST_S = 0.01
POLL_GROWTH = 1.5

# Always the same length: overwritten in place, so that it needs no space on a full disk and is never read half.
PID_DIGITS = 20


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

    @contextmanager
    def hold(self, timeout_s: float) -> Iterator[None]:
        """Hold the lock for the body. Raises JournalBusy when it is not free within `timeout_s` seconds."""
        started_s = self._clock.monotonic_s()
        if not self._threads.acquire(timeout=max(0.0, timeout_s)):
            raise JournalBusy(self.path, timeout_s, os.getpid())
        try:
            self._flock(started_s, timeout_s)
            try:
                self._sign()
                yield
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
        finally:
            self._threads.release()

    def _flock(self, started_s: float, timeout_s: float) -> None:
        pause_s = POLL_FIRST_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                left_s = started_s + timeout_s - self._clock.monotonic_s()
                if left_s <= 0:
                    raise JournalBusy(self.path, timeout_s, self._holder()) from None
            self._clock.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * POLL_GROWTH, POLL_LAST_S)

    def _sign(self) -> None:
        try:
            os.pwrite(self._fd, b"%*d\n" % (PID_DIGITS, os.getpid()), 0)
        except OSError:
            pass  # a full disk must not stop a writer from finding that out where it matters

    def _holder(self) -> int | None:
        try:
            return int(os.pread(self._fd, PID_DIGITS, 0))
        except (OSError, ValueError):
            return None
