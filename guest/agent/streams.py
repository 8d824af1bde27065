# SPDX-License-Identifier: Apache-2.0
"""A process's output and input, addressed by byte offset.

Output is read into a ring of fixed size and stays there until it is acknowledged, so that a host which lost its connection
can ask for it again. When the ring is full the agent stops reading and the process blocks on its pipe: backpressure reaches
to the writer, and memory is bounded whatever a container prints.

Nothing is read ahead of the host: after a read for which nobody waits, the rest is left in the pipe until the host asks
(`demand`). A process that writes would wake the agent for every line, or for every 64 KiB; in a large pipe, one read finds
a whole answer.

An answer to the host refers to the ring itself (a memoryview, no copy). That is safe because bytes are overwritten only once
the host has acknowledged them, which it cannot do before it has received them.

Most processes print little, and a small ring serves them. A pipe that fills it is kept in pipes of ours from then on
(`kept`), which is cheaper for many bytes; a terminal, which cannot be spliced, gets a larger ring.

Input is accepted up to a bound, by offset: bytes that were accepted before are skipped, so a repeated write does no harm.
"""

from __future__ import annotations

import os
from errno import EIO
from stat import S_ISFIFO

from kata_wire.envelope import OUT_OF_RANGE

from .errors import RpcError, precondition
from .loop import READABLE, WRITABLE, Loop, Notice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .kept import Answer, Kept

RING_BYTES = 3 << 20  # unacknowledged, in a ring: one full answer; what comes meanwhile waits in the pipe
KEPT_BYTES = 2 * RING_BYTES  # unacknowledged, kept: one answer that is being handed over, and the next on its way
_RING_FIRST_BYTES = 64 << 10  # most processes print little, and a ring is filled with zeros when it is made
PIPE_BYTES = (4 << 20, 1 << 20)  # the first that is granted: more than an answer, so that nobody waits for the other
_RESUME_FREE_BYTES = _RING_FIRST_BYTES // 4  # read again only when it is worth a call
INPUT_BYTES = 256 << 10  # accepted and not yet taken by the process


class Output:
    """One output stream. Offsets: acknowledged <= ... <= end, at most RING_BYTES or KEPT_BYTES apart."""

    broken = ""  # why it ended before its end, if it did

    def __init__(self, loop: Loop, fd: int) -> None:
        """Takes over `fd`: the non-blocking read end of a pipe, or a terminal's master."""
        self._loop = loop
        self._fd = fd
        self._size = _RING_FIRST_BYTES
        self._ring: memoryview | None = memoryview(bytearray(self._size))
        self._kept: Kept | None = None  # instead of the ring
        self._origin = 0  # the offset whose byte lies at index 0
        self._watched = False
        self._full = False  # not read on for want of room
        self.acknowledged = 0
        self.end = 0  # of what was read
        self.at_eof = False
        self.changed = Notice()
        self._watch()

    def acknowledge(self, offset: int) -> None:
        """The host has every byte before `offset`. Raises OUT_OF_RANGE for bytes that are gone or not yet read."""
        if not self.acknowledged <= offset <= self.end:
            raise RpcError(
                OUT_OF_RANGE,
                f"offset `{offset}` is not in the stream; legal are `{self.acknowledged}` to `{self.end}`",
            )
        if offset == self.acknowledged:
            return
        if self._kept is not None:
            self._kept.drop(offset - self.acknowledged)
        self.acknowledged = offset
        if offset == self.end:
            self._origin = offset  # begin at index 0 again: small outputs touch few pages of the ring
            if self.at_eof:
                self._forget()
            elif self._full and self._size < self._ring_max():
                self._enlarge()
        if self._full and self._free() >= _RESUME_FREE_BYTES:
            self.demand()  # there is most likely something: it saves a turn of the loop

    def demand(self) -> None:
        """Somebody wants data: take what there is now, and watch for more."""
        if not self._watched and not self.at_eof and self._free():
            self._fill()
            if not self.at_eof and self._free():
                self._watch()

    def must_wait(self, offset: int) -> bool:
        """Whether there is nothing from `offset` on now, and may be something later without an acknowledgement."""
        return self.end == offset and not self.at_eof and self._free() > 0

    def peek(self, limit: int, skip: int = 0) -> memoryview | Answer | bytes:
        """The first unacknowledged bytes after `skip` of them, at most `limit`, perhaps fewer than there are; not copied."""
        if self._kept is not None:
            return self._kept.answer(limit, skip)
        if self._ring is None:
            return b""
        offset = self.acknowledged + skip
        start = (offset - self._origin) % self._size
        size = min(self.end - offset, limit, self._size - start)
        return self._ring[start : start + size]

    def close(self) -> None:
        """Forget everything. What is unread is lost."""
        if self._fd >= 0:
            self._unwatch()
            os.close(self._fd)
            self._fd = -1
        self._forget()
        self.at_eof = True
        self.acknowledged = self.end
        self.changed.notify()

    def _forget(self) -> None:
        self._ring = None
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _enlarge(self) -> None:
        """There is nothing unacknowledged, and there will be much. Answers under way keep the old ring."""
        self._ring = None
        if S_ISFIFO(os.fstat(self._fd).st_mode):
            from .kept import Kept

            try:
                self._kept = Kept()
                self._size = KEPT_BYTES
            except OSError:
                pass  # too many descriptors, or no memory: it works without
        if self._kept is None:
            self._size = self._ring_max()
            self._ring = memoryview(bytearray(self._size))

    def _ring_max(self) -> int:
        return RING_BYTES

    def _free(self) -> int:
        if self._kept is not None and self._kept.full:
            return 0
        return self._size - (self.end - self.acknowledged)

    def _watch(self) -> None:
        self._loop.watch(self._fd, READABLE, self._on_readable)
        self._watched = True

    def _unwatch(self) -> None:
        # a full ring must leave epoll altogether: a hang-up is reported even to an empty mask
        self._loop.unwatch(self._fd)
        self._watched = False

    def _on_readable(self, events: int) -> None:
        awaited = bool(self.changed.waiting)
        self._fill()
        if self._watched and (self._full or not awaited):
            self._unwatch()

    def _fill(self) -> int:
        """One read of as much as fits; how much came."""
        free = self._free()
        if not free or self._fd < 0:
            return 0
        try:
            got = self._kept.take(self._fd, free) if self._kept is not None else self._fill_ring(free)
        except BlockingIOError:
            self._full = not self._free()
            if self._full:
                self.changed.notify()  # whoever waits for more would wait for an acknowledgement
            return 0
        except OSError as error:
            if error.errno != EIO:  # EIO is how a terminal says that its last user has closed it
                raise
            got = 0
        self.end += got
        self._full = not self._free()
        if not got:
            self._finish()
        self.changed.notify()
        return got

    def _fill_ring(self, free: int) -> int:
        assert self._ring is not None
        start = (self.end - self._origin) % self._size
        first = self._ring[start : min(start + free, self._size)]
        rest = free - len(first)
        return os.readv(self._fd, (first, self._ring[:rest]) if rest else (first,))

    def _finish(self) -> None:
        if self._watched:
            self._unwatch()
        os.close(self._fd)
        self._fd = -1
        self.at_eof = True
        if self.acknowledged == self.end:
            self._forget()


class Input:
    """A process's standard input. `accepted` is the offset of the next byte wanted."""

    def __init__(self, loop: Loop, fd: int, *, terminal: bool) -> None:
        """Takes over `fd`: the non-blocking write end of a pipe, or a terminal's master."""
        self._loop = loop
        self._fd = fd
        self._terminal = terminal
        self._pending = bytearray()
        self._watched = False
        self._eof = False
        self.accepted = 0
        self.broken = False  # the reader is gone
        self.changed = Notice()

    def room(self) -> int:
        """How many bytes would be accepted now."""
        return INPUT_BYTES - len(self._pending)

    def write(self, offset: int, data: bytes) -> int:
        """Accept what is new and fits; returns `accepted`. OUT_OF_RANGE for a gap, FAILED_PRECONDITION when closed."""
        if offset > self.accepted:
            raise RpcError(OUT_OF_RANGE, f"input at `{offset}` leaves a gap; the next byte wanted is `{self.accepted}`")
        fresh = memoryview(data)[self.accepted - offset :]
        if not fresh:
            return self.accepted
        if self.broken:
            raise precondition("standard input was closed by its reader")
        if self._eof:
            raise precondition("standard input was closed before")
        if not self._pending:
            written = self._write(fresh)
            self.accepted += written
            fresh = fresh[written:]
        taken = fresh[: self.room()]
        self._pending += taken
        self.accepted += len(taken)
        self._settle()
        if self.broken:
            raise precondition("standard input was closed by its reader")
        return self.accepted

    def finish(self) -> None:
        """No more input: close when the process has taken what is pending. A terminal stays open, as its output needs it."""
        self._eof = True
        self._settle()

    def close(self) -> None:
        """Close now; pending bytes are lost."""
        self._pending.clear()
        if self._fd >= 0:
            self._set_watched(False)
            os.close(self._fd)
            self._fd = -1
        self.changed.notify()

    def _write(self, data: bytearray | memoryview) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError:  # EPIPE; a terminal says EIO
            self.broken = True
            self.close()
            return 0

    def _settle(self) -> None:
        """Watch while something is pending; close when nothing is and no more will come."""
        if self._fd < 0:
            return
        self._set_watched(bool(self._pending))
        if self._eof and not self._pending and not self._terminal:
            self._end()

    def _end(self) -> None:
        """All of it has been taken, and no more comes."""
        self.close()

    def _set_watched(self, wanted: bool) -> None:
        if wanted and not self._watched:
            self._loop.watch(self._fd, WRITABLE, self._on_writable)
        elif self._watched and not wanted:
            self._loop.unwatch(self._fd)
        self._watched = wanted

    def _on_writable(self, events: int) -> None:
        written = self._write(self._pending)
        if self._fd >= 0:
            del self._pending[:written]
            self._settle()
        self.changed.notify()
