# SPDX-License-Identifier: Apache-2.0
"""Output of the guest's on its way through the supervisor, without passing its memory.

A large answer to ReadStream ends with the bytes themselves. They are spliced from the connection's socket into a pipe, and
from there into the shim's: the kernel moves pages. What the pipe cannot hold is kept in memory, so that a stream that nobody
reads never holds up the connection, which carries everything else as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from fcntl import F_SETPIPE_SZ, fcntl

import trio

LARGE_BYTES = 64 << 10  # for less, copying is cheaper than the calls
HEAD_BYTES_MAX = 64  # of such an answer, before its data
_PIPE_BYTES = 1 << 20  # what an ordinary user may have
_PIPES_MAX = 4  # as much as an answer holds
_RECEIVE_BYTES = 256 << 10
_FLAGS = 0x01 | 0x02  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK
_PAYLOAD, _DATA, _OFFSET, _EOF = 0x12, 0x0A, 0x10, 0x18  # tags in ttrpc's Response and in ReadStreamResponse


def split(payload: bytes, length: int) -> tuple[bytes, int] | None:
    """A successful answer to ReadStream whose data comes last: (the message without them, where in `payload` they begin).

    `payload` is the beginning of one of `length` bytes. None for anything else, and for one of which too little has come.
    """
    try:
        at, size = _varint(payload, 1)
        if payload[0] != _PAYLOAD or at + size != length:
            return None
        begin = at
        while payload[at] in (_OFFSET, _EOF):
            at, _ = _varint(payload, at + 1)
        if payload[at] != _DATA:
            return None
        head = payload[begin:at]
        at, size = _varint(payload, at + 1)
    except IndexError:
        return None
    return (head, at) if at + size == length else None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(where it ends, its value). Raises IndexError."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return at, value
        shift += 7


class _Pipe:
    """Closed with its last reference, wherever that is dropped: whoever fills it may outlive whoever asked for it."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.held = 0
        try:
            fcntl(self.writer, F_SETPIPE_SZ, _PIPE_BYTES)
        except OSError:
            pass  # over the user's quota: what does not fit goes through our memory

    def __del__(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


class Bulk:
    """The data of one answer. `begun` is told how many bytes they are, before they come."""

    def __init__(self, begun: Callable[[int], object] = lambda size: None) -> None:
        self._begun = begun
        self._pipes: list[_Pipe] = []  # filled one after the other
        self._filling = 0  # index of the one that is being filled
        self._rest = bytearray()  # what did not fit: it comes after what is in the pipes

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(pipe.held for pipe in self._pipes) + len(self._rest)

    async def fill(self, first: bytes, source: trio.socket.SocketType, left: int) -> bool:
        """Take `first`, and `left` bytes from the socket; False when that ended before. Raises OSError."""
        self._begun(len(first) + left)
        if self._has_pipe():
            pipe = self._pipes[0]
            pipe.held = os.write(pipe.writer, first)
            first = first[pipe.held :]
        self._rest += first
        while left:
            await trio.lowlevel.wait_readable(source)
            try:
                count = self._take(source.fileno(), left)
            except BlockingIOError:
                continue
            if not count:
                return False
            left -= count
        return True

    def _take(self, source: int, left: int) -> int:
        """What there is, at most `left` bytes; 0 at the end of the connection."""
        while not self._rest and self._has_pipe():
            pipe = self._pipes[self._filling]
            try:
                count = os.splice(source, pipe.writer, left, flags=_FLAGS)
            except OSError:  # it is full, or this kind of socket cannot do it
                if not pipe.held:
                    break
                self._filling += 1
            else:
                pipe.held += count
                return count
        data = os.read(source, min(left, _RECEIVE_BYTES))
        self._rest += data
        return len(data)

    def _has_pipe(self) -> bool:
        """Whether there is the pipe that is to be filled now, made if it may be."""
        if self._filling == len(self._pipes) < _PIPES_MAX:
            try:
                self._pipes.append(_Pipe())
            except OSError:
                pass  # out of descriptors: the rest goes through our memory
        return self._filling < len(self._pipes)

    async def pour(self, target: trio.lowlevel.FdStream) -> None:
        """Write all of it. Raises `trio.BrokenResourceError` and `trio.ClosedResourceError`."""
        for pipe in self._pipes:
            while pipe.held:
                fd = target.fileno()
                if fd < 0:
                    raise trio.ClosedResourceError
                try:
                    pipe.held -= os.splice(pipe.reader, fd, pipe.held, flags=_FLAGS)
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(fd)
                except OSError as error:
                    raise trio.BrokenResourceError from error
        rest, self._rest = self._rest, bytearray()
        await target.send_all(rest)
