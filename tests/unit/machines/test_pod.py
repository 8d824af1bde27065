# SPDX-License-Identifier: Apache-2.0
"""What a pod remembers, and for how long."""

from __future__ import annotations

from collections.abc import Iterator

from kata_fsm import snapshots
from kata_fsm.machines import Moved, Pod, evolve, fold, process
from kata_fsm.machines.pod import EXECS_REMEMBERED

BOOT = "boot"
MANY = 20 * EXECS_REMEMBERED


def moved(name: str, source: str, trigger: str, dest: str, **facts: object) -> Moved:
    return Moved(machine="process", subject=f"box/{name}", source=source, trigger=trigger, dest=dest, facts=facts)


def life(name: str) -> Iterator[Moved]:
    """A probe: an exec that runs `true`."""
    yield moved(name, process.ABSENT, "declare", process.DECLARED, config={"args": ["true"]})
    yield moved(name, process.DECLARED, "spawn", process.SPAWNING)
    yield moved(name, process.SPAWNING, "spawned", process.RUNNING)
    yield moved(name, process.RUNNING, "exited", process.EXITED, exit_code=0)
    yield moved(name, process.EXITED, "drained", process.CLOSED)


def probed(times: int) -> list[Moved]:
    """An init that has ended, an exec that lives, and so many probes after both."""
    lasting = [*life("init"), *list(life("shell"))[:3]]
    return lasting + [event for number in range(times) for event in life(f"probe-{number}")]


def test_closed_execs_are_forgotten_but_for_the_last_ones() -> None:
    """A container that is probed every ten seconds for a month is no larger than after half an hour."""
    pod = fold(probed(MANY))
    last = [f"box/probe-{number}" for number in range(MANY - EXECS_REMEMBERED, MANY)]
    assert list(pod.processes) == ["box/init", "box/shell", *last]
    assert pod.processes["box/init"].state == process.CLOSED
    assert pod.processes["box/shell"].state == process.RUNNING
    size = len(snapshots.dump(pod, BOOT))
    assert size <= len(snapshots.dump(fold(probed(EXECS_REMEMBERED)), BOOT)) * 1.1


def test_step_by_step_or_at_once_the_same_is_forgotten() -> None:
    """From a snapshot on as well. And `evolve` changes no pod that somebody holds."""
    events = probed(2 * EXECS_REMEMBERED)
    pod = Pod()
    for at, event in enumerate(events):
        before = dict(pod.processes)
        new = evolve(pod, event)
        assert pod.processes == before
        pod = new
        if at == len(events) // 2:
            kept = snapshots.parse(snapshots.dump(pod, BOOT))
            assert kept is not None
            half = kept.pod
    whole = fold(events)
    assert list(pod.processes.items()) == list(whole.processes.items())
    assert list(fold(events[len(events) // 2 + 1 :], half).processes.items()) == list(whole.processes.items())


def test_an_exec_that_closes_after_many_others_is_known_when_it_does() -> None:
    """Whoever waits for its end looks at the pod in which it ended."""
    pod = fold(probed(MANY))
    for event in list(life("shell"))[3:]:
        pod = evolve(pod, event)
        assert pod.processes["box/shell"].state == event.dest
    for event in (each for number in range(EXECS_REMEMBERED - 1) for each in life(f"later-{number}")):
        pod = evolve(pod, event)
    assert "box/shell" in pod.processes
    assert len(pod.processes) == EXECS_REMEMBERED + 1
    assert "box/shell" not in fold(life("last"), pod).processes
