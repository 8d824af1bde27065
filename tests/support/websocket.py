# SPDX-License-Identifier: Apache-2.0
"""The streams of the container runtime interface over a WebSocket (RFC 6455, subprotocol `v4.channel.k8s.io`).

Each message begins with a byte that numbers its channel. This subprotocol has no word for the end of stdin.
"""

from __future__ import annotations

import base64
import os
import socket
import struct
from collections import defaultdict
from urllib.parse import urlsplit

STDIN, STDOUT, STDERR, STATUS, RESIZE = range(5)
_BINARY, _CLOSE, _PING, _PONG = 2, 8, 9, 10


class Streams:
    """One connection. `received` holds the bytes of every channel so far; `open` turns False at the other end's close."""

    def __init__(self, connected: socket.socket, url: str) -> None:
        self.socket = connected
        self.received: defaultdict[int, bytes] = defaultdict(bytes)
        self.open = True
        self._left = b""
        self._upgrade(urlsplit(url))

    def _upgrade(self, url) -> None:  # type: ignore[no-untyped-def]  # a split URL
        lines = [
            f"GET {url.path}{'?' + url.query if url.query else ''} HTTP/1.1",
            f"Host: {url.netloc}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            f"Origin: http://{url.netloc}",
            "Sec-WebSocket-Protocol: v4.channel.k8s.io",
        ]
        self.socket.sendall("".join(line + "\r\n" for line in [*lines, ""]).encode())
        while b"\r\n\r\n" not in self._left:
            self._more()
        head, _, self._left = self._left.partition(b"\r\n\r\n")
        assert b" 101 " in head.split(b"\r\n")[0], head.decode(errors="replace")

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the streaming server closed the connection without a word")
        self._left += data

    def _take(self, count: int) -> bytes:
        while len(self._left) < count:
            self._more()
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def _send(self, kind: int, data: bytes) -> None:
        """One frame; a client masks what it sends (RFC 6455, 5.3)."""
        size = len(data)
        length = bytes([0x80 | size]) if size < 126 else struct.pack("!BH", 0x80 | 126, size)
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
        self.socket.sendall(bytes([0x80 | kind]) + length + mask + masked)

    def send(self, channel: int, data: bytes) -> None:
        """Send less than 64 KiB on a channel."""
        self._send(_BINARY, bytes([channel]) + data)

    def read(self) -> None:
        """Receive one frame, by the socket's limit of time."""
        first, second = self._take(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", self._take(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self._take(8))
        data = self._take(size)
        kind = first & 0x0F
        if kind == _CLOSE:
            self.open = False
        elif kind == _PING:
            self._send(_PONG, data)
        elif data:
            self.received[data[0]] += data[1:]

    def read_until(self, channel: int, words: bytes) -> bytes:
        """Receive until the channel's bytes hold `words`; all its bytes so far."""
        while words not in self.received[channel]:
            assert self.open, f"closed before {words!r}: {dict(self.received)}"
            self.read()
        return self.received[channel]

    def read_all(self) -> dict[int, bytes]:
        """Receive until the other end closes; the bytes of every channel."""
        while self.open:
            try:
                self.read()
            except ConnectionError:
                self.open = False
        return dict(self.received)

    def close(self) -> None:
        """Go away without a word, as a client that is killed does."""
        self.socket.close()
