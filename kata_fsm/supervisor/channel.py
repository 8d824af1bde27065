# SPDX-License-Identifier: Apache-2.0
"""The server side of one connection to a supervisor's socket: frames in and out, descriptors with them."""

from __future__ import annotations

import os
import socket
from typing import Any

import trio

from kata_fsm.control import FDS_MAX, Decoder, FrameError, encode, received_fds

_READ_BYTES = 64 << 10
_ANCILLARY_BYTES = socket.CMSG_SPACE(4 * FDS_MAX)


class Channel:
    """One client. Use as a context manager; descriptors that nobody took are closed with it."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._socket = sock
        self._decoder = Decoder()
        self._fds: list[int] = []
        self._send_lock = trio.Lock()
        self.gone = False

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self.gone = True
        self._socket.close()
        for fd in self.take_fds():
            os.close(fd)

    def take_fds(self) -> list[int]:
        """The descriptors received so far; the caller owns them from here."""
        fds, self._fds = self._fds, []
        return fds

    async def receive(self) -> dict[str, Any] | None:
        """The next message; None when the client hung up or sent what is not a frame."""
        while True:
            try:
                message = self._decoder.next()
            except FrameError:
                self.gone = True
                return None
            if message is not None:
                return message
            try:
                data, ancillary, _, _ = await self._socket.recvmsg(
                    _READ_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                )
            except (OSError, trio.ClosedResourceError):  # broken by the peer, or closed by us in another task
                data, ancillary = b"", []
            self._fds += received_fds(ancillary)
            if not data:
                self.gone = True
                return None
            self._decoder.feed(data)

    async def send(self, message: dict[str, Any]) -> bool:
        """Send a message; whether the client was still there to get it."""
        view = memoryview(encode(message))
        async with self._send_lock:
            try:
                while view:
                    view = view[await self._socket.send(view, socket.MSG_NOSIGNAL) :]
            except (OSError, trio.ClosedResourceError):
                self.gone = True
                return False
        return True
