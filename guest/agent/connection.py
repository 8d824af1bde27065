# SPDX-License-Identifier: Apache-2.0
"""Bytes in and out of one transport: the serial port, or one vsock connection.

The descriptor is watched once, edge-triggered, and always read and written until it would block. This is what makes a port
without a host harmless: it is hung up for ever, which level-triggered epoll would report for ever, but the edge comes once,
and the next edge when a host connects.

A serial port has no beginning. A hang-up, a stalled partial frame or a HELLO (kata_wire.session) ends the session: what
was still to be sent is dropped, and `on_reset` cancels the calls that only wait. A socket that ends is closed.

The queue of answers is bounded: while more than `_QUEUE_HIGH_BYTES` wait, no further request is read.
"""

from __future__ import annotations

import os
from time import monotonic

from kata_wire.errors import FrameError, WireError
from kata_wire.session import STALL_S, AgentSession, is_hello
from kata_wire.table import Elsewhere

from .loop import EDGE, HANGUP, READABLE, WRITABLE, Loop, Timer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kata_wire.ttrpc import Frame

    Buffer = bytes | bytearray | memoryview

_SERIAL_READ_BYTES = 4096  # virtio_console hands out one page at a time (drivers/char/virtio_console.c, port_fops_read)
_SOCKET_READ_BYTES = 256 << 10
_SERIAL_WRITE_BYTES = 32 << 10  # and takes at most this much at a time (port_fops_write)
_QUEUE_HIGH_BYTES = 8 << 20
_QUEUE_LOW_BYTES = 4 << 20


class Connection:
    """See the head of this file. `on_frame(connection, frame)`, `on_bad_frame(connection, stream id, message)`."""

    def __init__(
        self,
        loop: Loop,
        fd: int,
        *,
        serial: bool,
        on_frame: Callable[[Connection, Frame], None],
        on_bad_frame: Callable[[Connection, int, str], None],
        on_reset: Callable[[Connection], None],
    ) -> None:
        self._loop = loop
        self._fd = fd
        self._serial = serial
        self._on_frame = on_frame
        self._on_bad_frame = on_bad_frame
        self._on_reset = on_reset
        self._session = AgentSession()
        self._read_bytes = _SERIAL_READ_BYTES if serial else _SOCKET_READ_BYTES
        self._queue: list[Buffer | Elsewhere] = []
        self._queued_bytes = 0
        self._held_back = False
        self._hung_up = False
        self._stall: Timer | None = None
        self._last_byte_s = 0.0
        self.generation = 0  # an answer to an earlier generation's call must not be sent
        self.closed = False
        os.set_blocking(fd, False)
        self._blocked = False  # what is queued waits for room
        loop.watch(fd, READABLE | EDGE, self._on_events)

    def send(self, *parts: Buffer | Elsewhere) -> None:
        """Queue one frame and write what can be written. A memoryview must stay as it is until it was written."""
        if self.closed:
            return
        joined: list[Buffer] = []
        for part in parts:
            self._queued_bytes += len(part)
            if isinstance(part, Elsewhere) or len(part) > _SERIAL_WRITE_BYTES:
                if joined:
                    self._queue.append(b"".join(joined))
                    joined = []
                self._queue.append(part)
            else:
                joined.append(part)
        if joined:
            self._queue.append(b"".join(joined))
        self._flush()

    def close(self) -> None:
        """Give up the transport."""
        if not self.closed:
            self._reset()
            self.closed = True
            self._loop.unwatch(self._fd)
            os.close(self._fd)

    def _on_events(self, events: int) -> None:
        if self._blocked:
            self._flush()
        if events & HANGUP:
            self._held_back = False  # nobody will take what is queued; read on to the hang-up itself
        self._read()

    def _read(self) -> None:
        while not self.closed and not self._held_back:
            try:
                data = os.read(self._fd, self._read_bytes)
            except BlockingIOError:
                self._hung_up = False
                break
            except OSError:
                data = b""
            if not data:
                self._hang_up()
                break
            self._last_byte_s = monotonic()
            self._session.feed(data)
            self._take_frames()
            self._held_back = self._queued_bytes > _QUEUE_HIGH_BYTES
        if self._serial and self._session.partial and self._stall is None:
            self._stall = self._loop.call_later(STALL_S, self._check_stall)

    def _take_frames(self) -> None:
        while not self.closed:
            try:
                frame = self._session.next()
            except FrameError as error:
                self._on_bad_frame(self, error.stream_id, str(error))
                continue
            except WireError as error:
                self._on_bad_frame(self, 0, str(error))
                continue
            if frame is None:
                return
            if not is_hello(frame):
                self._on_frame(self, frame)
            elif self._serial:
                self._reset(keep_input=True)
                self.send(self._session.echo(frame))
            else:
                self._on_bad_frame(self, 0, "a hello frame belongs on a serial port")

    def _check_stall(self) -> None:
        self._stall = None
        if not self._session.partial:
            return
        left_s = self._last_byte_s + STALL_S - monotonic()
        if left_s > 0:
            self._stall = self._loop.call_later(left_s, self._check_stall)
        else:
            self._session.reset()

    def _hang_up(self) -> None:
        """A read found nothing and nobody. On the port only the first time counts, until somebody is there again.

        The kernel learns of the next host by another queue than its bytes: they may be read, and even be whole requests,
        while the port still says that it is hung up. But when it says so for the first time, all is old that was read.
        """
        if not self._serial:
            self.close()
        elif not self._hung_up:
            self._hung_up = True
            self._reset()

    def _reset(self, *, keep_input: bool = False) -> None:
        """End the session: its answers are for nobody."""
        self.generation += 1
        self._queue.clear()
        self._queued_bytes = 0
        self._held_back = False
        if not keep_input:
            self._session.reset()
        self._on_reset(self)

    def _flush(self) -> None:
        queue = self._queue
        while queue and not self.closed:
            first = queue[0]
            try:
                if isinstance(first, Elsewhere):
                    self._queued_bytes -= first.move(self._fd)
                    if not len(first):
                        del queue[0]
                    continue
                written = self._write(first)
            except BlockingIOError:
                self._wait_for_room(True)
                return
            except OSError:
                self._hang_up()
                return
            self._wrote(written)
        if self._blocked and not self.closed:
            self._wait_for_room(False)
        if self._held_back and self._queued_bytes <= _QUEUE_LOW_BYTES:
            self._held_back = False
            self._loop.call_later(0, self._read)  # not from here: `send` is called in the middle of a call

    def _wait_for_room(self, wanted: bool) -> None:
        """Be told when there is room only while something waits for it: the port has news of its room at every write."""
        if wanted != self._blocked:
            self._blocked = wanted
            self._loop.change(self._fd, READABLE | EDGE | (WRITABLE if wanted else 0))

    def _wrote(self, count: int) -> None:
        """Take the first `count` bytes off the queue; they are all in memory."""
        queue = self._queue
        self._queued_bytes -= count
        while count:
            first = queue[0]
            assert not isinstance(first, Elsewhere)
            if count < len(first):
                queue[0] = memoryview(first)[count:]
                return
            count -= len(first)
            del queue[0]

    def _write(self, first: Buffer) -> int:
        """What is at the head of the queue, as much of it as one call takes."""
        if len(first) >= _SERIAL_WRITE_BYTES and self._serial:
            return self._write_large(memoryview(first))
        # On the port every write is one buffer of the device and one exit of the VM: fill it.
        following = self._queue[1] if len(self._queue) > 1 else b""
        if isinstance(following, Elsewhere) or not following:
            return os.write(self._fd, first)
        if not self._serial:
            return os.writev(self._fd, (first, following))
        return os.write(self._fd, b"".join((first, memoryview(following)[: _SERIAL_WRITE_BYTES - len(first)])))

    def _write_large(self, view: memoryview) -> int:
        """As much as is taken at once. A loop of its own: a large answer is a hundred writes."""
        fd, size, written = self._fd, len(view), 0
        try:
            while written < size:
                written += os.write(fd, view[written : written + _SERIAL_WRITE_BYTES])
        except BlockingIOError:
            if not written:
                raise
        return written
