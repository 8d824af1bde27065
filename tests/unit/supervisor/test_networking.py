# SPDX-License-Identifier: Apache-2.0
"""The pod's network as verbs and hooks change it: waited for, answered, refused; taken up again after a crash."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from kata_fsm.errors import EffectError, IllegalTransition
from kata_fsm.machines import network
from kata_fsm.supervisor import networking
from tests.support.agent_peer import AgentPeer, Message
from tests.support.house import House, ShimPeer, create_request
from tests.support.stage import BOX, LIMIT_S, Stage, of_kind

ETH0 = {"index": 2, "name": "eth0", "kind": "veth", "mac": "02:00:00:00:00:02", "mtu": 1500, "slot": 1}
ROUTE = {"family": 4, "device": "eth0", "dest": "10.0.0.0/8"}


@pytest.fixture
def stage() -> Stage:
    made = Stage()
    made.results["network.attach"] = {"netns": "/run/x/netns", "interfaces": [ETH0], "routes": [], "neighbours": []}
    return made


@pytest.fixture
def listed(peer: AgentPeer) -> None:
    async def interfaces(_: Message) -> Message:
        return {"Interfaces": [{"name": "eth0", "hwAddr": ETH0["mac"]}]}

    async def routes(_: Message) -> Message:
        return {"Routes": [{"dest": "10.0.0.0/8", "device": "eth0", "metric": 3}]}

    peer.script.update({"ListInterfaces": interfaces, "ListRoutes": routes})


async def created(house: House, model: str = "tcfilter") -> ShimPeer:
    request = create_request()
    request["sandbox"]["network_model"] = model
    shim = ShimPeer(house.paths)
    async with house.connected() as client:
        await client.send(request)
        need = await client.receive()
        assert (need or {}).get("netns") == "/run/x/netns"
        await shim.attach()
        reply = await client.receive()
        assert (reply or {}).get("ok"), reply
    return shim


def intents(house: House, kind: str) -> list[dict[str, Any]]:
    return [body["params"] for body in of_kind(house.journal, "intent", kind)]


async def test_the_guest_gets_what_was_found(house: House) -> None:
    await created(house)
    (params,) = intents(house, "network.plug")
    assert (params["model"], params["interfaces"]) == ("tcfilter", [ETH0])
    assert house.runtime.pod.network.state == network.PLUGGED


async def test_a_change_is_answered_with_what_the_guest_has_then(house: House, stage: Stage, listed: None) -> None:
    await created(house)
    stage.results["network.change"] = {"interfaces": [ETH0], "routes": [ROUTE], "neighbours": [], "routes_given": True}
    reply = await house.ask("network_change", container=BOX, change={"routes": [ROUTE]})
    assert reply["routes"] == [{"dest": "10.0.0.0/8", "device": "eth0", "metric": 3}]
    assert house.runtime.pod.network.facts["routes"] == [ROUTE]
    reply = await house.ask("network_change", container=BOX, change={"rescan": True})
    assert reply["interfaces"] == [{"name": "eth0", "hwAddr": ETH0["mac"]}]
    first, second = intents(house, "network.change")
    assert (first["change"], first["routes_given"]) == ({"routes": [ROUTE]}, False)
    assert (second["change"], second["routes_given"], second["routes"]) == ({"rescan": True}, True, [ROUTE])


async def test_a_failed_change_says_why_and_the_next_one_may_succeed(house: House, stage: Stage, listed: None) -> None:
    await created(house)
    stage.fail["network.change"] = EffectError("find", "there is no `eth9`", hint="look again")
    reply = await house.ask("network_change", container=BOX, change={"add": {"name": "eth9"}})
    assert reply["error"]["message"] == "the network cannot be changed: there is no `eth9`"
    assert reply["error"]["hint"] == "look again"
    assert house.runtime.pod.network.facts["interfaces"] == [ETH0]
    stage.fail.clear()
    assert (await house.ask("network_change", container=BOX, change={"rescan": True}))["ok"]


async def test_two_changes_at_once_come_one_after_the_other(house: House, stage: Stage, listed: None) -> None:
    await created(house)
    held = stage.hold("network.change")
    answers = []

    async def change() -> None:
        answers.append(await house.ask("network_change", container=BOX, change={"rescan": True}))

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(change)
            await stage.reached["network.change"].wait()
            assert stage.begun.count(("network.change", "")) == 1
            held.set()
    assert [reply["ok"] for reply in answers] == [True] * 3
    assert stage.begun.count(("network.change", "")) == 3


async def test_a_hook_may_ask_while_the_guest_boots(house: House, stage: Stage) -> None:
    held = stage.hold("hypervisor.launch")
    request = create_request()
    request["sandbox"]["network_model"] = "tcfilter"
    async with house.connected() as client:
        await client.send(request)
        assert "need" in (await client.receive() or {})
        with trio.fail_after(LIMIT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(networking.change, house.server, {"rescan": True})
                await trio.testing.wait_all_tasks_blocked()
                assert ("network.change", "") not in stage.begun
                held.set()
    assert ("network.change", "") in stage.begun


async def create_with_hooks(house: House, model: str = "tcfilter") -> dict[str, Any]:
    """The answer to a creation whose container brings a hook."""
    request = create_request()
    request["sandbox"]["network_model"] = model
    request["container"]["hooks"] = {"state": {"id": BOX}, "prestart": [{"path": "/bin/true"}]}
    shim = ShimPeer(house.paths)
    async with house.connected() as client:
        await client.send(request)
        await client.receive()
        await shim.attach()
        return await client.receive() or {}


async def test_what_a_hook_brought_is_joined_before_the_answer(house: House, stage: Stage) -> None:
    stage.results["network.change"] = {"interfaces": [ETH0], "routes": [ROUTE], "neighbours": [], "routes_given": False}
    assert (await create_with_hooks(house))["ok"]
    (params,) = intents(house, "network.change")
    assert params["change"] == {"rescan": True}
    assert house.runtime.pod.unit("container", BOX).state == "created"
    assert house.runtime.pod.network.facts["routes"] == [ROUTE]


async def test_what_a_hook_brought_and_cannot_be_joined_fails_the_creation(house: House, stage: Stage) -> None:
    stage.fail["network.change"] = EffectError(
        "scan", "interface `x7` cannot be given to the guest", hint="take it out"
    )
    house.cleaned.set()
    error = (await create_with_hooks(house))["error"]
    assert "cannot create container `box`: the network cannot be changed: interface `x7`" in error["message"]
    assert error["hint"] == "take it out"
    assert house.runtime.pod.sandbox.state == "deleted"
    assert house.runtime.pod.sandbox.facts["cause"]["kind"] == "create_failed"


async def test_hooks_change_nothing_for_a_guest_without_a_network(house: House, stage: Stage) -> None:
    assert (await create_with_hooks(house, model="none"))["ok"]
    assert ("network.change", "") not in stage.begun


async def test_a_pod_without_a_network_is_told_so(house: House) -> None:
    await created(house, model="none")
    reply = await house.ask("network_change", container=BOX, change={"rescan": True})
    assert "cannot be changed" in reply["error"]["message"]
    with pytest.raises(IllegalTransition):
        await networking.change(house.server, {"rescan": True})
    assert house.runtime.pod.network.state == network.ATTACHED


@pytest.mark.parametrize("change", [{}, {"paint": True}, {"rescan": True, "add": {}}])
async def test_what_is_no_change_is_refused(house: House, change: Message) -> None:
    await created(house)
    reply = await house.ask("network_change", container=BOX, change=change)
    assert "is none of `rescan`, `add`, `remove`, `routes`" in reply["error"]["message"]
    assert "neither" in (await house.ask("network_list", container=BOX, what="weather"))["error"]["message"]
    assert "does not exist" in (await house.ask("network_list", container="c9", what="routes"))["error"]["message"]


async def test_a_change_that_a_supervisor_left_is_finished_by_the_next(
    another: Any, stage: Stage, listed: None
) -> None:
    async with another() as house:
        await created(house)
        stage.hold("network.change")
        async with house.connected() as client:
            await client.send({"op": "network_change", "container": BOX, "change": {"rescan": True}})
            await stage.reached["network.change"].wait()
    stage.release()
    async with another() as house:
        await house.until("network", network.PLUGGED)
        assert (await house.ask("network_list", container=BOX, what="interfaces"))["ok"]
    assert ("network.change", "") in stage.there
