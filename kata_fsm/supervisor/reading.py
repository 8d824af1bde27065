# SPDX-License-Identifier: Apache-2.0
"""Reading one output of a process from the agent, the next answer asked for while the last is still on its way.

Asking for `offset` acknowledges every byte before it; `skip` says how many after it are on their way already. As soon as the
head of a large answer has come, its size is known and the next can be asked for, so the guest need never wait for the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from kata_fsm.effects.agent.bulk import Bulk
from kata_fsm.effects.agent.client import EXTENSION, AgentCallError
from kata_fsm.errors import EffectError
from kata_fsm.limits import AGENT_CALL_TIMEOUT_S, RETRY_S, STREAM_POLL_S, STREAM_READ_BYTES

if TYPE_CHECKING:
    from kata_fsm.effects.agent.link import Link


class AgentLied(Exception):
    """An answer that no honest agent gives: bytes that were not asked for, or a position that cannot be."""


class Asked:
    """One answer, from being asked for to having come whole."""

    def __init__(self, offset: int, skip: int) -> None:
        self.offset = offset  # everything before it is acknowledged
        self.start = offset + skip  # of its first byte
        self.size = 0  # in bytes; of a large one already when it has begun
        self.content: bytes | Bulk = b""
        self.eof = False  # no byte follows
        self.over = False  # there will be none, neither from here on nor later
        self.why = ""  # in the agent's words, if it has said so
        self.begun = trio.Event()  # it is known to be large, or has come
        self.come = trio.Event()
        self.lie: AgentLied | None = None
        self.scope = trio.CancelScope()

    @property
    def is_ahead(self) -> bool:
        """Whether it was asked for before all before it had been handed over."""
        return self.start != self.offset

    @property
    def end(self) -> int:
        """The offset after its last byte."""
        return self.start + self.size

    def begin(self, size: int) -> None:
        """It has begun to come, and has so many bytes."""
        self.size = size
        self.begun.set()


class StreamReader:
    """One output (`stream`: 1 or 2) of the process `exec_id` of a container. `is_over`: whether the guest is gone."""

    def __init__(self, link: Link, container: str, exec_id: str, stream: int, is_over: Callable[[], bool]) -> None:
        self._link = link
        self._container = container
        self._exec_id = exec_id
        self._stream = stream
        self._is_over = is_over

    def ask(self, nursery: trio.Nursery, offset: int, skip: int = 0) -> Asked:
        """Ask for the bytes from `offset + skip` on, when everything before `offset` was handed over."""
        asked = Asked(offset, skip)
        nursery.start_soon(self._receive, asked)
        return asked

    async def _receive(self, asked: Asked) -> None:
        with asked.scope:
            try:
                asked.over = not await self._call(asked)
            except AgentLied as lie:
                asked.lie = lie
            asked.begun.set()
            asked.come.set()

    async def _call(self, asked: Asked) -> bool:
        """False when there is no answer, because the agent does not know the process or the guest is gone."""
        from kata_wire import messages

        request = messages.extension.ReadStreamRequest(
            container_id=self._container,
            exec_id=self._exec_id,
            stream=self._stream,  # type: ignore[arg-type]
            offset=asked.offset,
            skip=asked.start - asked.offset,
            len=STREAM_READ_BYTES,
            timeout_ms=int(STREAM_POLL_S * 1000),
        )
        while not self._is_over():
            bulk = Bulk(asked.begin)
            try:
                reply = await self._link.call(
                    EXTENSION, "ReadStream", request, timeout_s=AGENT_CALL_TIMEOUT_S, into=bulk
                )
            except AgentCallError as error:
                asked.why = error.message
                return False
            except EffectError:
                await trio.sleep(RETRY_S)  # between two connections; whether the agent is lost is decided elsewhere
                continue
            asked.content = bulk if bulk.size else reply.data
            asked.size = bulk.size or len(reply.data)
            asked.eof = reply.eof
            if reply.offset != asked.start or asked.size > STREAM_READ_BYTES:
                came = f"{asked.size} bytes at {reply.offset}"
                wanted = f"{STREAM_READ_BYTES} bytes at {asked.start}"
                raise AgentLied(f"ReadStream was asked for {wanted}, and answered {came}")
            return True
        return False
