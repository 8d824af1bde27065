# SPDX-License-Identifier: Apache-2.0
"""The output of a process that prints much: kept in a pipe instead of a ring, so that it never passes our memory.

splice(2) moves what the process wrote from its pipe into ours, page by page. An answer to the host is a tee(2) of that,
more references to the same pages, in a pipe of its own, from where it goes through a small one into the transport. There
each page is copied once (drivers/char/virtio_console.c, port_fops_splice_write). What the host has acknowledged is spliced
into /dev/null. So a byte is copied once instead of twice, and a few calls move megabytes.

The small pipe is not for looks. Of a pipe that it does not take whole, that driver sends as many pages as the pipe has, the
others as garbage: QEMU calls the device broken ("Desc next is 64"). So it is given a pipe to be emptied.

Loaded when the first stream has proved to be large: `_ctypes`, which tee needs, is worth it for nobody else.
"""

from __future__ import annotations

import os
from _ctypes import call_cdeclfunction, dlopen, dlsym
from errno import EIO
from fcntl import F_SETPIPE_SZ, fcntl, ioctl
from sys import byteorder

from kata_wire.table import Elsewhere

PIPE_BYTES = (8 << 20, 4 << 20, 1 << 20)  # the first that is granted
_COPIED_BYTES_MAX = 32 << 10  # so little is better sent together with its head
# One write to the device. It takes 128 before it says that it is full, so this bounds what the kernel copies for a host that
# does not read; a table of the pages must be had without waiting for memory; and QEMU takes 1024 at most.
_STRIDE_BYTES = 256 << 10
_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_FIONREAD = 0x541B

_tee = dlsym(dlopen(None, 0), "tee")  # type: ignore[arg-type]  # the C library's; `os` has none


class _Pipe:
    """Both ends of one of ours. It is closed with its last reference, wherever that is dropped."""

    __slots__ = ("reader", "writer")

    def __init__(self, sizes: tuple[int, ...]) -> None:
        """`sizes`: the first that is granted. Raises OSError."""
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for size in sizes:
            try:
                fcntl(self.reader, F_SETPIPE_SZ, size)
            except OSError:
                continue  # less fits, and the rest waits where it is
            break

    def __del__(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


class _Way:
    """The pipes from what is kept to the transport."""

    __slots__ = ("large", "small")

    def __init__(self) -> None:
        self.large = _Pipe(PIPE_BYTES)
        self.small = _Pipe((_STRIDE_BYTES,))


class Answer(Elsewhere):
    """Bytes on their way to the host."""

    __slots__ = ("_kept", "_left", "_staged", "_way")

    def __init__(self, kept: Kept, way: _Way, size: int) -> None:
        self._kept = kept
        self._way = way
        self._left = size
        self._staged = 0  # of these, in the small pipe

    def __len__(self) -> int:
        return self._left

    def __bytes__(self) -> bytes:
        """All of them, taken. For an answer of which nothing was moved."""
        data = os.read(self._way.large.reader, self._left)
        self._gone(len(data))
        return data

    def move(self, fd: int) -> int:
        large, stage, small = self._way.large.reader, self._way.small.writer, self._way.small.reader
        left, staged = self._left, self._staged
        try:
            while left:
                if not staged:
                    staged = os.splice(large, stage, left, flags=_FLAGS)
                count = os.splice(small, fd, staged, flags=_FLAGS)
                if not count:  # the kernel had no memory for the device's table, when it had taken the pages already
                    raise OSError(EIO, "the transport has lost bytes")
                staged -= count
                left -= count
        except BlockingIOError:
            if left == self._left:
                raise
        finally:
            moved = self._left - left
            self._staged = staged
            self._gone(moved)
        return moved

    def _gone(self, count: int) -> None:
        self._left -= count
        if count and not self._left:
            self._kept.reuse(self._way)


class Kept:
    """What a process wrote and the host has not acknowledged."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._pipe = _Pipe(PIPE_BYTES)
        self._spare: _Way | None = _Way()
        self._null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._size = 0
        self.full = False  # though fewer bytes are in it than it could hold: a page of each small write is a page

    def take(self, source: int, limit: int) -> int:
        """Move what is in the pipe `source`, at most `limit` bytes; 0 at its end. BlockingIOError: nothing, or no room."""
        try:
            count = os.splice(source, self._pipe.writer, limit, flags=_FLAGS)
        except BlockingIOError:
            self.full = self._size > 0 and _unread(source) > 0
            raise
        self._size += count
        return count

    def drop(self, count: int) -> None:
        """Forget the first `count` bytes."""
        self._size -= count
        self._discard(self._pipe.reader, count)
        self.full = False

    def answer(self, limit: int, skip: int = 0) -> Answer | bytes:
        """The first bytes after `skip` of them, at most `limit`; all stay kept."""
        limit = min(limit, self._size - skip)
        if limit <= 0:
            return b""
        way, self._spare = self._spare or _Way(), None
        size = call_cdeclfunction(_tee, (self._pipe.reader, way.large.writer, skip + limit, _FLAGS)) - skip
        if size <= 0:
            raise OSError(EIO, "tee of what is kept")
        self._discard(way.large.reader, skip)
        answer = Answer(self, way, size)
        return answer if size > _COPIED_BYTES_MAX else bytes(answer)

    def _discard(self, reader: int, count: int) -> None:
        while count:
            count -= os.splice(reader, self._null, count, flags=_FLAGS)

    def reuse(self, way: _Way) -> None:
        """An answer has left, and its pipes are empty."""
        self._spare = way

    def close(self) -> None:
        """Forget everything. Answers on their way are not hurt."""
        os.close(self._null)
        del self._pipe, self._spare


def _unread(fd: int) -> int:
    buffer = bytearray(4)
    ioctl(fd, _FIONREAD, buffer)
    return int.from_bytes(buffer, byteorder)
