# SPDX-License-Identifier: Apache-2.0
"""Effects: begun, ended, cancelled, and failing in ways of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from journal import Journal
from kata_fsm.errors import EffectError, TimeoutExceeded
from kata_fsm.machines import agent, container, network, process, sandbox, share, vm
from kata_fsm.machines.vocab import Cause, Delete, StopSandbox, VmDied
from tests.support.lives import live
from tests.support.stage import BOX, SUBJECT, Clocks, Stage, create_box, of_kind, records, running, state
from tests.unit.runtime.test_submit import writing

STOPPED = state("sandbox", sandbox.FAILED)


async def test_an_outcome_says_how_long_its_effect_took(journal: Journal, stage: Stage) -> None:
    clocks = Clocks()
    held = stage.hold("network.attach")
    async with running(journal, stage, world=clocks) as runtime:
        await runtime.submit(create_box())
        await stage.reached["network.attach"].wait()
        clocks.ahead_ns += 1_234_000_000
        held.set()
        await runtime.until(state("network", network.ATTACHED))
    (outcome,) = of_kind(journal, "outcome", "network.attach")
    assert outcome["ok"] is True
    assert 1234 <= outcome["ms"] < 1234 + 10_000
    assert outcome["result"] == {"netns": "/run/x/netns"}


async def test_a_failure_is_recorded_with_its_evidence_and_undone(journal: Journal, stage: Stage) -> None:
    stage.fail["share.prepare"] = EffectError("spawn", "no virtiofsd", evidence={"errno": 2}, hint="install it")
    async with running(journal, stage) as runtime:
        await runtime.submit(create_box())
        pod = await runtime.until(state("sandbox", sandbox.DELETED))
    (outcome,) = of_kind(journal, "outcome", "share.prepare")
    assert (outcome["ok"], outcome["phase"], outcome["message"]) == (False, "spawn", "no virtiofsd")
    assert outcome["evidence"] == {"errno": 2, "hint": "install it"}
    assert ("share.release", "") in stage.begun  # half of it may have been done
    assert (pod.vm.state, pod.network.state, pod.share.state) == (vm.GONE, network.DETACHED, share.RELEASED)
    assert pod.sandbox.facts["cause"]["kind"] == "create_failed"


async def test_an_effect_in_the_guest_is_cancelled_when_its_state_is_left(journal: Journal, stage: Stage) -> None:
    stage.hold("agent.connect")
    async with running(journal, stage) as runtime:
        await runtime.submit(create_box())
        await stage.reached["agent.connect"].wait()
        await runtime.submit(VmDied(Cause("vm_killed", "gone")))
        pod = await runtime.until(state("sandbox", sandbox.DELETED))
    assert stage.cancelled == [("agent.connect", "")]
    assert pod.agent.state == agent.LOST
    (late,) = of_kind(journal, "outcome", "agent.connect")
    assert late["late"] is True
    assert (late["ok"], late["phase"]) == (False, "cancelled")


async def test_an_effect_on_the_host_is_never_cancelled(journal: Journal, stage: Stage) -> None:
    held = stage.hold("container.prepare")
    async with running(journal, stage) as runtime:
        await runtime.submit(create_box())
        await stage.reached["container.prepare"].wait()
        await runtime.submit(StopSandbox(Cause("operator"), force=True))
        await runtime.until(state("vm", vm.GONE))
        assert not stage.cancelled
        held.set()  # what it has acquired is let go of by the table
        pod = await runtime.until(state("sandbox", sandbox.DELETED))
    assert ("container.unstage", BOX) in stage.begun
    assert pod.unit("container", BOX).state == container.DELETED


class OddError(Exception):
    pass


def a_group() -> BaseException:
    return ExceptionGroup("from a nursery", [OddError("inner"), OddError("more")])


@pytest.mark.parametrize("raised", [OddError("odd"), a_group(), KeyError("x"), TimeoutError()])
async def test_an_effect_that_fails_in_a_way_of_its_own_is_undone(
    journal: Journal, stage: Stage, raised: BaseException
) -> None:
    stage.raises["network.attach"] = raised
    async with running(journal, stage) as runtime:
        await runtime.submit(create_box())
        pod = await runtime.until(state("sandbox", sandbox.DELETED))
    (outcome,) = of_kind(journal, "outcome", "network.attach")
    assert outcome["phase"] == "unexpected"
    assert outcome["evidence"]["bug"] is True
    assert type(raised).__name__ in outcome["message"]
    assert ("network.detach", "") in stage.begun
    assert pod.sandbox.facts["cause"]["kind"] == "create_failed"


async def test_an_effect_error_from_a_nursery_is_an_effect_error(journal: Journal, stage: Stage) -> None:
    inner = EffectError("netlink", "the kernel refused", evidence={"errno": 1})
    stage.raises["network.attach"] = ExceptionGroup("outer", [ExceptionGroup("inner", [inner])])
    async with running(journal, stage) as runtime:
        await runtime.submit(create_box())
        await runtime.until(state("sandbox", sandbox.DELETED))
    (outcome,) = of_kind(journal, "outcome", "network.attach")
    assert (outcome["phase"], outcome["message"]) == ("netlink", "the kernel refused")
    assert "bug" not in outcome["evidence"]


async def test_a_cancelled_effect_may_fail_on_its_way_out(journal: Journal, stage: Stage) -> None:
    """What a cancelled handler raises while it cleans up is of no interest, and must not end the supervisor."""
    begun = trio.Event()

    class Clumsy:
        async def perform(self, intent: Any) -> dict[str, Any]:
            async with trio.open_nursery() as nursery:

                async def stumble() -> None:
                    try:
                        begun.set()
                        await trio.sleep_forever()
                    finally:
                        raise OddError("while it was cleaning up")

                nursery.start_soon(stumble)
                nursery.start_soon(trio.sleep_forever)
            return {}

        probe = undo = perform

    stage.handlers["agent.connect"] = Clumsy()  # type: ignore[assignment]
    async with running(journal, stage) as runtime:
        await runtime.submit(create_box())
        await begun.wait()
        await runtime.submit(VmDied(Cause("vm_killed", "gone")))
        await runtime.until(state("sandbox", sandbox.DELETED))


@pytest.mark.parametrize(
    "result",
    [{"odd": object()}, {"text": "\udcff"}, {"long": "x" * (2 << 20)}, {1: 2}],
    ids=["type", "text", "size", "key"],
)
async def test_a_result_that_cannot_be_recorded_is_a_failure(
    journal: Journal, stage: Stage, result: dict[str, Any]
) -> None:
    stage.results["network.attach"] = result
    async with running(journal, stage) as runtime:
        await runtime.submit(create_box())
        await runtime.until(state("sandbox", sandbox.DELETED))
    (outcome,) = of_kind(journal, "outcome", "network.attach")
    assert outcome["phase"] == "unexpected"
    assert ("network.detach", "") in stage.begun


async def test_a_failure_that_cannot_be_recorded_is_recorded_as_far_as_it_can(journal: Journal, stage: Stage) -> None:
    """A path that is not valid text, in a message: the record holds it escaped."""
    stage.fail["container.prepare"] = EffectError("bind", "cannot bind `/\udcff`", evidence={"path": "\udcff"})
    async with running(journal, stage) as runtime:
        await runtime.submit(create_box())
        await runtime.until(state("sandbox", sandbox.DELETED))
    (outcome,) = of_kind(journal, "outcome", "container.prepare")
    assert "cannot bind `/\\udcff`" in outcome["message"]


async def test_an_outcome_waits_for_a_journal_that_is_busy(tmp_path: Path, stage: Stage) -> None:
    """It has happened, so it cannot be refused: it is told again until it is durable."""
    held = stage.hold("network.attach")
    path = tmp_path / "journal"
    with Journal.open(path, sync=False, lock_timeout_s=0.01) as journal:
        async with running(journal, stage) as runtime:
            await runtime.submit(create_box())
            await runtime.until(state("container", container.PREPARED, BOX))
            await stage.reached["network.attach"].wait()
            with writing(path):
                held.set()
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert runtime.pod.network.state == network.ATTACHING
            await runtime.until(state("network", network.ATTACHED))


async def test_a_kind_without_a_handler_fails_and_is_undone(journal: Journal, stage: Stage) -> None:
    del stage.handlers["share.prepare"]
    async with running(journal, stage) as runtime:
        await runtime.submit(create_box())
        await runtime.until(state("sandbox", sandbox.DELETED))
    (outcome,) = of_kind(journal, "outcome", "share.prepare")
    assert "there is no handler for `share.prepare`" in outcome["message"]


async def test_a_state_that_is_entered_again_has_its_own_effect(journal: Journal, stage: Stage) -> None:
    """A clean-up that failed is tried again when somebody asks again; the first attempt's end does not count twice."""
    stage.fail["container.unstage"] = EffectError("umount", "busy")
    async with running(journal, stage) as runtime:
        await live(runtime, state("container", container.STUCK, BOX))
        del stage.fail["container.unstage"]
        await runtime.submit(Delete(BOX))
        pod = await runtime.until(state("sandbox", sandbox.DELETED))
    assert stage.begun.count(("container.unstage", BOX)) == 2
    assert pod.unit("container", BOX).facts["error"] is None
    assert not [body for body in of_kind(journal, "outcome") if body.get("late")]


async def test_effects_run_side_by_side(journal: Journal, stage: Stage) -> None:
    kinds = ("hypervisor.launch", "network.attach", "share.prepare")
    held = [stage.hold(kind) for kind in kinds]
    async with running(journal, stage) as runtime:
        await runtime.submit(create_box())
        for kind in kinds:
            await stage.reached[kind].wait()
        for event in reversed(held):
            event.set()
        await runtime.until(state("agent", agent.READY))
    assert set(stage.begun[:3]) == {(kind, "") for kind in kinds}


async def test_a_note_moves_nothing(journal: Journal, stage: Stage) -> None:
    async with running(journal, stage) as runtime:
        pod = await live(runtime, state("process", process.RUNNING, SUBJECT))
        await runtime.note("note", "signal_forwarded", {"process": SUBJECT, "signal": 15})
        assert runtime.pod == pod
    assert records(journal)[-1].data == {"process": SUBJECT, "signal": 15}


async def test_a_timeout_is_a_cause_of_its_own_and_names_its_phase(journal: Journal, stage: Stage) -> None:
    stage.fail["agent.connect"] = TimeoutExceeded("hello", "no answer within 60 s", evidence={"limit_s": 60})
    async with running(journal, stage) as runtime:
        await runtime.submit(create_box())
        pod = await runtime.until(state("sandbox", sandbox.DELETED))
    cause = pod.sandbox.facts["cause"]
    assert (cause["kind"], cause["message"]) == ("timeout", "no answer within 60 s")
    assert (cause["evidence"]["phase"], cause["evidence"]["effect"]) == ("hello", "agent.connect")
