# SPDX-License-Identifier: Apache-2.0
"""ttrpc frames, without I/O.

A frame is a header of 10 bytes (payload length u32, stream id u32, type u8, flags u8, big endian) and the payload.
Clients use odd stream ids that grow. The limit of 4 MiB is the one of containerd/ttrpc, whose Go and Rust peers
refuse more.

This module runs in the guest: it imports nothing but our errors.
"""

from kata_wire.errors import FrameTooLarge, UnknownFrameType, WireError

HEADER_BYTES = 10
MAX_PAYLOAD_BYTES = 4 << 20
MAX_STREAM_ID = 0xFFFF_FFFF

REQUEST = 0x1
RESPONSE = 0x2
DATA = 0x3
HELLO = 0x7F  # ours, on serial ports only: see session.py
_KNOWN_TYPES = frozenset((REQUEST, RESPONSE, DATA, HELLO))

FLAG_REMOTE_CLOSED = 0x1
FLAG_REMOTE_OPEN = 0x2
FLAG_NO_DATA = 0x4

_COMPACT_BYTES = 1 << 16  # consumed bytes kept before the buffer is cut; cutting moves the rest

Buffer = bytes | bytearray | memoryview


class Frame:
    """One whole frame. `payload` is bytes."""

    __slots__ = ("flags", "payload", "stream_id", "type")

    def __init__(self, stream_id: int, type: int, flags: int, payload: bytes) -> None:
        self.stream_id = stream_id
        self.type = type
        self.flags = flags
        self.payload = payload

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frame):
            return NotImplemented
        return (self.stream_id, self.type, self.flags, self.payload) == (
            other.stream_id,
            other.type,
            other.flags,
            other.payload,
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"Frame(stream_id={self.stream_id}, type={self.type:#x}, flags={self.flags:#x}, {len(self.payload)} bytes)"
        )


def header(stream_id: int, type: int, flags: int, length: int, max_payload: int = MAX_PAYLOAD_BYTES) -> bytes:
    """The 10 bytes before a payload of `length` bytes, for callers that write both with one `writev`."""
    if length > max_payload:
        raise FrameTooLarge(f"payload of `{length}` bytes is over the limit of `{max_payload}`", stream_id)
    if not 0 <= stream_id <= MAX_STREAM_ID:
        raise WireError(f"stream id `{stream_id}` is not a u32")
    if not (0 <= type <= 0xFF and 0 <= flags <= 0xFF):
        raise WireError(f"frame type `{type}` or flags `{flags}` is not a u8")
    return length.to_bytes(4, "big") + stream_id.to_bytes(4, "big") + bytes((type, flags))


def encode(stream_id: int, type: int, flags: int, payload: Buffer) -> bytes:
    """One frame as bytes. Raises FrameTooLarge over 4 MiB."""
    return b"".join((header(stream_id, type, flags, len(payload)), payload))


class Decoder:
    """Cuts a byte stream into frames: `feed` what came, then call `next` until it returns None.

    An oversized or unknown frame raises once from `next`, its payload is dropped as it arrives, and decoding goes on
    behind it. The work is linear in the bytes fed, whatever their chunking, and an oversized payload is never held in
    memory."""

    def __init__(self, max_payload: int = MAX_PAYLOAD_BYTES) -> None:
        self.max_payload = max_payload
        self._buffer = bytearray()
        self._start = 0
        self._skip = 0

    @property
    def partial(self) -> bool:
        """Is a frame begun and not whole? Meaningful after `next` has returned None."""
        return self._skip > 0 or len(self._buffer) > self._start

    @property
    def buffered(self) -> int:
        """Bytes held."""
        return len(self._buffer) - self._start

    def reset(self) -> None:
        """Forget everything: the next byte fed begins a header."""
        self._buffer = bytearray()
        self._start = 0
        self._skip = 0

    def feed(self, data: Buffer) -> None:
        """Take bytes as they came, in any pieces."""
        if self._skip and self.buffered == 0:
            dropped = min(self._skip, len(data))
            self._skip -= dropped
            if dropped == len(data):
                return
            data = memoryview(data)[dropped:]
        self._buffer += data

    def next(self) -> Frame | None:
        """The next whole frame, or None when more bytes are needed.

        Raises FrameTooLarge or UnknownFrameType, once per bad frame, naming its stream id; call again to go on.
        """
        if self._skip:
            self._drop()
            if self._skip:
                return None
        start = self._start
        available = len(self._buffer) - start
        if available < HEADER_BYTES:
            return None
        head = bytes(self._buffer[start : start + HEADER_BYTES])
        length = int.from_bytes(head[0:4], "big")
        stream_id = int.from_bytes(head[4:8], "big")
        kind = head[8]
        if length > self.max_payload:
            self._refuse(length)
            raise FrameTooLarge(
                f"frame of `{length}` bytes on stream `{stream_id}` is over the limit of `{self.max_payload}`",
                stream_id,
            )
        if kind not in _KNOWN_TYPES:
            self._refuse(length)
            raise UnknownFrameType(
                f"frame type `{kind:#x}` on stream `{stream_id}` is unknown; legal are 0x1, 0x2, 0x3", stream_id
            )
        if available < HEADER_BYTES + length:
            return None
        begin = start + HEADER_BYTES
        with memoryview(self._buffer) as view:
            payload = bytes(view[begin : begin + length])
        self._consume(HEADER_BYTES + length)
        return Frame(stream_id, kind, head[9], payload)

    def begun(self, limit: int) -> tuple[Frame, int] | None:
        """The frame that `next` waits for, with at most `limit` bytes of the payload that has come, and its whole length."""
        start = self._start
        if self._skip or self.buffered < HEADER_BYTES:
            return None
        head = bytes(self._buffer[start : start + HEADER_BYTES + limit])
        length = int.from_bytes(head[0:4], "big")
        return Frame(int.from_bytes(head[4:8], "big"), head[8], head[9], head[HEADER_BYTES:]), length

    def release(self) -> bytes:
        """Leave the frame that `begun` showed to the caller: the payload that has come. The rest of it must not be fed."""
        payload = bytes(self._buffer[self._start + HEADER_BYTES :])
        self.reset()
        return payload

    def _refuse(self, length: int) -> None:
        self._consume(HEADER_BYTES)
        self._skip = length
        self._drop()

    def _drop(self) -> None:
        """Drop what has already arrived of a refused payload."""
        dropped = min(self._skip, self.buffered)
        self._skip -= dropped
        self._consume(dropped)

    def _consume(self, count: int) -> None:
        self._start += count
        if self._start == len(self._buffer):
            self._buffer.clear()
            self._start = 0
        elif self._start >= _COMPACT_BYTES and self._start * 2 >= len(self._buffer):
            del self._buffer[: self._start]
            self._start = 0
