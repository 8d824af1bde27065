# SPDX-License-Identifier: Apache-2.0
"""What is watched is a function of the pod, and what is seen becomes a record with a cause."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from kata_fsm.machines import Cause, Pod, agent, process, sandbox, share, vm
from kata_fsm.supervisor import watch
from kata_wire import envelope
from tests.support.agent_peer import AgentPeer, Message, Refused
from tests.support.house import House, wait_for
from tests.support.stage import BOX, SUBJECT, of_kind

EXEC = f"{BOX}/e1"


def wanted(pod: Pod) -> set[tuple[str, str]]:
    """The watches that a pod asks for, said once more and in other words."""
    found: set[tuple[str, str]] = set()
    if pod.vm.state == vm.RUNNING:
        found.add(("vm", ""))
    if pod.share.state in share.USABLE and pod.vm.state not in (vm.EXITED, vm.STOPPING, vm.STUCK, vm.GONE):
        found.add(("share", ""))
    if pod.agent.state in (agent.CONNECTED, agent.CONFIGURING, agent.READY):
        found.add(("agent", ""))
    if pod.agent.state == agent.READY and pod.sandbox.state == sandbox.READY:
        found.add(("localhost", ""))
    for subject, unit in pod.processes.items():
        if unit.state in (process.CREATED, process.RUNNING):
            found |= {("exit", subject), ("stdio", subject)}
        if unit.state == process.EXITED:
            found.add(("stdio", subject))
    return found


async def test_the_watches_are_those_that_the_pod_asks_for_at_every_step(house: House, peer: AgentPeer) -> None:
    sets: list[set[tuple[str, str]]] = []

    def compare(pod: Pod) -> None:
        house.watcher.reconcile(pod)
        assert set(house.watcher._tasks) == wanted(pod)
        sets.append(wanted(pod))

    house.runtime.on_step = compare
    shim = await house.run()
    added = await house.exec()
    peer.process(BOX, "e1").finish(code=0)
    assert await added.exit_code() == 0
    peer.process(BOX).finish(code=0)
    assert await shim.exit_code() == 0
    await house.until("sandbox", sandbox.STOPPED)
    assert sets[-1] == set()
    both = {("exit", SUBJECT), ("stdio", SUBJECT), ("exit", EXEC), ("stdio", EXEC)}
    assert {("vm", ""), ("share", ""), ("agent", ""), ("localhost", "")} | both in sets


async def test_another_supervisor_watches_the_same(another: Any, peer: AgentPeer) -> None:
    async with another() as house:
        await house.run()
        watched = set(house.watcher._tasks)
    async with another() as house:
        assert set(house.watcher._tasks) == watched == wanted(house.runtime.pod)


async def test_the_end_of_the_vmm_ends_everything_with_its_cause(house: House) -> None:
    shim = await house.run()
    house.wiring.kill_vm(Cause("guest_panic", "the guest's kernel panicked: oops", {"console": "..."}))
    assert await shim.exit_code() == 255
    await house.until("sandbox", sandbox.FAILED)
    assert house.runtime.pod.sandbox.facts["cause"]["kind"] == "guest_panic"
    assert house.runtime.pod.vm.facts["cause"]["evidence"] == {"console": "..."}


async def test_the_end_of_virtiofsd_is_a_cause_of_its_own(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "VM_DEATH_NOTICE_S", 0.01)
    shim = await house.run()
    house.wiring.kill_share(Cause("share_died", "virtiofsd was killed by SIGKILL"))
    assert await shim.exit_code() == 255
    await house.until("sandbox", sandbox.FAILED)
    assert house.runtime.pod.sandbox.facts["cause"]["kind"] == "share_died"


async def test_a_virtiofsd_that_ends_with_its_vmm_is_no_cause(house: House) -> None:
    """It notices the end of its QEMU before we do."""
    shim = await house.run()
    house.wiring.kill_share(Cause("share_died", "virtiofsd exited with code 0"))
    await trio.testing.wait_all_tasks_blocked(0.01)
    house.wiring.kill_vm(Cause("vm_killed", "QEMU was killed by SIGKILL"))
    assert await shim.exit_code() == 255
    await house.until("sandbox", sandbox.FAILED)
    assert house.runtime.pod.sandbox.facts["cause"]["kind"] == "vm_killed"
    assert not of_kind(house.journal, "note", "share_died")


async def test_a_connection_that_breaks_is_made_again(house: House, peer: AgentPeer) -> None:
    shim = await house.run()
    for number in range(3):
        await peer.cut()
        await wait_for(lambda number=number: peer.connections == number + 2, "another connection")  # type: ignore[misc]
    peer.process(BOX).finish(code=4)
    assert await shim.exit_code() == 4
    assert not of_kind(house.journal, "note", "agent_lost")


async def test_an_agent_that_does_not_answer_is_lost(
    house: House, peer: AgentPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "AGENT_WATCH_EVERY_S", 0.02)
    shim = await house.run()

    async def never(_: Message) -> Message:
        await trio.sleep_forever()
        return {}

    peer.script["Check"] = never
    monkeypatch.setattr(watch, "AGENT_WATCH_ANSWER_S", 0.05)  # not before: one that is well may take longer
    assert await shim.exit_code() == 255
    await house.until("sandbox", sandbox.FAILED)
    cause = house.runtime.pod.sandbox.facts["cause"]
    assert cause["kind"] == "agent_lost"
    assert "did not answer Check" in cause["message"]
    assert cause["evidence"]["phase"] == "Check"


async def test_an_agent_that_cannot_be_reached_again_is_lost(
    house: House, peer: AgentPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim = await house.run()
    monkeypatch.setattr(watch, "AGENT_WATCH_ANSWER_S", 0.05)  # not before: one that is well may take longer
    peer.mute = True
    await peer.cut()
    assert await shim.exit_code() == 255
    await house.until("sandbox", sandbox.FAILED)
    assert house.runtime.pod.sandbox.facts["cause"]["kind"] == "agent_lost"


@pytest.mark.parametrize(
    ("answer", "code", "kind"),
    [
        ({"exited": True, "code": 0}, 0, "exited"),
        ({"exited": True, "code": 255}, 255, "exited"),
        ({"exited": True, "signal": 9}, 137, "signaled"),
        ({"exited": True, "signal": 9, "oom_killed": True}, 137, "guest_oom"),
        ({"exited": True, "code": 256}, 255, "unknown"),
        ({"exited": True, "code": -1}, 255, "unknown"),
        ({"exited": True, "signal": 1 << 31}, 255, "unknown"),
        ({"exited": True, "signal": 128}, 255, "unknown"),
    ],
    ids=str,
)
async def test_how_a_process_ended(house: House, peer: AgentPeer, answer: Message, code: int, kind: str) -> None:
    """What cannot be is not believed: 256 would be told as 0, which is success."""
    shim = await house.run()
    workload = peer.process(BOX)
    workload.exit, workload.at_eof = answer, True
    workload.change()
    assert await shim.exit_code() == code
    facts = house.runtime.pod.unit("process", SUBJECT).facts
    assert (facts["exit_code"], facts["cause"]["kind"]) == (code, kind)


async def test_an_agent_that_forgot_a_process_does_not_know_how_it_ended(house: House, peer: AgentPeer) -> None:
    await house.run()

    async def forgot(_: Message) -> Message:
        raise Refused(envelope.NOT_FOUND, "no such process")

    peer.script["WaitProcess2"] = forgot
    shim = await house.exec()
    peer.process(BOX, "e1").finish()
    assert await shim.exit_code() == 255
    assert "does not know how it ended" in house.runtime.pod.unit("process", EXEC).facts["cause"]["message"]


async def test_an_agent_that_answers_too_early_is_asked_again(house: House, peer: AgentPeer) -> None:
    real, early = peer.WaitProcess2, []

    async def hasty(request: Message) -> Message:
        if len(early) < 3:
            early.append(request)
            return {"exited": False}
        return await real(request)

    peer.script["WaitProcess2"] = hasty
    shim = await house.run()
    await wait_for(lambda: len(early) == 3, "the early answers")
    peer.process(BOX).finish(code=6)
    assert await shim.exit_code() == 6


async def test_an_exit_is_heard_of_over_the_next_connection(house: House, peer: AgentPeer) -> None:
    """It happened while there was none."""
    shim = await house.run()
    peer.mute = True
    await peer.cut()
    peer.process(BOX).write(b"last words")
    peer.process(BOX).finish(code=21)
    await trio.sleep(0.02)
    peer.mute = False
    await peer.cut()
    assert await shim.exit_code() == 21
    assert shim.received["stdout"] == b"last words"


async def test_a_dead_guest_makes_no_noise(house: House, peer: AgentPeer) -> None:
    """When the guest is gone nobody goes on calling it."""
    shim = await house.run()
    await house.exec()
    house.wiring.kill_vm(Cause("vm_killed", "SIGKILL"))
    assert await shim.exit_code() == 255
    await house.until("sandbox", sandbox.FAILED)
    calls = len(peer.calls)
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert len(peer.calls) == calls
    assert not house.watcher._tasks
    assert house.link.client is None
