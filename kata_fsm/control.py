# SPDX-License-Identifier: Apache-2.0
"""The client side of a supervisor's socket, and the frames that both sides speak.

A frame is a big-endian u32 length followed by one JSON object in UTF-8. Descriptors ride as SCM_RIGHTS on the first byte
of the frame that announces them with `"fds": n`. Imports C modules and `os` only, so that a shim stays small.
"""

import _socket
import os
import sys

from kata_fsm import cjson
from kata_fsm.errors import Bug, RemoteError, SupervisorGone, SupervisorSilent, SupervisorUnread
from kata_fsm.limits import CONTROL_FRAME_BYTES_MAX

HEADER_BYTES = 4
FDS_MAX = 8
_FD_BYTES = 4
_READ_BYTES = 65536


def encode(message: dict[str, object]) -> bytes:
    """The frame that carries `message`. Raises `Bug` when it is larger than a frame may be."""
    body = cjson.dumps(message).encode("ascii")
    if len(body) > CONTROL_FRAME_BYTES_MAX:
        raise Bug(f"a control frame of {len(body)} bytes is over the limit of {CONTROL_FRAME_BYTES_MAX}")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


class FrameError(Exception):
    """The peer sent what is not a frame. The connection cannot be used any further."""


class Decoder:
    """Frames out of a byte stream: feed bytes, take messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Take in what was read, in any portions."""
        self._buffer += data

    def next(self) -> dict[str, object] | None:
        """The next whole message, or None when more bytes are needed. Raises `FrameError`."""
        if len(self._buffer) < HEADER_BYTES:
            return None
        length = int.from_bytes(self._buffer[:HEADER_BYTES], "big")
        if length > CONTROL_FRAME_BYTES_MAX:
            raise FrameError(f"frame of {length} bytes, at most {CONTROL_FRAME_BYTES_MAX} are legal")
        if len(self._buffer) < HEADER_BYTES + length:
            return None
        body = bytes(self._buffer[HEADER_BYTES : HEADER_BYTES + length])
        del self._buffer[: HEADER_BYTES + length]
        try:
            return cjson.loads_object(body)
        except ValueError as error:
            raise FrameError(f"frame is not JSON: {error}") from None


def _rights(fds: list[int]) -> list[tuple[int, int, bytes]]:
    if not fds:
        return []
    data = b"".join(fd.to_bytes(_FD_BYTES, sys.byteorder, signed=True) for fd in fds)
    return [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, data)]


def received_fds(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in the ancillary data of a `recvmsg`; the caller owns them."""
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            usable = len(data) - len(data) % _FD_BYTES
            for at in range(0, usable, _FD_BYTES):
                fds.append(int.from_bytes(data[at : at + _FD_BYTES], sys.byteorder, signed=True))
    return fds


class Connection:
    """One connection to a supervisor. Blocking, with a limit on each wait; use as a context manager."""

    def __init__(self, path: str, *, timeout_s: float) -> None:
        """Connect to the socket at `path`. Raises `SupervisorGone` when nobody listens there."""
        self.path = path
        self._decoder = Decoder()
        self._sent = 0
        self._heard = False
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        self._socket.settimeout(timeout_s)
        try:
            self._connect()
        except OSError as error:
            self._socket.close()
            raise SupervisorGone(f"no supervisor answers at `{path}`: {error.strerror or error}") from error

    def _connect(self) -> None:
        if len(os.fsencode(self.path)) <= _SUN_PATH_BYTES_MAX:
            self._socket.connect(self.path)
            return
        # A path too long for `sun_path` is reached through a descriptor of its directory.
        directory = os.open(os.path.dirname(self.path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._socket.connect(f"/proc/self/fd/{directory}/{os.path.basename(self.path)}")
        finally:
            os.close(directory)

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor, for polling."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def peer_pid(self) -> int:
        """The process that listens at the other end; 0 when it is not one of ours to see."""
        return int.from_bytes(self._socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)[:4], sys.byteorder)

    def settimeout(self, timeout_s: float) -> None:
        """Change the limit on each wait; 0 makes every call return at once."""
        self._socket.settimeout(timeout_s)

    def send(self, message: dict[str, object], fds: list[int] | None = None) -> None:
        """Send one frame, with descriptors on its first byte. Raises `SupervisorGone`, as `receive` does."""
        frame = memoryview(encode(message))
        self._sent += 1
        try:
            sent = self._socket.sendmsg([frame], _rights(fds or []), _socket.MSG_NOSIGNAL)
            while sent < len(frame):
                sent += self._socket.send(frame[sent:], _socket.MSG_NOSIGNAL)
        except OSError as error:
            raise self._gone(error) from error

    def _gone(self, error: OSError) -> SupervisorGone:
        """What an error of the socket says. One that is reset (ECONNRESET), or was closed before all was sent (EPIPE), was
        closed with something in it that its owner had not read (net/unix/af_unix.c, unix_release_sock): a process that
        is killed closes its descriptors one by one, and still takes connections before it has come to the one that
        listens. If it is all that was said, it was not heard."""
        unread = isinstance(error, ConnectionResetError | BrokenPipeError) and self._sent == 1 and not self._heard
        kind = SupervisorUnread if unread else SupervisorGone
        return kind(f"the supervisor at `{self.path}` went away: {error.strerror or error}")

    def buffered(self) -> dict[str, object] | None:
        """A message that was already read, if a whole one is there."""
        try:
            return self._decoder.next()
        except FrameError as error:
            raise SupervisorGone(f"the supervisor at `{self.path}` sent what is not a frame: {error}") from error

    def fill(self) -> bool:
        """Read once. False at the end of the stream. Raises `BlockingIOError` or `TimeoutError` when there is nothing."""
        data = self._socket.recv(_READ_BYTES)
        self._heard = self._heard or bool(data)
        self._decoder.feed(data)
        return bool(data)

    def receive(self) -> dict[str, object]:
        """The next message. Raises `SupervisorGone` at end of stream; of its kinds `SupervisorUnread` when the one message
        that was sent had not been read, and `SupervisorSilent` when the limit passes without an answer."""
        while True:
            message = self.buffered()
            if message is not None:
                return message
            try:
                alive = self.fill()
            except TimeoutError as error:
                raise SupervisorSilent(
                    f"the supervisor at `{self.path}` did not answer in time",
                    hint="`kata-fsm delete --force` ends one that is stuck",
                ) from error
            except OSError as error:
                raise self._gone(error) from error
            if not alive:
                raise SupervisorGone(
                    f"the supervisor at `{self.path}` hung up before it answered",
                    hint="`kata-fsm state` starts another and tells what came of it",
                )


_SUN_PATH_BYTES_MAX = 107  # sizeof(sockaddr_un.sun_path) - 1


def raise_error(reply: dict[str, object]) -> dict[str, object]:
    """`reply` itself, unless it is an error frame: then `RemoteError`."""
    error = reply.get("error")
    if isinstance(error, dict):
        raise RemoteError(error)
    return reply


def lock_is_free(path: str) -> bool:
    """Whether nobody holds the supervisor lock at `path` (a missing file is free).

    The probe takes a shared lock for an instant: a supervisor that starts must therefore wait a moment for its lock
    rather than fail at the first refusal.
    """
    import fcntl

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
