# SPDX-License-Identifier: Apache-2.0
"""Single decisions: what is refused and how it says so, what a record holds, what a failure is the cause of."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kata_fsm.errors import IllegalTransition, NotFoundError
from kata_fsm.machines import Cause, Pod, container, decide, events_of, fold, outstanding, process, sandbox
from kata_fsm.machines import vocab as v
from kata_fsm.machines.decide import _COMMANDS, legal_requests
from kata_fsm.machines.pod import TABLES, Unit


def _give(pod: Pod, *inputs: Any) -> Pod:
    for given in inputs:
        pod = fold(events_of(decide(pod, given)), pod)
    return pod


def _settle(pod: Pod) -> Pod:
    while wanted := outstanding(pod):
        pod = _give(pod, v.EffectDone(wanted[0].kind, wanted[0].subject))
    return pod


NEW = v.CreateSandbox("pod", "0123456789ab", {"root": "/run/x"}, {"rootfs": "/r", "terminal": True})
ATTACH = v.AttachShim("pod/init", {"pid": 7})


def _running() -> Pod:
    return _settle(_give(_settle(_give(Pod(), NEW, ATTACH)), v.Start("pod")))


def _pod(machine: str, state: str) -> Pod:
    """A pod that is well, but for the one machine that is in `state`."""
    pod = _running()
    unit = pod.unit(machine, {"container": "pod", "process": "pod/init"}.get(machine, ""))
    changed = Unit(state, unit.facts)
    if machine == "container":
        pod.containers["pod"] = changed
    elif machine == "process":
        pod.processes["pod/init"] = changed
    else:
        setattr(pod, machine, changed)
    return pod


def test_an_update_says_what_is_asked_of_the_host_and_can_be_taken_back() -> None:
    pod = _running()
    pod = _give(pod, v.Update("pod", {"cpu": {"shares": 5}}, {"shares": 5}))
    assert (pod.containers["pod"].state, pod.containers["pod"].facts["limits"]) == (container.RUNNING, {"shares": 5})
    pod = _give(pod, v.UpdateUndone("pod", {}))
    assert pod.containers["pod"].facts["limits"] == {}
    older = decide(pod, v.Update("pod", {"cpu": {"shares": 5}}))
    assert [(record.kind, record.type) for record in older.records] == [("command", "update")]
    assert "limits" not in older.records[0].body
    for subject in ("pod", "nobody"):
        gone = _pod("container", container.DEAD)
        assert events_of(decide(gone, v.UpdateUndone(subject, {"shares": 5}))) == []


FIRED_BY = {
    "start": lambda: v.Start("pod"),
    "pause": lambda: v.Pause("pod"),
    "resume": lambda: v.Resume("pod"),
}


@pytest.mark.parametrize("verb", FIRED_BY)
@pytest.mark.parametrize("state", [s for s in container.OCI_STATUS if s not in container.TABLE.effects])
def test_a_verb_is_legal_exactly_where_its_table_says(verb: str, state: str) -> None:
    """The refusal names machine, id, state, request and what is legal, and nothing has changed."""
    pod = _pod("container", state)
    before = msgspec.json.encode(pod)
    if container.TABLE.follow(state, verb) is not None:
        assert decide(pod, FIRED_BY[verb]()).records
    else:
        with pytest.raises(IllegalTransition) as caught:
            decide(pod, FIRED_BY[verb]())
        for word in ("container", "`pod`", f"`{state}`", f"`{verb}`", *legal_requests(state)):
            assert word in str(caught.value)
    assert msgspec.json.encode(pod) == before


@pytest.mark.parametrize("state", container.OCI_STATUS)
def test_forced_deletion_is_legal_in_every_state_and_plain_deletion_unless_running(state: str) -> None:
    """As runc: `created` and earlier go without force, `running` and `paused` do not."""
    pod = _pod("container", state)
    assert decide(pod, v.Delete("pod", force=True)).records[0].type == "delete"
    if container.OCI_STATUS[state] in ("running", "paused"):
        with pytest.raises(IllegalTransition, match="still running"):
            decide(pod, v.Delete("pod"))
    else:
        decide(pod, v.Delete("pod"))


@pytest.mark.parametrize("state", sandbox.TABLE.states)
def test_a_further_container_needs_a_sandbox_that_goes_on(state: str) -> None:
    """Containers join while the pod is brought up or stands; their ids are unique for the pod's life."""
    pod = _pod("sandbox", state)
    if state in (sandbox.CREATING, sandbox.READY):
        decide(pod, v.CreateContainer("c1", {}))
        with pytest.raises(IllegalTransition, match="unique ID should be provided"):
            decide(pod, v.CreateContainer("pod", {}))
    else:
        with pytest.raises(IllegalTransition, match="further container"):
            decide(pod, v.CreateContainer("c1", {}))


def test_what_does_not_exist_is_not_found() -> None:
    """Engines match this sentence, so it keeps their spelling."""
    pod = _running()
    for command in (v.Start("x"), v.Pause("x"), v.Resume("x"), v.Kill("x", 9), v.Delete("x"), v.Update("x", {}),
                    v.Exec("x", "x/e1", {})):  # fmt: skip
        with pytest.raises(NotFoundError, match=r"Container ID \(x\) does not exist"):
            decide(pod, command)
    with pytest.raises(NotFoundError):
        decide(pod, v.AttachShim("x/init", {}))


@pytest.mark.parametrize("state", process.TABLE.states)
def test_signals_reach_only_a_living_init(state: str) -> None:
    """`kill` moves no machine: it is recorded, and what it does is observed."""
    pod = _pod("process", state)
    if state == process.CREATED:
        pod.containers["pod"] = Unit(container.CREATED)
    if state in (process.CREATED, process.RUNNING):
        step = decide(pod, v.Kill("pod", 9))
        assert [draft.kind for draft in step.records] == ["command"]
        assert not step.intents
    else:
        with pytest.raises(IllegalTransition, match="container not running"):
            decide(pod, v.Kill("pod", 9))


@pytest.mark.parametrize("state", process.TABLE.states)
def test_only_an_exec_that_has_not_begun_can_be_abandoned(state: str) -> None:
    """One that is being spawned may be alive in the guest: it must not be forgotten."""
    pod = _give(_running(), v.Exec("pod", "pod/e1", {}))
    pod.processes["pod/e1"] = Unit(state, pod.processes["pod/e1"].facts)
    command = v.AbandonProcess("pod/e1", Cause("client_gone"))
    if state == process.DECLARED:
        closed = _give(pod, command).processes["pod/e1"]
        assert closed.state == process.CLOSED
        assert closed.facts["exit_code"] == v.EXIT_UNKNOWN
    else:
        with pytest.raises(IllegalTransition, match="can be abandoned"):
            decide(pod, command)
    with pytest.raises(IllegalTransition):
        decide(_give(Pod(), NEW), v.AbandonProcess("pod/init", Cause("client_gone")))


@pytest.mark.parametrize(
    ("code", "kind", "believed"),
    [(0, "exited", 0), (3, "exited", 3), (137, "signaled", 137), (0, "unknown", 255), (0, "guest_oom", 255)],
)
def test_only_a_process_that_ended_by_itself_can_have_succeeded(code: int, kind: str, believed: int) -> None:
    """Unknown is never success."""
    pod = _give(_running(), v.ProcessExited("pod/init", code, Cause(kind)))
    assert pod.processes["pod/init"].facts["exit_code"] == believed


@pytest.mark.parametrize(("code", "kind"), [(137, "signaled"), (255, "unknown")])
def test_what_is_killed_by_dismissing_the_agent_ended_with_its_sandbox(code: int, kind: str) -> None:
    """Whether the agent still came to tell of it is chance."""
    lost = Cause("virtiofsd_lost", "virtiofsd was killed by SIGKILL")
    pod = _give(_running(), v.ShareDied(lost))
    assert pod.agent.state == "closing"
    for told in (v.ProcessExited("pod/init", code, Cause(kind)), v.EffectDone("agent.disconnect", "pod")):
        facts = _give(pod, told).processes["pod/init"].facts
        assert (facts["exit_code"], facts["cause"]["kind"]) == (255, "virtiofsd_lost")


@pytest.mark.parametrize(("code", "kind"), [(0, "exited"), (143, "signaled"), (137, "guest_oom"), (137, "exited")])
def test_what_ends_by_itself_while_the_agent_is_dismissed_has_its_own_end(code: int, kind: str) -> None:
    pod = _give(_running(), v.ShareDied(Cause("virtiofsd_lost")), v.ProcessExited("pod/init", code, Cause(kind)))
    facts = pod.processes["pod/init"].facts
    assert (facts["exit_code"], facts["cause"]["kind"]) == (code, kind)


@pytest.mark.parametrize("kind", ["container.pause", "container.resume"])
def test_a_failure_that_ends_nothing_is_no_cause(kind: str) -> None:
    """A pause that did not work must not be told as the reason of an end that comes later."""
    pod = _give(_running(), v.Pause("pod"))
    if kind == "container.resume":
        pod = _give(_settle(pod), v.Resume("pod"))
    facts = _give(pod, v.EffectFailed(kind, "pod", "crun", "busy")).containers["pod"].facts
    assert facts["error"] == {"message": "busy", "effect": kind, "phase": "crun"}
    assert "cause" not in facts


def test_a_late_outcome_is_recorded_and_moves_nothing() -> None:
    """Its state was left while it was under way."""
    pod = _give(_running(), v.Pause("pod"), v.VmDied(Cause("vm_killed")))
    step = decide(pod, v.EffectDone("container.pause", "pod"))
    assert [(draft.kind, draft.body.get("late")) for draft in step.records] == [("outcome", True)]


def test_the_first_cause_is_kept() -> None:
    """What ends a pod is what began its end, not what followed from it."""
    pod = _give(_running(), v.ShareDied(Cause("share_died", "first")), v.VmDied(Cause("vm_killed", "second")))
    pod = _give(pod, v.StopSandbox(Cause("operator", "third")), v.HostRebooted("b"))
    assert pod.sandbox.facts["cause"]["message"] == "first"


def test_records_are_linked_to_what_led_to_them() -> None:
    """An input's own transition points to the input, a coupled one to the transition before it, an intent to its own."""
    step = decide(Pod(), NEW)
    linked = [(index, draft, index + draft.cause) for index, draft in enumerate(step.records) if draft.cause]
    assert [(index, draft.type, cause) for index, draft, cause in linked[:3]] == [
        (1, "sandbox.create", 0),
        (2, "container.declare", 0),
        (3, "process.declare", 0),
    ]
    assert all(cause == index - 1 for index, draft, cause in linked[3:] if draft.kind == "event")
    intents = [(draft.type, step.records[cause].type) for _, draft, cause in linked if draft.kind == "intent"]
    assert ("hypervisor.launch", "vm.launch") in intents
    assert len(intents) == len(step.intents)


@pytest.mark.parametrize("state", container.OCI_STATUS)
def test_what_a_refusal_calls_legal_is_legal(state: str) -> None:
    """And nothing else is: each request is tried."""
    asked = {
        "start": v.Start("pod"),
        "pause": v.Pause("pod"),
        "resume": v.Resume("pod"),
        "exec": v.Exec("pod", "pod/e9", {}),
        "delete": v.Delete("pod"),
        "delete --force": v.Delete("pod", force=True),
    }
    legal = set()
    for word, command in asked.items():
        try:
            decide(_pod("container", state), command)
        except IllegalTransition:
            continue
        legal.add(word)
    assert legal == set(legal_requests(state)) - {"kill", "update"}


def test_every_command_is_known_and_every_type_has_its_own_tag() -> None:
    """The tag is the record's type: two of the same would be one."""
    commands = v.Command.__args__
    assert set(_COMMANDS) == set(commands)
    tags = [kind.__struct_config__.tag for kind in (*commands, *v.Observation.__args__)]
    assert len(tags) == len(set(tags))
    assert set(TABLES) == {"sandbox", "vm", "agent", "network", "share", "container", "process"}
