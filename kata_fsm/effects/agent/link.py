# SPDX-License-Identifier: Apache-2.0
"""The link to the agent: who has the current connection, and how a new one is made.

A connection is not state: it can be lost and made again while the guest lives (a supervisor that was restarted does just
that). Whoever needs the agent asks the link, which connects when there is no connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from kata_fsm.effects.agent.client import HEALTH, AgentClient, AgentUnreachable
from kata_fsm.effects.hypervisor.watch import panic_line
from kata_fsm.effects.logs import last_lines, tail
from kata_fsm.errors import EffectError, TimeoutExceeded
from kata_fsm.limits import AGENT_CALL_TIMEOUT_S, AGENT_PING_TIMEOUT_S, CONSOLE_TAIL_BYTES, VM_DEATH_NOTICE_S

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from kata_fsm.effects.agent.bulk import Bulk
    from kata_fsm.world import Paths, World

_CONSOLE_LINES = 3
_SLOW = "a slow host may need a larger `agent.kata.dial_timeout`"
_SOCKET_POLL_S = 0.005  # QEMU makes the socket within its first 0.2 s; nothing announces it


class Phases:
    """How long each step of reaching the agent has taken: `port` (QEMU's socket is there), `hello` (the guest has booted
    and its agent has answered), `check` (the agent serves)."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._begun = [("port", world.mono_ns())]

    @property
    def now(self) -> str:
        """The one under way."""
        return self._begun[-1][0]

    def reach(self, name: str) -> None:
        """The one under way is done, `name` begins."""
        self._begun.append((name, self._world.mono_ns()))

    def seconds(self) -> dict[str, float]:
        """Each one's duration so far."""
        ends = [*(at for _, at in self._begun[1:]), self._world.mono_ns()]
        return {name: round((end - at) / 1e9, 3) for (name, at), end in zip(self._begun, ends, strict=True)}

    def __str__(self) -> str:
        return ", ".join(f"`{name}` {seconds:.2f} s" for name, seconds in self.seconds().items())


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
        with trio.move_on_after(timeout_s) as limit:
            await self._lock.acquire()
        if limit.cancelled_caught:
            raise TimeoutExceeded("connect", f"somebody else's connection to the agent took over {timeout_s:g} s")
        try:
            if self.client is None:
                with trio.CancelScope() as self._dialling:
                    if not self._over:
                        self._client = await self._connect(timeout_s)
            if self._over or self._client is None:
                raise AgentUnreachable("connect", "the guest is gone")
            return self._client
        finally:
            self._lock.release()

    def end(self) -> None:
        """The guest is gone for good: whoever waits for it, or asks for it later, is told so at once."""
        self._over = True
        if self._dialling is not None:
            self._dialling.cancel()
        if self._client is not None:
            self._client.close("the guest is gone")

    async def call(
        self,
        service: str,
        method: str,
        request: Message | None = None,
        *,
        timeout_s: float | None = AGENT_CALL_TIMEOUT_S,
        into: Bulk | None = None,
    ) -> Any:
        """Call by the current connection (see `AgentClient.call`)."""
        client = await self.ensure(timeout_s=min(timeout_s or AGENT_CALL_TIMEOUT_S, AGENT_CALL_TIMEOUT_S))
        return await client.call(service, method, request, timeout_s=timeout_s, into=into)

    async def _connect(self, timeout_s: float) -> AgentClient:
        phases = Phases(self._world)
        with trio.move_on_after(timeout_s):
            client = AgentClient(await self._dial(), self._world.random_bytes(16))
            self._nursery.start_soon(client.run)
            try:
                await self._establish(client, phases)
            except BaseException:
                client.close("it never came to be")  # QEMU's socket serves one at a time: it would bar the next
                raise
            return client
        raise self._unreached(phases, f"nothing came within {timeout_s:g} s", hint=_SLOW)

    async def _establish(self, client: AgentClient, phases: Phases) -> None:
        phases.reach("hello")
        await _first(client.established, client.closed)
        if client.closed.is_set():
            if not panic_line(self._console()):
                # If QEMU is gone, whoever watches it says why, and cancels this.
                await trio.sleep(VM_DEATH_NOTICE_S)
            raise self._unreached(phases, f"the connection ended: {client.reason}")
        phases.reach("check")
        try:
            await _warm_up(client)
        except EffectError as error:
            raise self._unreached(phases, error.message) from error

    def _unreached(self, phases: Phases, why: str, *, hint: str | None = None) -> TimeoutExceeded:
        """The error that says how far we came, how long each step took, and what the guest said last."""
        console = self._console()
        panic = panic_line(console)
        if panic:
            why = f"its kernel panicked: {panic}"
        said = " | ".join(last_lines(console, _CONSOLE_LINES)) or "nothing"
        return TimeoutExceeded(
            phases.now,
            f"the agent in the guest did not answer: {why}, in phase `{phases.now}` ({phases}); the console said last: "
            f"`{said}`",
            evidence={"phases": phases.seconds(), "console": console},
            hint=hint,
        )

    def _console(self) -> str:
        return tail(self._paths.console_log, CONSOLE_TAIL_BYTES)

    async def _dial(self) -> trio.SocketStream:
        while True:
            try:
                return await trio.open_unix_socket(self._paths.agent_sock)
            except (FileNotFoundError, ConnectionRefusedError):
                await trio.sleep(_SOCKET_POLL_S)
            except OSError as error:
                raise AgentUnreachable("connect", str(error)) from error


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
