# SPDX-License-Identifier: Apache-2.0
"""Moving one process's bytes between pipes of ours and the descriptors that its caller gave us.

An `Output` moves what the supervisor wrote into our pipe to the real stdout or stderr, counting every byte that arrived
there. An `Input` moves the real stdin into a socket pair, counting what was put in. Neither ever blocks on the caller:
that would keep signals and the other stream waiting.

When the reader of an output is gone (EPIPE, a hung-up terminal, a full disk), the rest is read and thrown away, and
counts as delivered. Under a runtime without a virtual machine the workload itself would get SIGPIPE; the agent protocol
has no way to close a stream from the host, and a workload that blocks for ever on a pipe nobody empties is worse.
"""

import _socket
import errno
import fcntl
import os
import select
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Mover = Callable[[], int]

FIONREAD = 0x541B
PIPE_BYTES = 1 << 20
COPY_BYTES = 1 << 16
_SPLICE_FLAGS = 0x01 | 0x02  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK
_NO_SPLICE = (errno.EINVAL, errno.ENOSYS, errno.EBADF, errno.EOPNOTSUPP)

WAIT_SOURCE = 0
WAIT_SINK = 1


def pending_bytes(fd: int) -> int:
    """How many bytes wait to be read from a pipe or socket."""
    buffer = bytearray(4)
    fcntl.ioctl(fd, FIONREAD, buffer)
    return int.from_bytes(buffer, sys.byteorder)


def nonblocking_view(fd: int, flags: int) -> int:
    """A descriptor for the same terminal that does not block, without making the caller's own one so.

    O_NONBLOCK belongs to the open file description, which we share with the caller: a terminal is therefore opened
    again. Everything else is used as it is (sockets have MSG_DONTWAIT, pipes SPLICE_F_NONBLOCK, files never wait).
    """
    if not os.isatty(fd):
        return fd
    try:
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return fd


class Output:
    """One output stream: from the read end of a pipe of ours to `sink`."""

    def __init__(self, name: str, sink: int) -> None:
        self.name = name
        self.sink = nonblocking_view(sink, os.O_WRONLY)
        self.source = -1
        self.delivered = 0
        self.waiting = WAIT_SOURCE
        self._pending = memoryview(b"")
        self._move = self._choose()

    def _choose(self) -> "Mover":
        try:
            mode = os.fstat(self.sink).st_mode
        except OSError:
            return self._discard  # closed by the caller: nowhere to deliver to
        if stat.S_ISSOCK(mode):
            self._socket = _socket.socket(fileno=os.dup(self.sink))
            return self._copy_to_socket
        return self._copy if os.isatty(self.sink) else self._splice

    def open(self) -> int:
        """Make a fresh pipe, whose write end is returned: the supervisor's to be."""
        self.source, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.source, False)
        try:
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            pass  # over the user's pipe quota: the default size works, only slower
        return writer

    @property
    def ended(self) -> bool:
        """Whether there is no pipe to read: every writer has closed it and all of it has been delivered."""
        return self.source < 0

    @property
    def empty(self) -> bool:
        """Whether everything that was written so far has been delivered."""
        return self.ended or (not self._pending and pending_bytes(self.source) == 0)

    def interest(self) -> tuple[int, int]:
        """(descriptor, poll mask) of what this stream waits for."""
        if self.waiting == WAIT_SINK:
            return self.sink, select.POLLOUT
        return self.source, select.POLLIN

    def pump(self) -> None:
        """Move what can be moved now."""
        try:
            moved = self._move()
        except BlockingIOError:
            stuck = bool(self._pending) or pending_bytes(self.source) > 0
            self.waiting = WAIT_SINK if stuck else WAIT_SOURCE
            return
        except OSError as error:
            self._lose(error.errno)
            return
        self.waiting = WAIT_SINK if self._pending else WAIT_SOURCE
        if moved < 0:
            os.close(self.source)
            self.source = -1
        else:
            self.delivered += moved

    def _lose(self, code: int | None) -> None:
        self.waiting = WAIT_SOURCE
        if self._move == self._splice and code in _NO_SPLICE:
            self._move = self._copy  # an O_APPEND file, for one, takes write but not splice
            return
        self.delivered += len(self._pending)
        self._pending = memoryview(b"")
        self._move = self._discard

    # Each mover answers the bytes that reached the sink, or -1 at the end of the pipe.

    def _splice(self) -> int:
        return os.splice(self.source, self.sink, PIPE_BYTES, flags=_SPLICE_FLAGS) or -1

    def _read(self) -> bool:
        if not self._pending:
            self._pending = memoryview(os.read(self.source, COPY_BYTES))
        return bool(self._pending)

    def _copy(self) -> int:
        if not self._read():
            return -1
        written = os.write(self.sink, self._pending)
        self._pending = self._pending[written:]
        return written

    def _copy_to_socket(self) -> int:
        if not self._read():
            return -1
        sent = self._socket.send(self._pending, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
        self._pending = self._pending[sent:]
        return sent

    def _discard(self) -> int:
        return len(os.read(self.source, COPY_BYTES)) or -1


class Input:
    """The input stream: from `source` into a socket pair, whose other end the supervisor reads.

    We keep that other end as well, so that what a supervisor had not consumed when it died is still there for the next.
    """

    def __init__(self, source: int) -> None:
        self.source = source
        self.sent = 0
        self.eof = False
        self._pending = memoryview(b"")
        self._near, far = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        self._far = far
        self._near.setblocking(False)

    @property
    def far_fd(self) -> int:
        """The end that is the supervisor's."""
        return self._far.fileno()

    @property
    def taken(self) -> int:
        """Bytes that a supervisor has taken out of the socket, which it does when the guest has them."""
        return self.sent - pending_bytes(self._far.fileno())

    def interest(self) -> tuple[int, int]:
        """(descriptor, poll mask) of what this stream waits for."""
        if self._pending:
            return self._near.fileno(), select.POLLOUT
        return self.source, select.POLLIN

    def pump(self) -> None:
        """Move what can be moved now; notes the end of the input in `eof`."""
        try:
            if not self._pending:
                self._pending = memoryview(os.read(self.source, COPY_BYTES))
                if not self._pending:
                    self._finish()
                    return
            sent = self._near.send(self._pending, _socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except OSError:
            # A hung-up terminal reads as EIO, a descriptor closed by the caller as EBADF: no more input either way.
            self._finish()
            return
        self.sent += sent
        self._pending = self._pending[sent:]

    def _finish(self) -> None:
        self.eof = True
        self._pending = memoryview(b"")
        self._near.shutdown(_socket.SHUT_WR)
