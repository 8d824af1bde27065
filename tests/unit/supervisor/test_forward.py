# SPDX-License-Identifier: Apache-2.0
"""Connections to `localhost` of the pod's namespace, forwarded to an agent in the test's hands, through the real kernel."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from typing import Any

import pytest
import trio

from kata_fsm.effects import netns
from kata_fsm.effects.localhost.doorway import Doorway
from kata_fsm.machines import agent, sandbox
from kata_fsm.supervisor import forward
from kata_wire import envelope
from tests.support.agent_peer import AgentPeer, Message, Process, Refused
from tests.support.house import House, wait_for
from tests.support.stage import BOX, LIMIT_S

PORT = 8080


@pytest.fixture
async def standing(house: House, pod: str) -> House:
    """A supervisor whose sandbox is ready and which stands in the doorway."""
    house.wiring.door = lambda held: Doorway(pod)
    await house.run()
    await house.until("sandbox", sandbox.READY)
    return house


async def connect(pod: str, port: int = PORT, hops: int = 64) -> trio.SocketStream:
    """Raises OSError."""
    sock = trio.socket.from_stdlib_socket(
        netns.inside(pod, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
    )
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
    try:
        with trio.fail_after(LIMIT_S):
            await sock.connect(("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


def in_guest(peer: AgentPeer, number: int = 1) -> Process:
    """The other end of that connection."""
    return peer.process("", f"forwarded-{number}")


@pytest.fixture
def open_port(peer: AgentPeer) -> None:
    """The guest listens at `PORT` alone."""

    async def dial(request: Message) -> Message:
        if request["port"] != PORT:
            raise Refused(envelope.FAILED_PRECONDITION, "Connection refused")
        peer.process("", request["id"])
        return {}

    peer.script["OpenConnection"] = dial


async def closed(peer: AgentPeer, count: int = 1) -> list[bool]:
    """Whether each of so many connections was aborted."""
    await wait_for(lambda: len(peer.called("CloseConnection")) >= count, "connections were closed")
    return [bool(each.get("abort")) for each in peer.called("CloseConnection")]


async def read_all(stream: trio.SocketStream) -> bytes:
    with trio.fail_after(LIMIT_S):
        return b"".join([data async for data in stream])


async def reset(stream: trio.SocketStream) -> None:
    """Wait until it is broken off."""
    with pytest.raises(trio.BrokenResourceError):
        await read_all(stream)
    await stream.aclose()


async def test_bytes_go_both_ways_and_each_way_ends_by_itself(
    standing: House, pod: str, peer: AgentPeer, open_port: None
) -> None:
    data = random.Random(1).randbytes(3 << 20)
    stream = await connect(pod)
    far = in_guest(peer)
    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        far.write(data[::-1])
        with trio.fail_after(LIMIT_S):
            back = bytearray()
            while len(back) < len(data):
                back += await stream.receive_some()
        assert back == data[::-1]
        await wait_for(lambda: len(far.input) == len(data), "all has come")
        await stream.send_eof()
        await wait_for(lambda: far.input_eof, "the end has come")
        assert far.input == data
        far.write(b"the last word")
        assert await stream.receive_some() == b"the last word"
        assert not peer.called("CloseConnection")
        far.finish()
        assert await read_all(stream) == b""
    assert await closed(peer) == [False]
    assert [(each["id"], each["port"]) for each in peer.called("OpenConnection")] == [("forwarded-1", PORT)]


async def test_a_port_that_is_closed_in_the_guest_is_closed_here(
    standing: House, pod: str, open_port: None, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConnectionRefusedError):
        await connect(pod, 81)
    await (await connect(pod)).aclose()
    await wait_for(
        lambda: "forwarding: port 81 was refused: Connection refused" in capfd.readouterr().err, "it was told"
    )


async def test_an_agent_that_cannot_forward(standing: House, pod: str, peer: AgentPeer) -> None:
    async def unknown(_: Message) -> Message:
        raise Refused(envelope.UNIMPLEMENTED)

    peer.script["OpenConnection"] = unknown
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            await connect(pod)
    assert standing.runtime.pod.agent.state == agent.READY


async def test_a_dial_that_takes_long_holds_up_nobody_else(
    standing: House, pod: str, peer: AgentPeer, open_port: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "FORWARD_DIAL_S", 3.0)
    quick, done = peer.script["OpenConnection"], trio.Event()

    async def dial(request: Message) -> Message | Any:
        if request["port"] == 81:
            await trio.sleep_forever()
        return await quick(request)

    peer.script["OpenConnection"] = dial

    async def refused() -> None:
        with pytest.raises(ConnectionRefusedError):
            await connect(pod, 81)
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused)
        await wait_for(lambda: len(peer.called("OpenConnection")) == 1, "the guest was dialled")
        async with await connect(pod) as stream:
            in_guest(peer, 2).write(b"hello")
            assert await stream.receive_some() == b"hello"
            assert not done.is_set()
    assert (await closed(peer))[0]  # it may have come about after all


async def test_what_breaks_in_the_guest_is_a_broken_connection_here(
    standing: House, pod: str, peer: AgentPeer, open_port: None
) -> None:
    stream = await connect(pod)
    far = in_guest(peer)
    far.write(b"half of")
    assert await stream.receive_some() == b"half of"

    async def broken(_: Message) -> Message:
        raise Refused(envelope.FAILED_PRECONDITION, "the connection broke")

    peer.script["ReadStream"] = broken
    far.change()
    far.write(b"?")  # answered by the call that waits; the next one fails
    await reset(stream)
    assert await closed(peer) == [True]


async def test_a_guest_that_takes_no_more(standing: House, pod: str, peer: AgentPeer, open_port: None) -> None:
    stream = await connect(pod)
    in_guest(peer).input_eof = True
    await stream.send_all(b"too late")
    await reset(stream)
    assert await closed(peer) == [True]


async def test_a_client_that_breaks_off_is_told_to_the_guest(
    standing: House, pod: str, peer: AgentPeer, open_port: None
) -> None:
    stream, other = await connect(pod), await connect(pod)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await stream.aclose()
    assert await closed(peer) == [True]
    async with other:  # which nothing of that disturbs
        in_guest(peer, 2).write(b"hello")
        assert await other.receive_some() == b"hello"


async def test_who_does_not_read_holds_up_who_sends_alone(
    standing: House, pod: str, peer: AgentPeer, open_port: None
) -> None:
    async with await connect(pod), await connect(pod) as other:
        far = in_guest(peer)
        far.write(bytes(24 << 20))
        await wait_for(lambda: far.acknowledged[1] > 0, "something was handed over")
        in_guest(peer, 2).write(b"hello")
        assert await other.receive_some() == b"hello"
        assert far.acknowledged[1] < len(far.output[1]) - (8 << 20)
        assert "ok" in await standing.ask("ping")


async def test_more_than_so_many_wait_for_their_turn(
    standing: House, pod: str, peer: AgentPeer, open_port: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "FORWARDED_MAX", 2)
    first, second = await connect(pod), await connect(pod)
    connected = trio.Event()

    async def third() -> None:
        async with await connect(pod):
            connected.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(third)
        with trio.move_on_after(0.3):
            await connected.wait()
        assert not connected.is_set()
        await first.aclose()
        in_guest(peer, 1).finish()
        with trio.fail_after(LIMIT_S):
            await connected.wait()
    await second.aclose()


async def test_a_process_of_the_host_is_left_its_port(standing: House, pod: str, peer: AgentPeer) -> None:
    with netns.inside(pod, lambda: socket.create_server(("127.0.0.1", PORT))) as server:
        async with await connect(pod):
            server.accept()[0].close()
    assert not peer.called("OpenConnection")


async def test_an_agent_that_lies_is_lost(standing: House, pod: str, peer: AgentPeer, open_port: None) -> None:
    async def lie(request: Message) -> Message:
        return {"offset": request.get("offset", 0) + 7, "data": b"what nobody asked for"}

    peer.script["ReadStream"] = lie
    stream = await connect(pod)
    await reset(stream)
    await standing.until("agent", agent.LOST)


async def test_connections_end_with_the_sandbox(standing: House, pod: str, peer: AgentPeer, open_port: None) -> None:
    stream = await connect(pod)
    await peer.cut()
    await wait_for(lambda: peer.connections == 2, "there is a new session")
    in_guest(peer).change()
    await stream.aclose()
    again = await connect(pod)
    peer.process(BOX).finish(code=0)
    await reset(again)
    with trio.fail_after(LIMIT_S):
        while await is_open(pod):
            await trio.sleep(0.01)


async def is_open(pod: str) -> bool:
    try:
        await (await connect(pod)).aclose()
    except OSError:
        return False
    return True


def _fails(_: str) -> Doorway:
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize(
    ("door", "said"),
    [(_fails, "port-forward will find every port closed: Operation not permitted"), (lambda held: None, "")],
)
async def test_without_a_doorway_all_is_as_before(
    house: House, pod: str, capfd: pytest.CaptureFixture[str], door: Callable[[str], Any], said: str
) -> None:
    house.wiring.door = door
    await house.run()
    await house.until("sandbox", sandbox.READY)
    with pytest.raises(ConnectionRefusedError):
        await connect(pod)
    assert capfd.readouterr().err.count("port-forward") == bool(said)


async def test_a_connection_that_nobody_expects_is_closed(standing: House, pod: str, peer: AgentPeer) -> None:
    """As one that is accepted after it was given up, or whose client gives itself the sign."""
    try:
        stream = await connect(pod, hops=1)
    except ConnectionResetError:
        pass  # it was closed before its client had looked
    else:
        await reset(stream)
    assert not peer.called("OpenConnection")


async def test_a_client_that_does_not_come_is_given_up(
    standing: House, pod: str, peer: AgentPeer, open_port: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "FORWARD_ACCEPT_S", 0.1)
    dial, dialled, gone = peer.script["OpenConnection"], trio.Event(), trio.Event()

    async def slow(request: Message) -> Any:
        dialled.set()
        await gone.wait()
        return await dial(request)

    peer.script["OpenConnection"] = slow
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect, pod)
        await dialled.wait()
        nursery.cancel_scope.cancel()
    gone.set()
    assert await closed(peer) == [True]
