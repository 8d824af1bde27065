# SPDX-License-Identifier: Apache-2.0
"""TCP connections to the guest's own `localhost`, for somebody who connects to it in the pod's namespace on the host. Their
bytes are moved by the calls for the streams of processes, with the same bounds; each way ends by itself.

A connection lives as long as the session that opened it: nobody else could go on with it.
"""

from __future__ import annotations

import os
from _socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_TCP,
    SHUT_WR,
    SO_ERROR,
    SO_LINGER,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
    socket,
)

from kata_wire.envelope import RESOURCE_EXHAUSTED

from .errors import RpcError, from_os_error, invalid, precondition
from .loop import WRITABLE, Notice
from .streams import Input, Output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from .agent import Agent
    from .loop import Loop, Wait

    Message = dict[str, Any]
    Steps = Generator[Wait, bool, Message]

CONNECTIONS_MAX = 128  # two descriptors each
RING_BYTES = 256 << 10  # of what came and the host has not acknowledged; more waits with whoever sends it
_LOCALHOST = ((AF_INET, "127.0.0.1"), (AF_INET6, "::1"))
_AT_ONCE = b"\1\0\0\0\0\0\0\0"  # struct linger: what is unsent is dropped, and the other end told
_ID_CHARS_MAX = 64


class _Incoming(Output):
    """What the other end sends."""

    def _ring_max(self) -> int:
        return RING_BYTES

    def _fill_ring(self, free: int) -> int:
        try:
            return super()._fill_ring(free)
        except BlockingIOError:
            raise
        except OSError as error:  # reset: what came before has been read by now
            self.broken = f"the connection broke: {error.strerror}"
            return 0


class _Outgoing(Input):
    """What it is sent."""

    def __init__(self, loop: Loop, fd: int, closed: Callable[[], None]) -> None:
        super().__init__(loop, fd, terminal=False)
        self._closed = closed

    @property
    def is_open(self) -> bool:
        """Whether something may still leave."""
        return self._fd >= 0

    def abort(self) -> None:
        """Close now, and say that the connection is broken."""
        if self.is_open:
            _with_socket(self._fd, lambda sock: sock.setsockopt(SOL_SOCKET, SO_LINGER, _AT_ONCE))
        self.close()

    def _end(self) -> None:
        _with_socket(self._fd, lambda sock: sock.shutdown(SHUT_WR))
        self.close()

    def close(self) -> None:
        """As any input; then the connection may be over."""
        super().close()
        self._closed()


class Connection:
    """One that has come about. It takes over `sock`. Raises OSError; then that is closed."""

    def __init__(self, agent: Agent, name: str, sock: socket, session: object) -> None:
        self._agent = agent
        self._id = name
        self._left = False
        self.session = session
        self.name = f"connection `{name}`"
        try:
            sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            reader = os.dup(sock.fileno())  # one descriptor each way, because epoll knows a descriptor once
        except OSError:
            sock.close()
            raise
        self.outputs: dict[int, Output] = {1: _Incoming(agent.loop, reader)}
        self.stdin = _Outgoing(agent.loop, sock.detach(), self._forget)
        agent.connections[name] = self

    def close(self, *, abort: bool) -> None:
        """The host has left. What was accepted for the other end still leaves, unless the connection is to be aborted."""
        self._left = True
        self.outputs[1].close()
        if abort:
            self.stdin.abort()
        else:
            self.stdin.finish()
        self._forget()

    def _forget(self) -> None:
        if self._left and not self.stdin.is_open:
            self._agent.connections.pop(self._id, None)


def _with_socket(fd: int, work: Callable[[socket], None]) -> None:
    """Do something with a socket of which there is the descriptor alone. A connection that broke meanwhile is no failure."""
    sock = socket(AF_INET, SOCK_STREAM, 0, fd)
    try:
        work(sock)
    except OSError:
        pass
    finally:
        sock.detach()


def open_connection(agent: Agent, request: Message) -> Steps:
    """At 127.0.0.1, else at ::1, as an engine tries them. The caller's patience is the limit."""
    name, port = request.get("id", ""), request.get("port", 0)
    if not 0 < len(name) <= _ID_CHARS_MAX or not 0 < port < 1 << 16:
        raise invalid(f"`id` has `{len(name)}` characters and `port` is `{port}`")
    session = agent.caller
    if name in agent.connections:
        raise precondition(f"{agent.connections[name].name} is there already")
    failures = []
    for family, address in _LOCALHOST:
        try:
            sock = yield from _connect(agent.loop, family, address, port)
        except OSError as error:
            failures.append(error)
            continue
        if name in agent.connections or len(agent.connections) >= CONNECTIONS_MAX:
            sock.close()
            raise RpcError(RESOURCE_EXHAUSTED, f"`{len(agent.connections)}` connections are open")
        try:
            Connection(agent, name, sock, session)
        except OSError as error:
            raise from_os_error(error, f"a connection to port `{port}`") from None
        return {}
    raise precondition(f"port `{port}` of the guest's `localhost`: {failures[0].strerror}")


def _connect(loop: Loop, family: int, address: str, port: int) -> Generator[Wait, bool, socket]:
    """Raises OSError."""
    sock = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    fd = sock.fileno()
    try:
        try:
            sock.connect((address, port))
        except BlockingIOError:
            decided = Notice()
            loop.watch(fd, WRITABLE, lambda events: decided.notify())
            try:
                yield decided.wait()
            finally:
                loop.unwatch(fd)
            code = sock.getsockopt(SOL_SOCKET, SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code)) from None
    except BaseException:  # also when the caller is gone
        sock.close()
        raise
    return sock


def close_connection(agent: Agent, request: Message) -> Message:
    """One that nobody knows is closed already."""
    connection = agent.connections.get(request.get("id", ""))
    if connection is not None:
        connection.close(abort=request.get("abort", False))
    return {}
