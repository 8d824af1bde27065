# SPDX-License-Identifier: Apache-2.0
"""The simulated way to the guest, with the methods of `kata_fsm.effects.agent.link.Link` that a supervisor uses.

Each call may meet a fault (see `CALL_FAULTS`). A connection may break while the guest lives; the next call makes a new one.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from types import SimpleNamespace
from typing import Any

import trio

from kata_fsm.effects.agent.client import AgentCallError, AgentUnreachable
from kata_fsm.effects.fake.clock import nap
from kata_fsm.effects.fake.faults import Doomed
from kata_fsm.effects.fake.guest import FakeGuest
from kata_fsm.effects.fake.host import FakeHost
from kata_fsm.errors import TimeoutExceeded
from kata_fsm.limits import AGENT_CALL_TIMEOUT_S
from kata_wire import envelope

CALL_S = 0.002
LATE_S = 7.0
ENDLESS = frozenset({"WaitProcess2", "ReadStream", "WriteStream"})
"""Calls that wait for something in the guest, or are made all the time: they break, but are never slow by themselves."""


class FakeClient:
    """One connection."""

    def __init__(self, link: FakeLink) -> None:
        self._link = link
        self.closed = trio.Event()
        self.reason = ""

    async def call(
        self, service: str, method: str, request: Any = None, *, timeout_s: float | None = AGENT_CALL_TIMEOUT_S
    ) -> Any:
        """See `AgentClient.call`."""
        return await self._link.over(self, method, request, timeout_s)

    def close(self, reason: str) -> None:
        """End it: whoever waits for an answer is told."""
        self.reason = self.reason or reason
        self.closed.set()
        guest = self._link.guest
        if guest is not None:
            guest.change()


class FakeLink:
    """The link of one supervisor of one sandbox."""

    def __init__(self, host: FakeHost, uid: str, doomed: Doomed) -> None:
        self.host = host
        self.uid = uid
        self.doomed = doomed
        self._client: FakeClient | None = None
        self._over = False
        self._ended = trio.Event()

    @property
    def guest(self) -> FakeGuest | None:
        """The guest of this sandbox, if it was ever switched on."""
        return self.host.guests.get(self.uid)

    @property
    def client(self) -> FakeClient | None:
        """The current connection, if there is one."""
        client = self._client
        return client if client is not None and not client.closed.is_set() else None

    async def ensure(self, *, timeout_s: float = AGENT_CALL_TIMEOUT_S) -> FakeClient:
        """The current connection, made if there is none. Raises TimeoutExceeded."""
        self.doomed.check()
        if self.client is None:
            with trio.move_on_after(timeout_s):
                await self._answered()
                self._client = FakeClient(self)
        self.doomed.check()
        if self._over:
            raise AgentUnreachable("connect", "the guest is gone")
        if self.client is None:
            raise TimeoutExceeded(
                "hello", f"the agent in the guest did not answer: nothing came within {timeout_s:g} s"
            )
        return self.client

    async def _answered(self) -> None:
        while not self._over:
            guest = self.guest
            if guest is None:
                await nap(1.0)
                continue
            wait_s = guest.answers_at - trio.current_time()
            if wait_s > 0:
                await nap(wait_s)
            if not (guest.silent or guest.off or guest.panicked):
                await nap(CALL_S)
                return
            await _either(guest, self._ended)

    def end(self) -> None:
        """The guest is gone for good."""
        self._over = True
        self._ended.set()
        if self.guest is not None:
            self.guest.change()
        if self._client is not None:
            self._client.close("the guest is gone")

    async def call(
        self,
        service: str,
        method: str,
        request: Any = None,
        *,
        timeout_s: float | None = AGENT_CALL_TIMEOUT_S,
        into: object = None,
    ) -> Any:
        """Call by the current connection. Answers are small here: nothing is ever put `into` anything."""
        client = await self.ensure(timeout_s=min(timeout_s or AGENT_CALL_TIMEOUT_S, AGENT_CALL_TIMEOUT_S))
        return await client.call(service, method, request, timeout_s=timeout_s)

    # --- one call

    async def over(self, client: FakeClient, method: str, request: Any, timeout_s: float | None) -> Any:
        """Make one call over `client`, with whatever fault it meets."""
        guest = self.guest
        assert guest is not None, "a connection to nobody"
        until = inf if timeout_s is None else trio.current_time() + timeout_s
        try:
            return await self._exchange(client, guest, method, request, until)
        except _Late:
            self.doomed.check()
            raise TimeoutExceeded(method, f"the agent did not answer {method} within {timeout_s:g} s") from None

    async def _exchange(self, client: FakeClient, guest: FakeGuest, method: str, request: Any, until: float) -> Any:
        fault = self.host.faults.of_call(method) if method not in ENDLESS else None
        self.doomed.boundary("effect")
        await _pass(CALL_S, until)
        self.doomed.check()
        if fault == "broken":
            client.close("the connection broke")
        self._require(client, guest, method)
        if fault == "refused":
            raise AgentCallError(method, envelope.INTERNAL, "the agent has a bad day")
        if fault == "unheard" or guest.silent:
            await self._until_broken(client, guest, method, until)
        reply = await self._dispatch(client, guest, method, request, until)
        self.doomed.boundary("effect")
        if fault == "broken-after":
            client.close("the connection broke")
        if fault == "late":
            await _pass(LATE_S, until)
        self._require(client, guest, method)
        if fault == "unanswered":
            await self._until_broken(client, guest, method, until)
        return reply

    def _require(self, client: FakeClient, guest: FakeGuest, method: str) -> None:
        self.doomed.check()
        if guest.off or guest.panicked:
            client.close("the machine is gone")
        if client.closed.is_set():
            raise AgentUnreachable(method, client.reason)

    async def _until_broken(self, client: FakeClient, guest: FakeGuest, method: str, until: float) -> None:
        while True:
            self._require(client, guest, method)
            if not await guest.changed(until):
                raise _Late

    async def _dispatch(self, client: FakeClient, guest: FakeGuest, method: str, request: Any, until: float) -> Any:
        waiting = _WAITING.get(method)
        if waiting is None:
            return _CALLS[method](guest, request)
        while True:
            reply = waiting(guest, request)
            if reply is not None:
                return reply
            limit_s = (getattr(request, "timeout_ms", 0) or 0) / 1000 or inf
            enough = trio.current_time() + limit_s
            changed = await guest.changed(min(until, enough))
            if not changed and until <= enough:
                raise _Late
            self._require(client, guest, method)
            if guest.silent:
                await self._until_broken(client, guest, method, until)
            if not changed:
                return waiting(guest, request) or _NOTHING_YET[method](request)


class _Late(Exception):
    """The caller's patience is at its end."""


async def _pass(seconds: float, until: float) -> None:
    """So long it takes, if there is the time."""
    left = until - trio.current_time()
    await nap(min(seconds, left))
    if left <= seconds:
        raise _Late


async def _either(guest: FakeGuest, event: trio.Event) -> None:
    while not event.is_set():
        await guest.changed()
        if not (guest.silent or guest.off or guest.panicked):
            return


def _wait(guest: FakeGuest, request: Any) -> Any | None:
    workload = guest.workload(request.container_id, request.exec_id)
    if not workload.over:
        return None
    if workload.lies == "exit":
        return SimpleNamespace(exited=True, code=0, signal=99, oom_killed=False)
    return SimpleNamespace(
        exited=True, code=workload.code or 0, signal=workload.signal or 0, oom_killed=workload.oom_killed
    )


def _read(guest: FakeGuest, request: Any) -> Any | None:
    workload = guest.workload(request.container_id, request.exec_id)
    stream, offset = int(request.stream), request.offset
    if workload.lies == "output":
        return SimpleNamespace(data=b"lie", offset=offset + 1, eof=False)
    held = workload.outputs[stream]
    if not workload.acknowledged[stream] <= offset <= len(held):
        raise AgentCallError("ReadStream", envelope.OUT_OF_RANGE, f"there is no byte `{offset}`")
    workload.acknowledged[stream] = offset
    start = offset + request.skip
    if len(held) == start and not workload.over:
        return None
    return SimpleNamespace(data=held[start:], offset=start, eof=workload.over)


def _write(guest: FakeGuest, request: Any) -> Any:
    guest.workload(request.container_id, request.exec_id)
    return SimpleNamespace(offset=request.offset + len(request.data))


def _interfaces(guest: FakeGuest, request: Any) -> Any:
    from kata_wire import messages

    return messages.agent.Interfaces(Interfaces=[{"name": name} for _, name in sorted(guest.nics.items())])


def _nothing(guest: FakeGuest, request: Any) -> Any:
    return SimpleNamespace()


_WAITING: dict[str, Callable[[FakeGuest, Any], Any]] = {"WaitProcess2": _wait, "ReadStream": _read}

_NOTHING_YET: dict[str, Callable[[Any], Any]] = {
    "WaitProcess2": lambda request: SimpleNamespace(exited=False),
    "ReadStream": lambda request: SimpleNamespace(data=b"", offset=request.offset + request.skip, eof=False),
}

_CALLS: dict[str, Callable[[FakeGuest, Any], Any]] = {
    "Check": _nothing,
    "Version": lambda guest, request: SimpleNamespace(agent_version="simulated"),
    "SetGuestDateTime": _nothing,
    "ReseedRandomDev": _nothing,
    "CreateSandbox": _nothing,
    "DestroySandbox": lambda guest, request: guest.dismiss(),
    "CreateContainer": lambda guest, request: guest.create(request),
    "StartContainer": lambda guest, request: guest.start(request.container_id),
    "PauseContainer": lambda guest, request: guest.freeze(request.container_id, True),
    "ResumeContainer": lambda guest, request: guest.freeze(request.container_id, False),
    "ExecProcess": lambda guest, request: guest.exec(request),
    "SignalProcess": lambda guest, request: guest.signal(request.container_id, request.exec_id, request.signal),
    "RemoveContainer": lambda guest, request: guest.remove(request.container_id),
    "QueryState": lambda guest, request: guest.query(),
    "UpdateContainer": _nothing,
    "TtyWinResize": _nothing,
    "WriteStream": _write,
    "ListInterfaces": _interfaces,
    "ListRoutes": lambda guest, request: SimpleNamespace(Routes=[]),
}
