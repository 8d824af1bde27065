# SPDX-License-Identifier: Apache-2.0
"""The link to the agent: who has the current connection, and how a new one is made.

A connection is not state: it can be lost and made again while the guest lives (a supervisor that was restarted does just
that). Whoever needs the agent asks the link, which connects when there is no connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from kata_fsm.effects.agent.client import HEALTH, AgentClient, AgentUnreachable
from kata_fsm.effects.logs import last_line, tail
from kata_fsm.errors import TimeoutExceeded
from kata_fsm.limits import AGENT_CALL_TIMEOUT_S, AGENT_PING_TIMEOUT_S, CONSOLE_TAIL_BYTES

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from kata_fsm.world import Paths, World

_SOCKET_POLL_S = 0.005  # QEMU makes the socket within its first 0.2 s; nothing announces it


class Link:
    """The one link of a sandbox. `nursery` keeps the reader of the current connection."""

    def __init__(self, paths: Paths, world: World, nursery: trio.Nursery) -> None:
        self._paths = paths
        self._world = world
        self._nursery = nursery
        self._lock = trio.Lock()
        self._client: AgentClient | None = None
        self._over = False
        self._dialling: trio.CancelScope | None = None

    @property
    def client(self) -> AgentClient | None:
        """The current connection, if one is established."""
        client = self._client
        return client if client is not None and not client.closed.is_set() else None

    async def ensure(self, *, timeout_s: float = AGENT_CALL_TIMEOUT_S) -> AgentClient:
        """The current connection, made if there is none. Raises `TimeoutExceeded` naming the phase it hung in."""
        async with self._lock:
            if self.client is None:
                with trio.CancelScope() as self._dialling:
                    if not self._over:
                        self._client = await self._connect(timeout_s)
            if self._over or self._client is None:
                raise AgentUnreachable("connect", "the guest is gone")
            return self._client

    def end(self) -> None:
        """The guest is gone for good: whoever waits for it, or asks for it later, is told so at once."""
        self._over = True
        if self._dialling is not None:
            self._dialling.cancel()

    async def call(
        self,
        service: str,
        method: str,
        request: Message | None = None,
        *,
        timeout_s: float | None = AGENT_CALL_TIMEOUT_S,
    ) -> Any:
        """Call by the current connection (see `AgentClient.call`)."""
        client = await self.ensure()
        return await client.call(service, method, request, timeout_s=timeout_s)

    def drop(self) -> None:
        """Forget the current connection; its reader ends by itself when the peer closes."""
        self._client = None

    async def _connect(self, timeout_s: float) -> AgentClient:
        phases: dict[str, float] = {}
        started = self._world.mono_ns()

        def lap(phase: str) -> None:
            phases[phase] = round((self._world.mono_ns() - started) / 1e9, 3)

        phase = "port"
        with trio.move_on_after(timeout_s):
            stream = await self._dial()
            lap("port")
            phase = "hello"
            client = AgentClient(stream, self._world.random_bytes(16))
            self._nursery.start_soon(client.run)
            await _first(client.established, client.closed)
            if client.closed.is_set():
                raise AgentUnreachable("hello", client.reason)
            lap("hello")
            phase = "check"
            await _warm_up(client)
            lap("check")
            return client
        console = tail(self._paths.console_log, CONSOLE_TAIL_BYTES)
        took = ", ".join(f"{name} after {seconds:g} s" for name, seconds in phases.items()) or "nothing"
        raise TimeoutExceeded(
            phase,
            f"the agent in the guest did not answer within {timeout_s:g} s: hung in phase `{phase}` (reached: {took}); "
            f"last console line: `{last_line(console) or 'none'}`",
            evidence={"phases": phases, "console": console},
            hint="a slow host may need a larger boot_timeout",
        )

    async def _dial(self) -> trio.SocketStream:
        while True:
            try:
                return await trio.open_unix_socket(self._paths.agent_sock)
            except (FileNotFoundError, ConnectionRefusedError):
                await trio.sleep(_SOCKET_POLL_S)


async def _first(*events: trio.Event) -> None:
    """Wait for any of `events`."""
    async with trio.open_nursery() as nursery:

        async def one(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(one, event)


async def _warm_up(client: AgentClient) -> None:
    from kata_wire import messages

    await client.call(HEALTH, "Check", messages.health.CheckRequest(), timeout_s=AGENT_PING_TIMEOUT_S)
