# SPDX-License-Identifier: Apache-2.0
"""One forwarded connection: between a socket on the host and a connection that the agent holds in the guest.

Each way ends by itself, as the two ends of a connection do. One that breaks breaks the other, and whoever is left is told so
by a reset. Nothing is kept here: who does not read holds up who sends, through both kernels and the agent's bound.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from kata_fsm.effects.agent.bulk import Bulk
from kata_fsm.errors import EffectError
from kata_fsm.limits import STDIN_BYTES
from kata_fsm.supervisor.reading import AgentLied, StreamReader
from kata_fsm.supervisor.writing import write

if TYPE_CHECKING:
    from kata_fsm.effects.agent.link import Link

# SO_LINGER. What is closed before its end, also by our death, must not look like an end: the other side gets a reset.
_BROKEN, _WHOLE = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)
_RECEIVED = 1  # the number that the agent gives the stream of what comes from the guest

Lied = Callable[[AgentLied], Awaitable[object]]


def unfinished(sock: socket.socket) -> None:
    """Closing it breaks the connection, whoever does it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _BROKEN)


async def relay(link: Link, name: str, sock: socket.socket, lied: Lied) -> str:
    """Move bytes until both ways have ended; why the connection broke, if it did. Closing `sock` is left to the caller."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    unfinished(sock)
    broken = ""
    async with trio.open_nursery() as nursery:

        async def way(move: Callable[[], Awaitable[None]]) -> None:
            nonlocal broken
            try:
                await move()
            except AgentLied as lie:
                broken = str(lie)
                await lied(lie)
            except EffectError as error:
                broken = f"in the guest: {error.message}"
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                broken = f"on the host: {error.__cause__ or error}"
            if broken:
                nursery.cancel_scope.cancel()

        nursery.start_soon(way, lambda: _from_guest(link, name, sock, nursery))
        nursery.start_soon(way, lambda: _to_guest(link, name, sock))
    if not broken:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _WHOLE)
    return broken


async def _from_guest(link: Link, name: str, sock: socket.socket, nursery: trio.Nursery) -> None:
    """Raises, besides what writing does, `AgentLied`, and `EffectError` when the guest's end broke."""
    reader = StreamReader(link, "", name, _RECEIVED, lambda: False)
    offset = 0
    async with trio.lowlevel.FdStream(os.dup(sock.fileno())) as target:
        while True:
            asked = reader.ask(nursery, offset)
            await asked.come.wait()
            if asked.lie is not None:
                raise asked.lie
            if asked.over:
                raise EffectError("ReadStream", asked.why)
            await (asked.content.pour(target) if isinstance(asked.content, Bulk) else target.send_all(asked.content))
            offset = asked.end
            if asked.eof:
                sock.shutdown(socket.SHUT_WR)
                return


async def _to_guest(link: Link, name: str, sock: socket.socket) -> None:
    """Raises, besides what reading does, `AgentLied`, and `EffectError` when the guest takes no more."""
    source = trio.socket.from_stdlib_socket(sock)
    offset = 0
    while True:
        data = await source.recv(STDIN_BYTES)
        await write(link, "", name, offset, data, eof=not data)
        if not data:
            return
        offset += len(data)
