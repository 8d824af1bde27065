# SPDX-License-Identifier: Apache-2.0
"""The link: one connection at a time, made again when it broke, until the guest is gone for good."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from kata_fsm.effects.agent import link as link_module
from kata_fsm.effects.agent.client import EXTENSION, HEALTH, AgentUnreachable
from kata_fsm.effects.agent.link import Link
from kata_fsm.errors import EffectError, TimeoutExceeded
from kata_fsm.world import WORLD, Paths
from kata_wire import messages
from tests.support.agent_peer import AgentPeer, Message
from tests.support.stage import LIMIT_S


async def version(link: Link, timeout_s: float | None = LIMIT_S) -> str:
    reply = await link.call(HEALTH, "Version", messages.health.CheckRequest(), timeout_s=timeout_s)
    return str(reply.agent_version)


async def test_whoever_asks_gets_the_one_connection(link: Link, peer: AgentPeer) -> None:
    with trio.fail_after(LIMIT_S):
        assert link.client is None
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(version, link)
        assert peer.connections == 1
        assert link.client is await link.ensure()


async def test_a_guest_that_is_not_there_yet_is_waited_for(paths: Paths, nursery: trio.Nursery, link: Link) -> None:
    peer = AgentPeer(paths.agent_sock)
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as callers:
            callers.start_soon(version, link)
            await trio.testing.wait_all_tasks_blocked()
            await nursery.start(peer.run)
    assert peer.connections == 1


async def test_a_connection_that_broke_is_made_again(link: Link, peer: AgentPeer) -> None:
    with trio.fail_after(LIMIT_S):
        for _ in range(3):
            assert await version(link) == "peer"
            first = link.client
            assert first is not None
            await peer.cut()
            await first.closed.wait()
            assert link.client is None
    assert (peer.connections, peer.hellos) == (3, 3)


@pytest.mark.parametrize("phase", ["port", "hello", "check"])
async def test_how_far_it_came_is_told(
    paths: Paths, nursery: trio.Nursery, link: Link, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    Path(paths.console_log).write_text("booting\nthe last words\n")
    peer = AgentPeer(paths.agent_sock)
    peer.mute = phase == "hello"
    if phase == "check":

        async def never(_: Message) -> Message:
            await trio.sleep_forever()
            return {}

        peer.script["Check"] = never
    if phase != "port":
        await nursery.start(peer.run)
    with trio.fail_after(LIMIT_S), pytest.raises(TimeoutExceeded, match="the last words") as caught:
        await link.ensure(timeout_s=1.0)  # what comes before that phase takes a moment
    assert caught.value.phase == phase
    assert f"`{phase}`" in caught.value.message
    assert phase in caught.value.evidence["phases"]


async def test_an_attempt_that_failed_does_not_bar_the_next(link: Link, peer: AgentPeer) -> None:
    """The port serves one connection at a time: one that is given up must be closed, or it stays the one for ever."""
    peer.mute = True
    with pytest.raises(TimeoutExceeded):
        await link.ensure(timeout_s=0.5)
    peer.mute = False
    with trio.fail_after(LIMIT_S):
        assert await version(link) == "peer"
    assert peer.connections == 2


async def test_an_attempt_that_was_cancelled_does_not_bar_the_next(link: Link, peer: AgentPeer) -> None:
    peer.mute = True
    with trio.move_on_after(0.05):
        await link.ensure()
    peer.mute = False
    with trio.fail_after(LIMIT_S):
        assert await version(link) == "peer"


async def test_a_hello_is_repeated_until_it_is_heard(
    link: Link, peer: AgentPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kata_wire.session.HELLO_RESEND_S", 0.01)
    peer.mute = True
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as callers:
            callers.start_soon(version, link)
            while peer.hellos < 2:
                await trio.sleep(0.001)
            peer.mute = False
    assert peer.connections == 1


async def test_the_end_is_told_to_everybody_at_once(link: Link, peer: AgentPeer) -> None:
    """To who waits for an answer, to who waits for a connection, and to who asks later."""
    peer.process("box")
    told: list[str] = []

    async def wait() -> None:
        request = messages.extension.WaitProcess2Request(container_id="box", exec_id="box")
        try:
            await link.call(EXTENSION, "WaitProcess2", request, timeout_s=None)
        except EffectError as error:
            told.append(error.message)

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            link.end()
        with pytest.raises(AgentUnreachable, match="the guest is gone"):
            await version(link)
    assert len(told) == 1
    assert "the guest is gone" in told[0]
    assert peer.connections == 1


async def test_the_end_is_told_to_who_is_connecting(link: Link) -> None:
    told: list[str] = []

    async def connect() -> None:
        try:
            await link.ensure(timeout_s=LIMIT_S)
        except AgentUnreachable as error:
            told.append(error.message)

    with trio.fail_after(LIMIT_S / 2):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(connect)
            await trio.testing.wait_all_tasks_blocked()
            link.end()
    assert told == ["no connection to the agent for connect: the guest is gone"] * 3


async def test_a_callers_limit_counts_for_the_connection_too(link: Link) -> None:
    """Dismissing an agent that is gone takes seconds, not the minute that a boot may take."""
    with trio.fail_after(LIMIT_S / 2), pytest.raises(TimeoutExceeded):
        await version(link, 0.05)


async def test_a_callers_limit_counts_while_somebody_else_connects(link: Link, nursery: trio.Nursery) -> None:
    nursery.start_soon(link.ensure)
    await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(LIMIT_S / 2), pytest.raises(TimeoutExceeded, match="somebody else's connection"):
        await version(link, 0.05)
    nursery.cancel_scope.cancel()


async def test_a_socket_that_cannot_be_connected_to_is_the_worlds_fault(paths: Paths, nursery: trio.Nursery) -> None:
    link = Link(paths, WORLD, nursery)
    Path(paths.base, "file").touch()
    paths.agent_sock = paths.base + "/file/agent.sock"
    with pytest.raises(AgentUnreachable, match="Not a directory"):
        await link.ensure(timeout_s=LIMIT_S)


async def test_a_connection_that_ends_in_the_hello(
    link: Link, peer: AgentPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "VM_DEATH_NOTICE_S", 0.01)
    peer.cut_after = 3
    with trio.fail_after(LIMIT_S), pytest.raises(EffectError, match="the connection ended"):
        await link.ensure(timeout_s=LIMIT_S)
    assert await version(link) == "peer"
