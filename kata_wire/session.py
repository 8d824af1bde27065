# SPDX-License-Identifier: Apache-2.0
"""Starting afresh on a serial port, where a connection has no beginning.

A virtio-serial port carries one endless byte stream: a new supervisor inherits the tail of its predecessor's replies,
and the agent may wait for the rest of a request whose writer is dead. So the host opens with HELLO, a ttrpc frame of
type 0x7f on stream 0 whose payload is 16 bytes of magic and 16 random bytes. The agent forgets the replies it still
owes and echoes the frame; the host drops every byte until it has seen its own echo. The random bytes make an echo
unmistakable: neither a stale echo nor the output of a container can contain them.

The agent does not look for HELLO inside frames, because a container's stdin could then forge one and inject calls. It
looks for one only where no frame can be: after the port hung up, and after a frame got no byte for `STALL_S`. The host
repeats HELLO every `HELLO_RESEND_S`, which is longer, so that a repeat finds the agent looking. Repeats are echoed too;
`HostSession` drops those late echoes. A connection on which no HELLO ever came, such as one over vsock, which has a
beginning, is plain ttrpc.

This module runs in the guest: it imports nothing but ours.
"""

from kata_wire import ttrpc
from kata_wire.errors import WireError

MAGIC = b"katafsm-hello\x00\x01\r"
NONCE_BYTES = 16
PAYLOAD_BYTES = len(MAGIC) + NONCE_BYTES
STALL_S = 2.0
HELLO_RESEND_S = 2.5

_OPENING = ttrpc.header(0, ttrpc.HELLO, 0, PAYLOAD_BYTES) + MAGIC


def hello(nonce: bytes) -> bytes:
    """The frame that opens a session. `nonce` is 16 random bytes."""
    if len(nonce) != NONCE_BYTES:
        raise WireError(f"nonce has `{len(nonce)}` bytes; it needs `{NONCE_BYTES}`")
    return _OPENING + nonce


def is_hello(frame: ttrpc.Frame) -> bool:
    """Is this frame a well-formed HELLO?"""
    return (
        frame.type == ttrpc.HELLO
        and frame.stream_id == 0
        and frame.flags == 0
        and len(frame.payload) == PAYLOAD_BYTES
        and frame.payload.startswith(MAGIC)
    )


class _Search:
    """Finds the first `pattern` in a byte stream, holding no more of it than the pattern's length."""

    def __init__(self, pattern: bytes) -> None:
        self._pattern = pattern
        self._tail = b""
        self.dropped = 0

    def feed(self, data: ttrpc.Buffer) -> bytes | None:
        """The bytes from the pattern on, or None when it has not come yet."""
        joined = self._tail + bytes(data)
        found = joined.find(self._pattern)
        if found >= 0:
            self.dropped += found
            self._tail = b""
            return joined[found:]
        kept = min(len(joined), len(self._pattern) - 1)  # the pattern may have begun in these
        self.dropped += len(joined) - kept
        self._tail = joined[len(joined) - kept :]
        return None


class HostSession:
    """The host's side.

    Send `hello()` at once and every HELLO_RESEND_S until `established`, and nothing else; then `feed` and `next` as
    with a Decoder. A session is for one connection to the port: make a new one, with a new nonce, for the next.
    """

    def __init__(self, nonce: bytes, decoder: ttrpc.Decoder | None = None) -> None:
        self._hello = hello(nonce)
        self._search = _Search(self._hello)
        self._decoder = decoder if decoder is not None else ttrpc.Decoder()
        self.established = False

    @property
    def dropped(self) -> int:
        """How many bytes of an earlier session came before the echo."""
        return self._search.dropped

    def hello(self) -> bytes:
        """The bytes to send, the same at every repeat."""
        return self._hello

    def feed(self, data: ttrpc.Buffer) -> None:
        """Take bytes as they came; those before the echo are dropped."""
        if self.established:
            self._decoder.feed(data)
            return
        rest = self._search.feed(data)
        if rest is not None:
            self.established = True
            self._decoder.feed(rest[len(self._hello) :])

    def next(self) -> ttrpc.Frame | None:
        """The next frame of this session, as Decoder.next; late echoes are left out."""
        while True:
            frame = self._decoder.next()
            if frame is None or frame.type != ttrpc.HELLO:
                return frame

    def begun(self, limit: int) -> tuple[ttrpc.Frame, int] | None:
        """As Decoder.begun."""
        return self._decoder.begun(limit) if self.established else None

    def release(self) -> bytes:
        """As Decoder.release."""
        return self._decoder.release()


class AgentSession:
    """The agent's side: `feed`, then call `next` until None.

    On a HELLO frame (`is_hello`), forget every reply still owed and send `echo(frame)` before anything else. When
    `partial` holds and a poll of STALL_S brought no byte, or when the port hangs up, call `reset()`.
    """

    def __init__(self, decoder: ttrpc.Decoder | None = None) -> None:
        self._decoder = decoder if decoder is not None else ttrpc.Decoder()
        self._search: _Search | None = None
        self.generation = 0  # grows with every HELLO: a reply remembers the one it belongs to

    @property
    def partial(self) -> bool:
        """Does the decoder wait for the rest of a frame?"""
        return self._decoder.partial

    @property
    def lost(self) -> bool:
        """Is everything dropped until a HELLO comes?"""
        return self._search is not None

    def reset(self) -> None:
        """Give up a frame that will not be finished; from a host that says HELLO, drop what comes until the next one."""
        self._decoder.reset()
        if self.generation:
            self._search = _Search(_OPENING)

    def feed(self, data: ttrpc.Buffer) -> None:
        """Take bytes as they came."""
        if self._search is None:
            self._decoder.feed(data)
            return
        rest = self._search.feed(data)
        if rest is not None:
            self._search = None
            self._decoder.feed(rest)

    def next(self) -> ttrpc.Frame | None:
        """The next frame, HELLO included. Raises as Decoder.next, and WireError for a malformed HELLO."""
        frame = self._decoder.next()
        if frame is not None and frame.type == ttrpc.HELLO:
            if not is_hello(frame):
                raise WireError(f"hello frame on stream `{frame.stream_id}` is malformed")
            self.generation += 1
        return frame

    @staticmethod
    def echo(frame: ttrpc.Frame) -> bytes:
        """The answer to a HELLO: the same frame."""
        return ttrpc.encode(frame.stream_id, frame.type, frame.flags, frame.payload)
