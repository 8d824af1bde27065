# SPDX-License-Identifier: Apache-2.0
"""One connection to an agent that is slow, lies, breaks off, or says nothing."""

from __future__ import annotations

import os
from typing import Any

import pytest
import trio

from kata_fsm.effects.agent.client import AGENT, EXTENSION, HEALTH, AgentCallError, AgentClient, AgentUnreachable
from kata_fsm.errors import EffectError, TimeoutExceeded
from kata_wire import envelope, messages, ttrpc
from kata_wire.session import hello
from tests.support.agent_peer import AgentPeer, Message, Raw, Refused
from tests.support.stage import LIMIT_S

OVERSIZED = ttrpc.MAX_PAYLOAD_BYTES + 1


def read(exec_id: str, timeout_ms: int = 0) -> Any:
    return messages.extension.ReadStreamRequest(
        container_id="box", exec_id=exec_id, stream=1, len=100, timeout_ms=timeout_ms
    )


async def check(client: AgentClient, timeout_s: float | None = LIMIT_S) -> Any:
    return await client.call(HEALTH, "Check", messages.health.CheckRequest(), timeout_s=timeout_s)


async def test_calls_are_matched_by_stream_id(client: AgentClient, peer: AgentPeer) -> None:
    """Answers come in another order than the calls were made in."""
    gates = [trio.Event() for _ in range(5)]
    answers: dict[int, bytes] = {}

    async def in_turn(request: Message) -> Message:
        number = int(request["exec_id"])
        await gates[number].wait()
        if number:
            gates[number - 1].set()
        return {"data": request["exec_id"].encode()}

    peer.script["ReadStream"] = in_turn

    async def call(number: int) -> None:
        answers[number] = (await client.call(EXTENSION, "ReadStream", read(str(number)))).data

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(call, number)
            gates[4].set()
    assert answers == {number: str(number).encode() for number in range(5)}
    ids = [request["stream_id"] for _, request in peer.calls]
    assert len(set(ids)) == 5
    assert all(stream_id % 2 == 1 for stream_id in ids)


async def test_an_answer_that_does_not_come_in_time(client: AgentClient, peer: AgentPeer) -> None:
    late = trio.Event()

    async def slow(_: Message) -> Message:
        await late.wait()
        return {}

    peer.script["Check"] = slow
    with pytest.raises(TimeoutExceeded, match=r"the agent did not answer Check within 0.05 s") as caught:
        await check(client, 0.05)
    assert caught.value.phase == "Check"
    late.set()  # its answer comes after all, and is nobody's
    version = await client.call(HEALTH, "Version", messages.health.CheckRequest())
    assert version.agent_version == "peer"


async def test_a_call_without_a_limit_waits(client: AgentClient, peer: AgentPeer) -> None:
    process = peer.process("box")
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:

            async def exit_later() -> None:
                await trio.testing.wait_all_tasks_blocked()
                process.finish(code=3)

            nursery.start_soon(exit_later)
            request = messages.extension.WaitProcess2Request(container_id="box", exec_id="box")
            reply = await client.call(EXTENSION, "WaitProcess2", request, timeout_s=None)
    assert reply.code == 3


async def test_a_refusal_has_its_code_and_text(client: AgentClient, peer: AgentPeer) -> None:
    async def refuse(_: Message) -> Message:
        raise Refused(envelope.NOT_FOUND, "no such thing")

    peer.script["Check"] = refuse
    with pytest.raises(AgentCallError, match="no such thing") as caught:
        await check(client)
    assert (caught.value.code, caught.value.evidence) == (envelope.NOT_FOUND, {"status": envelope.NOT_FOUND})


async def test_what_a_guest_says_is_one_bounded_line(client: AgentClient, peer: AgentPeer) -> None:
    """It ends in the journal and on somebody's terminal."""

    async def shout(request: Message) -> None:
        text = ("\x1b[2Jtwo\nlines" + "x" * (2 << 20)).encode()
        status = messages.status.Status(code=13, message=text.decode()).SerializeToString()
        reply = messages.ttrpc.Response(status=messages.status.Status.FromString(status)).SerializeToString()
        await peer.send_frame(request["stream_id"], payload=reply)

    peer.script["Check"] = shout
    with pytest.raises(AgentCallError) as caught:
        await check(client)
    assert len(caught.value.message) <= envelope.MAX_ERROR_CHARS
    assert caught.value.message.isprintable()


async def test_a_broken_connection_fails_everybody(client: AgentClient, peer: AgentPeer) -> None:
    failed: list[str] = []
    peer.process("box")

    async def wait(number: int) -> None:
        request = messages.extension.WaitProcess2Request(container_id="box", exec_id="box")
        try:
            await client.call(EXTENSION, "WaitProcess2", request, timeout_s=None)
        except AgentUnreachable as error:
            failed.append(error.message)

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(wait, number)
            await trio.testing.wait_all_tasks_blocked()
            await peer.cut()
    assert failed == ["no connection to the agent for WaitProcess2: the connection was closed"] * 20
    assert client.closed.is_set()
    with pytest.raises(AgentUnreachable):  # and whoever comes later
        await check(client)


@pytest.mark.parametrize("cut", [0, 3, ttrpc.HEADER_BYTES, 40])
async def test_a_connection_that_ends_within_an_answer(client: AgentClient, peer: AgentPeer, cut: int) -> None:
    async def long(_: Message) -> Message:
        return {"data": b"x" * 1000}

    peer.script["ReadStream"] = long
    peer.cut_after = cut
    if cut == 0:
        await peer.cut()
    with trio.fail_after(LIMIT_S), pytest.raises(AgentUnreachable):
        await client.call(EXTENSION, "ReadStream", read("box"))


async def test_a_malformed_message_fails_its_call_alone(client: AgentClient, peer: AgentPeer) -> None:
    async def rubbish(_: Message) -> Raw:
        return Raw(b"\xff\xff\xff\xff")

    peer.script["Check"] = rubbish
    with pytest.raises(AgentCallError, match="the agent's answer to Check is malformed") as caught:
        await check(client)
    assert caught.value.code == envelope.INTERNAL
    assert (await client.call(HEALTH, "Version", messages.health.CheckRequest())).agent_version == "peer"


@pytest.mark.parametrize("payload", [b"\xff\xff\xff", b"\x0a\x7f", b"\x0a\x03\x12\x01\xff"], ids=["tag", "cut", "utf8"])
async def test_a_malformed_envelope_ends_the_connection_and_nothing_else(
    client: AgentClient, peer: AgentPeer, payload: bytes
) -> None:
    async def rubbish(request: Message) -> None:
        await peer.send_frame(request["stream_id"], payload=payload)

    peer.script["Check"] = rubbish
    with trio.fail_after(LIMIT_S), pytest.raises(AgentUnreachable, match="the agent sent what is not ttrpc"):
        await check(client)
    assert client.closed.is_set()


async def test_an_oversized_answer_fails_its_call_alone(client: AgentClient, peer: AgentPeer) -> None:
    async def oversized(request: Message) -> None:
        head = OVERSIZED.to_bytes(4, "big") + request["stream_id"].to_bytes(4, "big") + bytes((ttrpc.RESPONSE, 0))
        await peer.send(head + bytes(OVERSIZED))

    peer.script["ReadStream"] = oversized
    with trio.fail_after(LIMIT_S), pytest.raises(AgentCallError, match="over the limit") as caught:
        await client.call(EXTENSION, "ReadStream", read("box"))
    assert caught.value.code == envelope.RESOURCE_EXHAUSTED
    await check(client)


async def test_frames_that_nobody_asked_for_are_dropped(client: AgentClient, peer: AgentPeer) -> None:
    for stream_id, kind in ((0, ttrpc.RESPONSE), (2, ttrpc.RESPONSE), (999_999, ttrpc.DATA), (1, ttrpc.REQUEST)):
        await peer.send_frame(stream_id, kind)
    unknown = (5).to_bytes(4, "big") + (1).to_bytes(4, "big") + b"\x55\x00hello"
    await peer.send(unknown)
    await peer.send(hello(os.urandom(16)))  # somebody else's echo
    await check(client)


async def test_an_answer_that_comes_twice_counts_once(client: AgentClient, peer: AgentPeer) -> None:
    async def twice(request: Message) -> None:
        for data in (b"first", b"second"):
            parts = envelope.response_parts(request["stream_id"], "katafsm.ReadStreamResponse", {"data": data})
            await peer.send(b"".join(parts))

    peer.script["ReadStream"] = twice
    for _ in range(3):
        assert (await client.call(EXTENSION, "ReadStream", read("box"))).data == b"first"


async def test_answers_may_come_byte_by_byte(client: AgentClient, peer: AgentPeer) -> None:
    peer.chunk = 1
    peer.process("box").write(b"hello")
    assert (await client.call(EXTENSION, "ReadStream", read("box"))).data == b"hello"


async def test_a_guest_that_takes_nothing_in_holds_up_nobody(peer: AgentPeer, nursery: trio.Nursery) -> None:
    """A big write fills the socket. The caller's limit holds all the same, for it and for whoever comes after it."""
    client = AgentClient(await trio.open_unix_socket(peer.path), os.urandom(16))
    nursery.start_soon(client.run)
    await client.established.wait()
    peer.deaf = True
    await check(client)  # the peer looks whether it is deaf after each read
    await peer.served.wait()
    big = messages.extension.WriteStreamRequest(container_id="box", data=bytes(3 << 20))
    with trio.fail_after(LIMIT_S):
        for request in (big, big):
            with pytest.raises(TimeoutExceeded):
                await client.call(EXTENSION, "WriteStream", request, timeout_s=0.05)
        with pytest.raises(TimeoutExceeded, match="too busy to take in Check"):
            await check(client, 0.05)
        with trio.move_on_after(0.05) as scope:  # cancelled, as an effect is whose state was left
            await client.call(EXTENSION, "WriteStream", big, timeout_s=None)
        assert scope.cancelled_caught
        client.close("enough")
        await client.closed.wait()


async def test_a_call_that_was_given_up_in_time_is_never_made(peer: AgentPeer, nursery: trio.Nursery) -> None:
    """What was not begun is taken back: a cancelled creation must not happen later."""
    client = AgentClient(await trio.open_unix_socket(peer.path), os.urandom(16))
    nursery.start_soon(client.run)
    await client.established.wait()
    await check(client)
    gate = peer.gate = trio.Event()
    await check(client)  # it had begun to read before there was a gate

    async def swallow(_: Message) -> Message:
        return {}

    peer.script["WriteStream"] = swallow
    big = messages.extension.WriteStreamRequest(container_id="box", data=bytes(3 << 20))
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as callers:

            async def write() -> None:
                await client.call(EXTENSION, "WriteStream", big)

            callers.start_soon(write)
            await trio.testing.wait_all_tasks_blocked(0.02)
            with trio.move_on_after(0.02):
                request = messages.agent.StartContainerRequest(container_id="given-up")
                await client.call(AGENT, "StartContainer", request)
            gate.set()
        await check(client)
    assert [name for name, _ in peer.calls] == ["Check", "Check", "WriteStream", "Check"]


async def test_a_request_that_is_too_large_is_refused_here(client: AgentClient) -> None:
    huge = messages.extension.WriteStreamRequest(container_id="box", data=bytes(5 << 20))
    with pytest.raises(AgentCallError, match="WriteStream cannot be sent") as caught:
        await client.call(EXTENSION, "WriteStream", huge)
    assert caught.value.code == envelope.RESOURCE_EXHAUSTED
    await check(client)


async def test_a_call_that_there_is_not(client: AgentClient) -> None:
    with trio.fail_after(LIMIT_S), pytest.raises(EffectError, match=r"there is no call `grpc.Health/Dance`"):
        await client.call(HEALTH, "Dance", messages.health.CheckRequest(), timeout_s=1)


async def test_stream_ids_come_to_an_end(client: AgentClient) -> None:
    """2**31 calls: weeks of output. Ids are never used twice, so the next caller makes a new connection."""
    client._next_id = ttrpc.MAX_STREAM_ID
    await check(client)
    with pytest.raises(AgentUnreachable, match="used up"):
        await check(client)
    with trio.fail_after(LIMIT_S):
        await client.closed.wait()


async def test_closing_tells_everybody_why(client: AgentClient, peer: AgentPeer) -> None:
    peer.process("box")
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                request = messages.extension.WaitProcess2Request(container_id="box", exec_id="box")
                with pytest.raises(AgentUnreachable, match="the guest is gone"):
                    await client.call(EXTENSION, "WaitProcess2", request, timeout_s=None)

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            client.close("the guest is gone")
            client.close("too late to be the reason")
    with pytest.raises(AgentUnreachable, match="the guest is gone"):
        await check(client)
