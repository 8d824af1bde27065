# SPDX-License-Identifier: Apache-2.0
"""Connections to `localhost` in the pod's namespace on the host, forwarded to the guest's: port-forward of the CRI.

The guest is dialled first, and whoever knocked gets what it answers (see `effects/localhost`). A forwarded connection
is no state of the pod's: it ends with this process or with the guest, is recorded nowhere, and the next supervisor simply
stands in the doorway again.
"""

from __future__ import annotations

import itertools
import socket
import sys
from collections.abc import Awaitable
from typing import TYPE_CHECKING

import trio

from kata_fsm.effects.agent.client import EXTENSION, AgentCallError
from kata_fsm.errors import EffectError
from kata_fsm.limits import (
    FORWARD_ACCEPT_S,
    FORWARD_DIAL_S,
    FORWARD_LEFT_S,
    FORWARD_SEEN_MAX,
    FORWARD_TOLD_MAX,
    FORWARDED_MAX,
    RETRY_S,
)
from kata_fsm.supervisor.forwarded import Lied, relay, unfinished

if TYPE_CHECKING:
    from kata_fsm.effects.agent.link import Link
    from kata_fsm.effects.localhost.doorway import Doorway
    from kata_fsm.effects.localhost.packets import Knock

Key = tuple[int, int, int]


async def serve(link: Link, opening: Awaitable[Doorway | None], lied: Lied) -> None:
    """Forward until cancelled. `lied` is told of an agent that is not to be believed."""
    try:
        door = await opening
    except OSError as error:
        reason = error.strerror or error
        print(f"supervisor: port-forward will find every port closed: {reason}", file=sys.stderr, flush=True)
        return
    if door is None:
        return
    try:
        await Forwarder(link, door, lied).run()
    finally:
        door.close()


class _Expected:
    """A connection that was let in and has not been accepted yet."""

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.come = trio.Event()


class Forwarder:
    """All forwarded connections of a pod."""

    def __init__(self, link: Link, door: Doorway, lied: Lied) -> None:
        self._link = link
        self._door = door
        self._lied = lied
        self._names = (f"forwarded-{number}" for number in itertools.count(1))
        self._open = 0  # from the knock to the end
        self._seen: dict[tuple[Key, int], None] = {}  # first packets, oldest first
        self._expected: dict[Key, _Expected] = {}
        self._told = 0

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            for family in self._door.listeners:
                nursery.start_soon(self._hear, family, nursery)
                nursery.start_soon(self._accept, family)

    async def _hear(self, family: int, nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._door.taps[family])
            for knock in self._door.knocks(family):
                if self._is_new(knock) and self._open < FORWARDED_MAX:
                    self._seen[knock.key, knock.seq] = None
                    self._open += 1
                    nursery.start_soon(self._answer, knock)
                await trio.lowlevel.checkpoint()

    def _is_new(self, knock: Knock) -> bool:
        while len(self._seen) > FORWARD_SEEN_MAX:
            del self._seen[next(iter(self._seen))]
        return (knock.key, knock.seq) not in self._seen

    def _forget(self, knock: Knock) -> None:
        """Should it be sent again, it was not answered."""
        self._seen.pop((knock.key, knock.seq), None)

    async def _accept(self, family: int) -> None:
        """Hand what is accepted to whoever expects it."""
        listener = self._door.listeners[family]
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                sock, client = listener.accept()
            except BlockingIOError:
                continue
            except OSError:
                await trio.sleep(RETRY_S)  # too many descriptors are open
                continue
            expected = self._expected.get((family, client[1], sock.getsockname()[1]))
            if expected is None or expected.sock is not None:
                unfinished(sock)
                sock.close()
                continue
            expected.sock = sock
            expected.come.set()

    async def _answer(self, knock: Knock) -> None:
        try:
            if self._door.is_of_host(knock.port):
                await self._leave(knock)
            else:
                await self._forward(knock)
        except OSError as error:
            self._tell(f"port {knock.port}: {error.strerror or error}")
            self._forget(knock)
        finally:
            self._open -= 1

    async def _leave(self, knock: Knock) -> None:
        """To a process of the host."""
        self._door.leave(knock)
        await trio.sleep(FORWARD_LEFT_S)
        self._door.take_back(knock.port)
        self._forget(knock)

    async def _forward(self, knock: Knock) -> None:
        from kata_wire import messages

        name = next(self._names)
        request = messages.extension.OpenConnectionRequest(id=name, port=knock.port)
        try:
            await self._link.call(EXTENSION, "OpenConnection", request, timeout_s=FORWARD_DIAL_S)
        except EffectError as error:
            self._door.refuse(knock)
            self._tell(f"port {knock.port} was refused: {error.message}")
            if not isinstance(error, AgentCallError):
                await self._close(name, abort=True)  # it may have come about after all
            return
        expected = _Expected()
        try:
            broken = await self._carried(knock, name, expected)
        except OSError as error:
            broken = f"on the host: {error.strerror or error}"
        finally:
            if expected.sock is not None:
                expected.sock.close()
        if broken:
            self._tell(f"`{name}` broke: {broken}")
        await self._close(name, abort=bool(broken))

    async def _carried(self, knock: Knock, name: str, expected: _Expected) -> str:
        """From being let in to the end; why it broke, if it did. Raises OSError."""
        sock = await self._accepted(knock, expected)
        if sock is None:
            return "nobody was there any more"
        self._tell(f"port {knock.port} is connected (`{name}`)")
        return await relay(self._link, name, sock, self._lied)

    async def _accepted(self, knock: Knock, expected: _Expected) -> socket.socket | None:
        """Let it in and wait for it; None when it has not come."""
        self._expected[knock.key] = expected
        try:
            self._door.admit(knock)
            with trio.move_on_after(FORWARD_ACCEPT_S):
                await expected.come.wait()
        finally:
            del self._expected[knock.key]
            if expected.sock is None:
                self._forget(knock)
        return expected.sock

    async def _close(self, name: str, *, abort: bool) -> None:
        from kata_wire import messages

        request = messages.extension.CloseConnectionRequest(id=name, abort=abort)
        try:
            await self._link.call(EXTENSION, "CloseConnection", request)
        except EffectError:
            pass  # it has ended with the session

    def _tell(self, line: str) -> None:
        self._told += 1
        if self._told <= FORWARD_TOLD_MAX:
            print(f"supervisor: forwarding: {line}", file=sys.stderr, flush=True)
