# SPDX-License-Identifier: Apache-2.0
"""What `recover` asks of a supervisor: to come to rest, to try again a bounded number of times, to force an end."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from journal import Journal
from kata_fsm.errors import EffectError
from kata_fsm.limits import RECOVER_ATTEMPTS
from kata_fsm.machines import Cause, network, process, sandbox, vm
from kata_fsm.recovery import stuck
from kata_fsm.supervisor import recovering
from tests.support.agent_peer import AgentPeer
from tests.support.house import House, wait_for
from tests.support.stage import BOX, SUBJECT, Stage, of_kind

WHY = "process `9` is still there"


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovering, "RECOVER_RETRY_S", 0.002)


async def _stuck(house: House, stage: Stage) -> None:
    """A sandbox whose machine monitor cannot be ended."""
    house.cleaned.set()  # no process is there to remove the last traces
    shim = await house.run()
    stage.fail["hypervisor.stop"] = EffectError("kill", WHY)
    reply = await house.ask("delete", container=BOX, force=True)
    assert WHY in reply["error"]["message"]
    assert house.runtime.pod.vm.state == vm.STUCK
    await shim.aclose()


@pytest.mark.usefixtures("_at_once")
async def test_a_failed_clean_up_is_tried_again_and_then_reported(house: House, stage: Stage, journal: Journal) -> None:
    await _stuck(house, stage)
    tried = stage.begun.count(("hypervisor.stop", ""))
    reply = await house.ask("recover", reason="the night shift", actor={"uid": 7})
    assert reply["stuck"] == [{"what": "vm", "why": WHY}]
    assert (reply["state"], reply["under_way"], reply["given_up"]) == (sandbox.STOPPING, [], [])
    assert stage.begun.count(("hypervisor.stop", "")) == tried + RECOVER_ATTEMPTS
    (note,) = of_kind(journal, "note", "recover")
    assert note == {"reason": "the night shift", "by": {"uid": 7}}
    del stage.fail["hypervisor.stop"]
    reply = await house.ask("recover", reason="once more")
    assert reply["stuck"] == []
    assert house.runtime.pod.sandbox.state == sandbox.DELETED, "its deletion had been asked for"


async def test_one_at_rest_only_gets_a_note(house: House, journal: Journal) -> None:
    shim = await house.run()
    before = house.runtime.pod
    assert (await house.ask("recover", reason="x"))["state"] == sandbox.READY
    assert house.runtime.pod is before
    await shim.aclose()


async def test_nothing_is_answered_of_a_pod_that_was_not_compared_with_the_world(house: House) -> None:
    """A supervisor listens before it has looked: shims come back to it meanwhile, and a shim may have started it."""
    shim = await house.run()
    house.server.taken_over = trio.Event()  # as one that has just begun
    replies: list[Any] = []

    async def ask() -> None:
        replies.append(await house.ask("recover", reason="x"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        assert (await house.ask("ping"))["ok"], "whoever wants to know whether it lives is told"
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert replies == []
        house.server.taken_over.set()
    assert replies[0]["state"] == sandbox.READY
    await shim.aclose()


async def test_output_that_the_end_waits_for_is_waited_for(
    house: House, peer: AgentPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox that goes down, whose output is still being handed over, is not at rest although no effect is open."""
    shim = await house.run()
    peer.process(BOX).write(bytes(3 << 20))  # more than its pipe holds
    await wait_for(lambda: len(peer.called("ReadStream")) >= 2, "the first read")
    house.wiring.kill_vm(Cause("vm_killed", "QEMU was killed by SIGKILL"))
    await house.until("process", process.EXITED, SUBJECT)
    monkeypatch.setattr(recovering, "RECOVER_SETTLE_S", 0.02)
    reply = await house.ask("recover", reason="x")
    assert (reply["state"], reply["under_way"]) == (sandbox.STOPPING, [f"output of {SUBJECT}"])
    monkeypatch.undo()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shim.exit_code)
        reply = await house.ask("recover", reason="x")
    assert (reply["state"], reply["under_way"]) == (sandbox.FAILED, [])


async def test_an_end_is_forced_and_what_is_left_is_told(house: House, stage: Stage, journal: Journal) -> None:
    await _stuck(house, stage)
    stage.fail["network.detach"] = EffectError("unmount", "it is busy")
    reply = await house.ask("resolve", reason="it hangs in the kernel", actor={"uid": 7})
    assert reply["given_up"] == [{"what": "vm", "why": WHY}, {"what": "network", "why": "it is busy"}]
    pod = house.runtime.pod
    assert (pod.vm.state, pod.network.state, stuck(pod)) == (vm.GONE, network.DETACHED, [])
    assert pod.sandbox.state == sandbox.DELETED, "its deletion had been asked for"
    assert (await house.ask("resolve", reason="x"))["error"]["family"] == "caller"
    (command,) = of_kind(journal, "command", "resolve_sandbox")
    assert command == {"reason": "it hangs in the kernel"}


@pytest.mark.parametrize("op", ["recover", "resolve"])
async def test_a_reason_is_required(house: House, journal: Journal, op: str) -> None:
    shim = await house.run()
    head = journal.head().seq
    replies: list[Any] = [await house.ask(op), await house.ask(op, reason=""), await house.ask(op, reason=7)]
    assert all("has no `reason`" in reply["error"]["message"] for reply in replies)
    assert journal.head().seq == head
    await shim.aclose()
