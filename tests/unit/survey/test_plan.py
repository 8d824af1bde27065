# SPDX-License-Identifier: Apache-2.0
"""Plans of sandboxes that the machines themselves have brought into every sort of trouble."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_fsm.machines import Cause, Pod
from kata_fsm.machines.vocab import Delete, HostRebooted, ProcessExited, ShareDied, StopSandbox, VmDied
from kata_fsm.survey.plan import EXPIRED, FINE, STUCK, UNANSWERING, UNSUPERVISED, make
from kata_fsm.survey.sight import GONE, SILENT, WATCHED, Sight, left_behind
from kata_fsm.survey.traces import Trace
from tests.support.pods import BOOT_ID, NEXT_BOOT_ID, Driven, Host

DIED = VmDied(Cause("vm_killed", "gone"))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "journal")
    yield host
    host.close()


def sight(supervisor: str = GONE, boot: str = BOOT_ID, **more: object) -> Sight:
    return Sight(boot, BOOT_ID, BOOT_ID, supervisor, **more)  # type: ignore[arg-type]


def running(host: Host) -> Driven:
    return host.sandbox().create().start()


def stuck_vm(host: Host) -> Driven:
    box = running(host)
    box.give(StopSandbox(Cause("operator"), force=True))
    box.done("agent.disconnect")
    box.failed("hypervisor.stop", "kill", "process `9120` is still there")
    box.work_off()
    return box


def test_one_that_is_supervised_is_fine(host: Host) -> None:
    plan = make("web@3f9c1a2b4d5e", running(host).pod, sight(WATCHED))
    assert (plan.kind, plan.pending, plan.steps, plan.ends) == (FINE, False, (), "")


@pytest.mark.parametrize("pod", [Pod()])
def test_a_stream_without_a_sandbox_is_fine(pod: Pod) -> None:
    assert make("web@3f9c1a2b4d5e", pod, sight()).kind == FINE


def test_a_deleted_one_is_fine(host: Host) -> None:
    assert make("s", running(host).exits(0).delete().pod, sight(boot=NEXT_BOOT_ID)).kind == FINE


def test_one_that_runs_unsupervised_gets_a_supervisor(host: Host) -> None:
    plan = make("s", running(host).pod, sight(vm="qemu (pid 9120) lives", shims=(0, 1)))
    assert plan.kind == UNSUPERVISED
    assert plan.believed == "ready, container web running"
    assert plan.observed == "nobody supervises it, qemu (pid 9120) lives, 0 of 1 shims live"
    assert (plan.steps, plan.ends) == (("start a supervisor",), "it goes on: `ready`")


def test_one_that_does_not_answer_is_replaced(host: Host) -> None:
    plan = make("s", running(host).pod, sight(SILENT))
    assert plan.kind == UNANSWERING
    assert plan.steps == ("end the supervisor that does not answer", "start a supervisor")


def test_a_dead_vmm_is_taken_down_in_the_order_of_the_coupling_table(host: Host) -> None:
    box = running(host)
    before = box.pod
    plan = make("s", box.pod, sight(), [DIED, ShareDied(Cause("virtiofsd_lost"))])
    assert plan.steps == (
        *("start a supervisor", "record vm_died (vm_killed)", "record share_died (virtiofsd_lost)", "hypervisor.stop"),
        *("network.detach", "container.unstage web", "share.release"),
    )
    assert plan.ends == "`failed`: it can be deleted"
    assert box.pod == before, "a plan has changed the pod"


def test_what_was_under_way_is_told_with_what_was_seen_of_it(host: Host) -> None:
    box = running(host)
    box.give(StopSandbox(Cause("operator"), force=True))
    box.done("agent.disconnect")
    plan = make("s", box.pod, sight(open={"hypervisor.stop": True}))
    assert plan.kind == UNSUPERVISED
    assert "under way: hypervisor.stop" in plan.believed
    assert "hypervisor.stop was done" in plan.observed
    assert plan.steps[1] == "hypervisor.stop"
    assert plan.ends == "`stopped`: it can be deleted"


@pytest.mark.parametrize("supervisor", [WATCHED, GONE])
def test_a_failed_clean_up_is_tried_again(host: Host, supervisor: str) -> None:
    plan = make("s", stuck_vm(host).pod, sight(supervisor))
    assert plan.kind == (STUCK if supervisor == WATCHED else UNSUPERVISED)
    assert "vm stuck: process `9120` is still there" in plan.believed
    assert "hypervisor.stop" in plan.steps
    assert plan.ends == "`stopped`: it can be deleted"


def test_a_name_that_could_not_be_freed_is_tried_again(host: Host) -> None:
    box = running(host).exits(0)
    box.give(Delete("web"))
    box.failed("container.discard", "cgroup", "it is still busy", "web")
    plan = make("s", box.pod, sight())
    assert plan.kind == STUCK
    assert "container `web` stuck: it is still busy" in plan.believed
    assert plan.steps == ("try again", "start a supervisor", "container.discard web")
    assert plan.ends == "deleted: its ids are free"


def test_after_a_reboot_a_live_one_ends_and_its_ids_are_free(host: Host) -> None:
    plan = make("s", running(host).pod, sight(boot=NEXT_BOOT_ID), [HostRebooted(NEXT_BOOT_ID)])
    assert plan.kind == UNSUPERVISED
    assert plan.steps[1:3] == ("record host_rebooted", "free its ids")
    assert plan.steps[-1] == "container.discard web"
    assert plan.ends == "deleted: its ids are free"


def test_after_a_reboot_one_that_had_ended_is_freed(host: Host) -> None:
    box = running(host).exits(7)
    assert make("s", box.pod, sight()).kind == FINE
    plan = make("s", box.pod, sight(boot=NEXT_BOOT_ID))
    assert plan.kind == EXPIRED
    assert plan.ends == "deleted: its ids are free"
    assert make("s", box.pod, sight(WATCHED, boot=NEXT_BOOT_ID)).kind == FINE, "somebody is at it"


def test_output_that_somebody_may_still_read_is_waited_for(host: Host) -> None:
    box = running(host)
    box.give(ProcessExited("web/init", 0, Cause("exited")))
    plan = make("s", box.pod, sight())
    assert plan.ends == "it goes on: `ready`"


def test_what_may_be_left_of_an_ended_sandbox(host: Host, tmp_path: Path) -> None:
    there = str(tmp_path)
    traces = tuple(Trace(kind, "3f9c1a2b4d5e", there) for kind in ("netns", "mount", "cgroup", "directory"))
    gone = Trace("mount", "3f9c1a2b4d5e", f"{there}/none")
    box = running(host).exits(0)
    assert [trace.kind for trace in left_behind(box.pod, (*traces, gone))] == ["netns", "mount"]
    assert left_behind(box.delete().pod, traces) == list(traces)
