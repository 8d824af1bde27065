# SPDX-License-Identifier: Apache-2.0
"""Writing the input of a process, or of a connection, in the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kata_fsm.effects.agent.client import EXTENSION
from kata_fsm.supervisor.reading import AgentLied

if TYPE_CHECKING:
    from kata_fsm.effects.agent.link import Link


async def write(link: Link, container: str, exec_id: str, offset: int, data: bytes, *, eof: bool) -> None:
    """Hand bytes to the guest, however long that takes.

    Raises `AgentLied`, `AgentCallError` when they are not taken any more, and another `EffectError` when the connection to
    the agent broke.
    """
    from kata_wire import messages

    while True:
        request = messages.extension.WriteStreamRequest(
            container_id=container, exec_id=exec_id, offset=offset, data=data, eof=eof
        )
        reply = await link.call(EXTENSION, "WriteStream", request, timeout_s=None)
        if not data:
            return
        # It answers when it has taken at least one byte, and cannot have taken more than it was given.
        if not offset < reply.offset <= offset + len(data):
            given = f"{len(data)} bytes at {offset}"
            raise AgentLied(f"WriteStream was given {given}, and answered that it wants the byte at {reply.offset}")
        data = data[reply.offset - offset :]
        offset = reply.offset
        if not data:
            return
