# SPDX-License-Identifier: Apache-2.0
"""Large answers whose data are taken apart: through real sockets and pipes."""

from __future__ import annotations

import os

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from kata_fsm.effects.agent import bulk
from kata_fsm.effects.agent.bulk import Bulk
from kata_fsm.effects.agent.client import EXTENSION, AgentClient, AgentUnreachable
from kata_fsm.errors import TimeoutExceeded
from kata_wire import table
from tests.support.agent_peer import AgentPeer, Message
from tests.support.stage import LIMIT_S
from tests.unit.agent_client.test_client import check, read

SIZES = (0, 1, bulk.LARGE_BYTES - 100, bulk.LARGE_BYTES, 1 << 20, 3 << 20)


def pattern(size: int) -> bytes:
    return b"".join(number.to_bytes(4, "big") for number in range(size // 4 + 1))[:size]


def answering(peer: AgentPeer, data: bytes) -> None:
    async def answer(_: Message) -> Message:
        return {"offset": 7, "eof": True, "data": data}

    peer.script["ReadStream"] = answer


async def poured(held: Bulk) -> bytes:
    """What comes out of it, by a pipe whose reader is slow."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    got = bytearray()
    async with trio.lowlevel.FdStream(reader) as source, trio.open_nursery() as nursery:

        async def pour() -> None:
            async with trio.lowlevel.FdStream(writer) as target:
                await held.pour(target)

        nursery.start_soon(pour)
        async for piece in source:
            got += piece
    return bytes(got)


@pytest.mark.parametrize("chunk", [997, 1 << 20])
@pytest.mark.parametrize("pipe_bytes", [4096, 1 << 20])
async def test_the_data_are_the_same_wherever_they_are(
    client: AgentClient, peer: AgentPeer, monkeypatch: pytest.MonkeyPatch, pipe_bytes: int, chunk: int
) -> None:
    """In the answer or apart, in pipes or, when these are full, in memory."""
    monkeypatch.setattr(bulk, "_PIPE_BYTES", pipe_bytes)
    peer.chunk = chunk
    held = Bulk()
    for size in SIZES:
        answering(peer, pattern(size))
        answer = await client.call(EXTENSION, "ReadStream", read("box"), into=held)
        assert (answer.offset, answer.eof) == (7, True)
        assert held.size + len(answer.data) == size
        assert not (held.size and answer.data)
        if size > bulk.LARGE_BYTES and chunk < bulk.LARGE_BYTES:
            assert held.size == size
        assert (await poured(held) or answer.data) == pattern(size)
        assert held.size == 0


async def test_data_that_nobody_takes_hold_up_nobody(client: AgentClient, peer: AgentPeer) -> None:
    answering(peer, pattern(3 << 20))
    several = [Bulk() for _ in range(4)]
    for held in several:
        await client.call(EXTENSION, "ReadStream", read("box"), into=held)
        await check(client)
    for held in several:
        assert await poured(held) == pattern(3 << 20)


async def test_without_descriptors_the_data_come_through_memory(
    client: AgentClient, peer: AgentPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "_PIPES_MAX", 0)
    answering(peer, pattern(1 << 20))
    peer.chunk = 10_000
    held = Bulk()
    await client.call(EXTENSION, "ReadStream", read("box"), into=held)
    assert held.size == 1 << 20
    assert await poured(held) == pattern(1 << 20)


async def test_what_holds_data_already_is_not_filled_again(client: AgentClient, peer: AgentPeer) -> None:
    answering(peer, pattern(1 << 20))
    held = Bulk()
    await client.call(EXTENSION, "ReadStream", read("box"), into=held)
    before = held.size
    answer = await client.call(EXTENSION, "ReadStream", read("box"), into=held)
    assert (held.size or before) == before
    assert before == 0 or answer.data == pattern(1 << 20)


async def test_a_connection_that_ends_within_the_data(client: AgentClient, peer: AgentPeer) -> None:
    answering(peer, pattern(1 << 20))
    peer.cut_after = 300_000
    with pytest.raises(AgentUnreachable):
        await client.call(EXTENSION, "ReadStream", read("box"), into=Bulk())


async def test_a_call_that_is_given_up_within_its_data_leaves_the_connection_whole(
    client: AgentClient, peer: AgentPeer
) -> None:
    going_on = trio.Event()

    async def in_two(request: Message) -> None:
        from kata_wire import envelope

        parts = envelope.response_parts(
            request["stream_id"], "katafsm.ReadStreamResponse", {"offset": 7, "data": pattern(1 << 20)}
        )
        whole = b"".join(parts)
        await peer.send(whole[:200_000])
        await going_on.wait()
        await peer.send(whole[200_000:])

    peer.script["ReadStream"] = in_two
    with pytest.raises(TimeoutExceeded):
        await client.call(EXTENSION, "ReadStream", read("box"), timeout_s=0.1, into=Bulk())
    going_on.set()
    with trio.fail_after(LIMIT_S):
        await check(client)


async def test_a_reader_that_is_gone_is_said_so(client: AgentClient, peer: AgentPeer) -> None:
    answering(peer, pattern(3 << 20))
    peer.chunk = 10_000
    held = Bulk()
    await client.call(EXTENSION, "ReadStream", read("box"), into=held)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.close(reader)
    async with trio.lowlevel.FdStream(writer) as target:
        with pytest.raises(trio.BrokenResourceError):
            await held.pour(target)
    with pytest.raises(trio.ClosedResourceError):
        await held.pour(target)


@given(offset=st.integers(0, (1 << 64) - 1), eof=st.booleans(), size=st.integers(1, 1 << 20), seen=st.integers(0, 200))
def test_the_head_of_an_answer_is_told_from_its_data(offset: int, eof: bool, size: int, seen: int) -> None:
    message = "katafsm.ReadStreamResponse"
    body = table.encode(message, {"offset": offset, "eof": eof, "data": bytes(size)})
    payload = table.encode("ttrpc.Response", {"payload": body})
    found = bulk.split(payload[:seen], len(payload))
    if found is None:
        assert seen < min(bulk.HEAD_BYTES_MAX, len(payload))
    else:
        head, at = found
        assert payload[at:] == bytes(size)
        told = table.decode(message, head)
        assert (told.get("offset", 0), told.get("eof", False)) == (offset, eof)


@pytest.mark.parametrize(
    "answer",
    [
        table.encode("ttrpc.Response", {"status": {"code": 5, "message": "no"}}),
        table.encode("ttrpc.Response", {"payload": b"\x0a\x01xy"}),
        table.encode("ttrpc.Response", {"payload": b"\x10\x05"}),
        table.encode("ttrpc.Response", {"payload": b"\x22\x01x"}),
    ],
)
def test_what_is_not_data_at_the_end_is_left_to_the_parser(answer: bytes) -> None:
    assert bulk.split(answer, len(answer)) is None


@given(st.binary(max_size=64), st.integers(0, 5 << 20))
def test_any_bytes_are_told_apart_or_left(payload: bytes, length: int) -> None:
    bulk.split(payload, length)
