# SPDX-License-Identifier: Apache-2.0
"""Every joint state of a small pod, not a sample: each is sound, and from each the end can be reached.

Two pods are the same here when they differ in nothing that `decide` looks at. By default a pod of one container and one
exec is explored to the last state (some 12,000 of them); the nightly profile takes two containers (some 360,000).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from pod_programs import check_released, check_standing, has_network

from kata_fsm.errors import CallerError
from kata_fsm.machines import Cause, Pod, check, container, decide, events_of, evolve, outstanding, process, sandbox
from kata_fsm.machines import vocab as v
from kata_fsm.machines.coupling import next_move
from kata_fsm.machines.pod import POD_MACHINES, TABLES

NIGHTLY = os.environ.get("KATA_FSM_PROFILE") == "nightly"

Key = tuple[Any, ...]


def _key(pod: Pod) -> Key:
    """Everything that decides what a pod does next."""
    facts = pod.sandbox.facts
    return (
        bool(facts.get("force")),
        facts.get("cause", {}).get("kind") in v.CLEAN_ENDINGS,
        *(getattr(pod, name).state for name in POD_MACHINES),
        *(
            (
                subject,
                unit.state,
                unit.facts.get("condemned"),
                "created" in unit.facts,
                unit.facts.get("discard_failed"),
            )
            for subject, unit in pod.containers.items()
        ),
        *((subject, unit.state, "shim" in unit.facts) for subject, unit in pod.processes.items()),
    )


def _kind_inputs(pod: Pod) -> Iterator[v.Input]:
    """What happens when nothing goes wrong and somebody wants the end."""
    for intent in outstanding(pod):
        yield v.EffectDone(intent.kind, intent.subject)
    for subject in pod.containers:
        yield v.Delete(subject, force=True)
    for subject, unit in pod.processes.items():
        if unit.state in (process.CREATED, process.RUNNING):
            yield v.ProcessExited(subject, 137, Cause("signaled"))
        yield v.Drained(subject)


def _other_inputs(pod: Pod) -> Iterator[v.Input]:
    for intent in outstanding(pod):
        yield v.EffectFailed(intent.kind, intent.subject, "phase", "it failed")
    for subject in pod.containers:
        yield from (v.Start(subject), v.Pause(subject), v.Resume(subject), v.Delete(subject))
    for subject in pod.processes:
        yield v.AttachShim(subject, {"pid": 1})
        yield v.AbandonProcess(subject, Cause("client_gone"))
    if NIGHTLY and "c1" not in pod.containers:
        yield v.CreateContainer("c1", {})
    if has_network(pod):
        yield v.ChangeNetwork({"rescan": True})
    elif not NIGHTLY and "pod/e1" not in pod.processes:
        yield v.Exec("pod", "pod/e1", {})
    yield from (v.StopSandbox(Cause("operator")), v.StopSandbox(Cause("operator"), force=True))
    yield from (v.VmDied(Cause("vm_killed")), v.AgentLost(Cause("agent_lost")), v.ShareDied(Cause("share_died")))
    yield v.HostRebooted("another-boot")


def _after(pod: Pod, given: v.Input) -> Pod | None:
    """The pod after `given`; None if it is refused or moves nothing."""
    try:
        events = events_of(decide(pod, given))
    except CallerError:
        return None
    for event in events:
        assert check(pod, event) is None
        pod = evolve(pod, event)
    return pod if events else None


def _check_joint(pod: Pod) -> None:
    assert next_move(pod) is None
    check_standing(pod)
    units = [(machine, subject) for machine, subject, unit in pod.units() if unit.state in TABLES[machine].effects]
    assert len(outstanding(pod)) == len(units)
    if pod.sandbox.state in sandbox.ENDED:
        check_released(pod)
    else:
        assert any(unit.state != container.DELETED for unit in pod.containers.values())


@pytest.mark.parametrize("config", [{}, {"network_model": "tcfilter"}], ids=["none", "tcfilter"])
def test_every_joint_state_is_sound_and_none_is_undeletable(config: v.Facts) -> None:
    """Safety in each state, and a way to `deleted` from each that needs nothing to fail."""
    start = _after(Pod(), v.CreateSandbox("pod", "0123456789ab", config, {}))
    assert start is not None
    found, todo = {_key(start)}, [start]
    before: dict[Key, set[Key]] = {}
    ends: list[Key] = []
    while todo:
        pod = todo.pop()
        key = _key(pod)
        _check_joint(pod)
        if pod.sandbox.state == sandbox.DELETED:
            ends.append(key)
        for kind, inputs in ((True, _kind_inputs(pod)), (False, _other_inputs(pod))):
            for given in inputs:
                after = _after(pod, given)
                if after is None:
                    continue
                reached = _key(after)
                if kind:
                    before.setdefault(reached, set()).add(key)
                if reached not in found:
                    found.add(reached)
                    todo.append(after)
    assert len(found) > 10_000
    good = set(ends)
    while ends:
        for key in before.get(ends.pop(), set()) - good:
            good.add(key)
            ends.append(key)
    assert not found - good, f"{len(found - good)} joint states cannot be deleted, such as {min(found - good, key=str)}"
