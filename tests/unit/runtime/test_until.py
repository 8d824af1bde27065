# SPDX-License-Identifier: Apache-2.0
"""Whoever waits for a state of the pod is told of it, however short it was and whoever brought it about."""

from __future__ import annotations

import pytest
import trio

from journal import Journal
from kata_fsm.machines import Pod, agent, container, process, sandbox, share, vm
from kata_fsm.machines.vocab import Cause, ProcessExited, VmDied
from tests.support.lives import live
from tests.support.stage import BOX, SUBJECT, Stage, create_box, running, state


async def test_what_holds_already_is_answered_at_once(journal: Journal, stage: Stage) -> None:
    async with running(journal, stage) as runtime:
        with trio.testing.assert_checkpoints():
            assert (await runtime.until(lambda pod: True)) is runtime.pod


async def test_no_state_is_too_short_to_be_seen(journal: Journal, stage: Stage) -> None:
    """Each waits for a state that the next step leaves: the pod that is answered is the one that was waited for."""
    short = [
        ("vm", vm.LAUNCHING, ""),
        ("agent", agent.CONNECTED, ""),
        ("share", share.PLUGGING, ""),
        ("container", container.PREPARING, BOX),
        ("container", container.CREATING, BOX),
        ("container", container.STARTING, BOX),
        ("container", container.PAUSING, BOX),
        ("container", container.RESUMING, BOX),
        ("container", container.DISCARDING, BOX),
        ("process", process.EXITED, SUBJECT),
        ("sandbox", sandbox.STOPPED, ""),
    ]
    async with running(journal, stage) as runtime, trio.open_nursery() as nursery:

        async def see(machine: str, wanted: str, subject: str) -> None:
            pod = await runtime.until(state(machine, wanted, subject))
            assert pod.unit(machine, subject).state == wanted

        for each in short:
            nursery.start_soon(see, *each)
        await live(runtime)


async def test_many_waiters_are_all_told(journal: Journal, stage: Stage) -> None:
    told = []
    async with running(journal, stage) as runtime, trio.open_nursery() as nursery:

        async def wait(number: int) -> None:
            await runtime.until(state("container", container.RUNNING, BOX))
            told.append(number)

        for number in range(50):
            nursery.start_soon(wait, number)
        await live(runtime, state("container", container.RUNNING, BOX))
    assert sorted(told) == list(range(50))


async def test_a_step_that_ends_its_own_task_is_told_all_the_same(journal: Journal, stage: Stage) -> None:
    """As a watch's report does: the step makes its watch superfluous, and the watch is cancelled by it."""
    async with running(journal, stage) as runtime:
        await live(runtime, state("container", container.RUNNING, BOX))
        scope = trio.CancelScope()
        waiting = trio.Event()

        def cancel_the_watch(pod: Pod) -> None:
            if pod.vm.state != vm.RUNNING:
                scope.cancel()

        runtime.on_step = cancel_the_watch

        async def watch() -> None:
            with scope:
                await waiting.wait()
                await runtime.submit(VmDied(Cause("vm_killed", "SIGKILL")))
                await trio.sleep_forever()

        async def wait(seen: list[Pod]) -> None:
            waiting.set()
            seen.append(await runtime.until(lambda pod: pod.vm.state == vm.STOPPING))

        seen: list[Pod] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            nursery.start_soon(wait, seen)
        assert scope.cancelled_caught
        assert seen[0].vm.state == vm.STOPPING


async def test_a_waiter_that_gives_up_leaves_nothing(journal: Journal, stage: Stage) -> None:
    asked = 0
    async with running(journal, stage) as runtime:

        def never(pod: Pod) -> bool:
            nonlocal asked
            asked += 1
            return False

        with trio.CancelScope() as scope:
            scope.cancel()
            await runtime.until(never)
        before = asked
        await runtime.submit(create_box())
        await runtime.until(state("container", container.PREPARED, BOX))
        assert asked == before


async def test_a_condition_that_raises_harms_only_its_own_waiter(journal: Journal, stage: Stage) -> None:
    async with running(journal, stage) as runtime:
        failed = []

        async def wait() -> None:
            try:
                await runtime.until(lambda pod: pod.sandbox.state != sandbox.ABSENT and bool(1 // 0))
            except ZeroDivisionError as error:
                failed.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            await runtime.submit(create_box())
        assert len(failed) == 1
        assert runtime.pod.sandbox.state == sandbox.CREATING


async def test_a_submitter_that_is_cancelled_has_submitted(journal: Journal, stage: Stage) -> None:
    async with running(journal, stage) as runtime:
        await live(runtime, state("container", container.RUNNING, BOX))
        with trio.CancelScope() as scope:
            scope.cancel()
            await runtime.submit(ProcessExited(SUBJECT, 1, Cause("exited")))
        assert runtime.pod.unit("process", SUBJECT).state == process.EXITED
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.01):
            await runtime.until(state("process", process.RUNNING, SUBJECT))
