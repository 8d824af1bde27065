# SPDX-License-Identifier: Apache-2.0
"""A supervisor may be killed at any instant: from whatever prefix of its records the next one comes to the same end."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest
import trio

from journal import Journal, NewRecord, Record, Stamp
from kata_fsm.effects.protocols import Observed
from kata_fsm.machines import Pod, container, fold, network, outstanding, process, sandbox, share, vm
from kata_fsm.machines.intents import ACQUIRING
from kata_fsm.machines.pod import moved_from_body, summary
from kata_fsm.machines.vocab import Cause, StopSandbox
from kata_fsm.recovery import recover
from kata_fsm.snapshots import load
from tests.support.lives import CODE, live
from tests.support.stage import BOX, SUBJECT, Clocks, Stage, create_box, of_kind, opened, records, running, state

DELETED = state("sandbox", sandbox.DELETED)


@pytest.fixture(scope="module")
def normal(tmp_path_factory: pytest.TempPathFactory) -> list[list[Record]]:
    """A normal life: its records, one list per append, which is what a crash leaves whole or not at all."""
    found: list[list[Record]] = []

    async def live_once() -> None:
        with opened(tmp_path_factory.mktemp("normal") / "journal") as journal:
            async with running(journal, Stage()) as runtime:
                await live(runtime)
            found.extend(list(group) for _, group in groupby(records(journal), key=lambda record: record.mono_ns))

    trio.run(live_once)
    return found


def replant(journal: Journal, stream: str, appends: list[list[Record]]) -> None:
    """Write the records of a life into another stream."""
    rev = 0
    for append in appends:
        stamp = Stamp(append[0].wall_ns, append[0].mono_ns, append[0].boot_id)
        new = [NewRecord(record.kind, record.type, record.body, record.actor) for record in append]
        rev = journal.append(stream, new, stamp=stamp, expected_rev=rev)[-1].rev


def stage_after(appends: list[list[Record]], *, done: bool) -> Stage:
    """The world at that point; with `done`, what was under way had been brought about when its supervisor was killed."""
    stage = Stage()
    for append in appends:
        for record in append:
            if record.kind == "outcome" and record.data["ok"]:
                stage.there.add((record.type, record.data["subject"]))
            if record.kind == "intent" and done:
                stage.there.add((record.type, record.data["subject"]))
    return stage


def ends(pod: Pod) -> dict[str, object]:
    """What a life comes to."""
    codes = {subject: unit.facts["exit_code"] for subject, unit in pod.processes.items()}
    causes = {subject: unit.facts["cause"]["kind"] for subject, unit in pod.processes.items()}
    return {**summary(pod), "codes": codes, "causes": causes, "cause": pod.sandbox.facts["cause"]["kind"]}


async def crash(journal: Journal, stage: Stage, stream: str) -> None:
    """A supervisor that recovers and is killed before any effect has come to its end."""
    for kind in stage.handlers:
        stage.hold(kind)
    probed: set[tuple[str, str]] = set()
    async with running(journal, stage, stream=stream) as runtime:
        await recover(runtime)
        await trio.testing.wait_all_tasks_blocked()
        probed.update(stage.probed)
    stage.release()
    assert probed <= {intent.key for intent in outstanding(load(journal, stream)[0])} | stage.there


@pytest.mark.parametrize("done", [False, True], ids=["not-begun", "brought-about"])
async def test_every_prefix_comes_to_the_same_end(normal: list[list[Record]], tmp_path: Path, done: bool) -> None:
    whole = ends(_pod_of(normal))
    assert whole["codes"] == {SUBJECT: CODE, f"{BOX}/e1": 3}
    with opened(tmp_path / "journal") as journal:
        for count in range(len(normal)):
            stream, before = f"{BOX}@{count:012x}", normal[:count]
            replant(journal, stream, before)
            stage = stage_after(before, done=done)
            pod, rev, _ = load(journal, stream)
            wanted = {intent.key for intent in outstanding(pod)}
            async with running(journal, stage, stream=stream) as runtime:
                await recover(runtime)
                assert runtime.rev == rev, "nothing had changed, and something was recorded"
                end = await live(runtime)
            assert ends(end) == whole, f"after {count} appends"
            assert set(stage.probed) == wanted
            if done:
                assert not wanted & set(stage.begun), "what had been brought about was done again"
            acquired = [key for key in stage.begun if key[0] in ACQUIRING]
            assert len(acquired) == len(set(acquired))


def _pod_of(appends: list[list[Record]]) -> Pod:
    return fold(moved_from_body(r.data) for append in appends for r in append if r.kind == "event")


async def test_recovering_again_and_again_changes_nothing(normal: list[list[Record]], tmp_path: Path) -> None:
    """Every third prefix: killed twice while it recovers, then left to live."""
    whole = ends(_pod_of(normal))
    with opened(tmp_path / "journal") as journal:
        for count in range(1, len(normal), 3):
            stream = f"{BOX}@{count:012x}"
            replant(journal, stream, normal[:count])
            stage = stage_after(normal[:count], done=False)
            before = load(journal, stream)
            for _ in range(2):
                await crash(journal, stage, stream)
                assert load(journal, stream)[:2] == before[:2]
            async with running(journal, stage, stream=stream) as runtime:
                await recover(runtime)
                assert ends(await live(runtime)) == whole


async def _left(journal: Journal, stage: Stage, until: str) -> Pod:
    async with running(journal, stage) as runtime:
        return await live(runtime, state("container", until, BOX))


async def test_a_vmm_that_died_unwatched_is_noticed(journal: Journal, stage: Stage) -> None:
    stage.results["hypervisor.launch"] = {"pid": 1, "start_ticks": 123456789, "boot_id": Clocks().boot}
    await _left(journal, stage, container.RUNNING)
    async with running(journal, stage) as runtime:
        await recover(runtime)
        pod = await live(runtime)
    assert pod.vm.facts["cause"]["kind"] == "vm_killed"
    assert pod.unit("process", SUBJECT).facts["exit_code"] == 255
    (seen,) = of_kind(journal, "note", "vm_died")
    assert "while no supervisor was watching" in seen["cause"]["message"]


async def test_a_virtiofsd_that_died_unwatched_is_noticed(journal: Journal, stage: Stage) -> None:
    stage.results["share.prepare"] = {"pid": 1, "start_ticks": 123456789, "boot_id": Clocks().boot}
    await _left(journal, stage, container.RUNNING)
    async with running(journal, stage) as runtime:
        await recover(runtime)
        pod = await live(runtime)
    assert pod.sandbox.facts["cause"]["kind"] == "virtiofsd_lost"
    assert pod.share.state == share.RELEASED


@pytest.mark.parametrize("at", [container.PREPARING, container.CREATED, container.RUNNING, container.UNSTAGING])
async def test_after_a_reboot_everything_ends_with_that_cause(journal: Journal, stage: Stage, at: str) -> None:
    await _left(journal, stage, at)
    ended_before = at == container.UNSTAGING
    clocks = Clocks()
    clocks.boot = "66666666-7777-8888-9999-000000000000"
    stage.there.clear()  # nothing of it is alive
    async with running(journal, stage, world=clocks) as runtime:
        await recover(runtime)
        pod = await live(runtime)
    assert pod.sandbox.state == sandbox.DELETED
    assert pod.sandbox.facts["cause"]["kind"] == ("workload_exited" if ended_before else "host_reboot")
    assert pod.unit("process", SUBJECT).facts["exit_code"] == (CODE if ended_before else 255)
    assert not {key for key in stage.begun if key[0] == "hypervisor.launch"} - {("hypervisor.launch", "")}
    assert len(of_kind(journal, "note", "host_rebooted")) == 1


async def test_a_reboot_is_noticed_however_much_was_noted_since(journal: Journal, stage: Stage) -> None:
    """A note of the new boot (a supervisor that failed before it had recovered) does not hide that there was one."""
    await _left(journal, stage, container.RUNNING)
    clocks = Clocks()
    clocks.boot = "66666666-7777-8888-9999-000000000000"
    async with running(journal, stage, world=clocks) as runtime:
        await runtime.note("note", "something", {})
    async with running(journal, stage, world=clocks) as runtime:
        await recover(runtime)
        pod = await live(runtime)
    assert pod.sandbox.facts["cause"]["kind"] == "host_reboot"


async def test_a_sandbox_that_goes_down_acquires_nothing_more(journal: Journal, stage: Stage) -> None:
    held = [stage.hold(kind) for kind in sorted(ACQUIRING)]
    async with running(journal, stage) as runtime:
        await runtime.submit(create_box())
        await runtime.submit(StopSandbox(Cause("operator"), force=True))
        await runtime.until(lambda pod: pod.sandbox.state == sandbox.STOPPING)
    for event in held:
        event.set()
    stage.begun.clear()
    async with running(journal, stage) as runtime:
        await recover(runtime)
        pod = await runtime.until(state("sandbox", sandbox.DELETED))
    assert not [key for key in stage.begun if key[0] in ACQUIRING]
    assert (pod.vm.state, pod.network.state, pod.share.state) == (vm.GONE, network.DETACHED, share.RELEASED)
    assert {("hypervisor.stop", ""), ("network.detach", ""), ("share.release", "")} <= set(stage.begun)


async def test_an_ended_sandbox_is_left_alone(journal: Journal, stage: Stage) -> None:
    async with running(journal, stage) as runtime:
        await live(runtime)
    before = records(journal)
    clocks = Clocks()
    clocks.boot = "66666666-7777-8888-9999-000000000000"
    async with running(journal, stage, world=clocks) as runtime:
        await recover(runtime)
    assert records(journal) == before


async def test_effects_that_are_under_way_are_not_started_again(journal: Journal, stage: Stage) -> None:
    stage.hold("container.start")
    async with running(journal, stage) as runtime:
        await live(runtime, state("container", container.STARTING, BOX))
        await stage.reached["container.start"].wait()
        await runtime.resume()
        await runtime.resume()
        assert stage.begun.count(("container.start", BOX)) == 1
        assert not stage.probed


async def test_a_probe_that_cannot_tell_is_followed_by_doing_it(journal: Journal, stage: Stage) -> None:
    held = stage.hold("container.start")
    async with running(journal, stage) as runtime:
        await live(runtime, state("container", container.STARTING, BOX))
    held.set()

    async def cannot_tell(intent: object) -> Observed:
        await trio.lowlevel.checkpoint()
        return Observed(None)

    stage.handlers["container.start"].probe = cannot_tell  # type: ignore[method-assign]
    async with running(journal, stage) as runtime:
        await recover(runtime)
        await runtime.until(state("process", process.RUNNING, SUBJECT))
    assert stage.begun.count(("container.start", BOX)) == 2
