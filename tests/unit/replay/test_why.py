# SPDX-License-Identifier: Apache-2.0
"""The chain of causes and the verdict."""

from __future__ import annotations

from pathlib import Path

from kata_fsm.machines.vocab import AgentLost, Cause, CreateContainer, CreateSandbox, Delete, ShareDied, StopSandbox
from kata_fsm.replay.reading import open_journal
from kata_fsm.replay.story import Story, tell
from kata_fsm.replay.verdict import count_effects, held, judge, spans, unfinished
from kata_fsm.replay.why import why_ended
from tests.support.pods import Driven, Host


def story_of(pod: Driven) -> Story:
    pod.host.close()
    with open_journal(str(pod.host.path)) as journal:
        return tell(list(journal.read_stream(pod.stream)), pod.stream)


def texts(story: Story) -> list[str]:
    return [link.text for link in why_ended(story)]


def test_a_killed_vm_is_the_cause_of_the_end(tmp_path: Path) -> None:
    story = story_of(Host(tmp_path / "j").sandbox().create().start().vm_killed())
    assert texts(story) == [
        "sandbox stopping",
        "vm exited",
        "vm_died: qemu ended by signal 9 (SIGKILL) (signal=9 source=pidfd)",
    ]
    assert why_ended(story)[0].because == "there is no sandbox without a guest"
    verdict = judge(story)
    assert (verdict.word, verdict.live, verdict.deleted, verdict.exit_code) == ("FAILED", False, False, 255)
    assert held(story) == []
    assert unfinished(story) == []


def test_a_workload_that_ends_is_the_cause_of_the_end(tmp_path: Path) -> None:
    story = story_of(Host(tmp_path / "j").sandbox().create().start().exits(0))
    assert texts(story)[:3] == ["sandbox stopping", "container web stopped", "process web/init exited, code 0"]
    assert judge(story).label == "OK"


def test_the_end_of_another_container_is_not_blamed(tmp_path: Path) -> None:
    pod = Host(tmp_path / "j").sandbox().create().start()
    pod.give(CreateContainer("side", {}))
    pod.give(Delete("side", True))
    pod.work_off()
    pod.exits(7)
    story = story_of(pod)
    assert texts(story)[1] == "container web stopped"
    assert judge(story).label == "EXITED"
    assert judge(story).exit_code == 7


def test_a_failed_effect_is_named_with_its_phase(tmp_path: Path) -> None:
    pod = Host(tmp_path / "j").sandbox()
    pod.give(CreateSandbox("web", pod.uid, {}, {}))
    pod.failed("network.attach", "move_link", "no such device", errno=19)
    pod.work_off()
    assert texts(story_of(pod))[-1] == "network.attach failed in `move_link`: no such device (errno=19)"


def test_a_command_is_named_with_its_actor(tmp_path: Path) -> None:
    pod = Host(tmp_path / "j").sandbox().create().start()
    pod.give(Delete("web", True))
    assert texts(story_of(pod)) == [
        "sandbox stopping",
        "delete --force web by uid 0 (loginuid 1000) pid 8812 `podman`",
    ]


def test_agent_and_share(tmp_path: Path) -> None:
    host = Host(tmp_path / "j")
    first, second = host.sandbox().create(), host.sandbox("two", "aaaaaaaaaaaa").create()
    first.give(AgentLost(Cause("agent_lost", "no answer for 10 s")))
    second.give(ShareDied(Cause("share_died", "virtiofsd ended by signal 11")))
    host.close()
    with open_journal(str(host.path)) as journal:
        one = tell(list(journal.read_stream(first.stream)), first.stream)
        two = tell(list(journal.read_stream(second.stream)), second.stream)
    assert texts(one) == ["sandbox stopping", "agent lost", "agent_lost: no answer for 10 s"]
    assert texts(two) == ["sandbox stopping", "share broken", "share_died: virtiofsd ended by signal 11"]
    assert judge(one).word == "STOPPING"


def test_an_operator_who_stops_the_sandbox_has_ended_it_well(tmp_path: Path) -> None:
    pod = Host(tmp_path / "j").sandbox().create()
    pod.give(StopSandbox(Cause("operator", "asked for"), True))
    pod.work_off()
    assert judge(story_of(pod)).word == "OK"


def test_a_story_in_the_middle_says_what_is_open_and_held(tmp_path: Path) -> None:
    pod = Host(tmp_path / "j").sandbox()
    pod.give(CreateSandbox("web", pod.uid, {}, {}))
    pod.done("share.prepare")
    story = story_of(pod)
    assert why_ended(story) == []
    assert (judge(story).word, judge(story).live) == ("CREATING", True)
    assert [text.split(" ")[0] for text in unfinished(story)] == [
        "hypervisor.launch",
        "network.attach",
        "container.prepare",
    ]
    assert held(story) == ["vm launching", "network attaching", "share ready", "container web preparing"]
    counts = count_effects(story)
    assert (counts.done, counts.failed, counts.open) == (1, 0, 3)


def test_phases_are_measured(tmp_path: Path) -> None:
    took = spans(story_of(Host(tmp_path / "j").sandbox().create().start().exits(0, after_ms=2500)))
    assert took.started_ms == 30
    assert took.ran_ms == 2500
    assert took.created_ms is not None
    assert took.created_ms > 121
    assert not took.running
