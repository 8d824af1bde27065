# SPDX-License-Identifier: Apache-2.0
"""The pod: what the fold of a sandbox's stream yields.

`evolve` applies one event, `fold` many. Neither judges: an event is a fact, and the state it leads to is the one it
carries; `check` says whether the tables agree (replay uses it to name divergences).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from kata_fsm.machines import agent, container, network, process, sandbox, share, vm
from kata_fsm.machines.table import Table
from kata_fsm.machines.vocab import Facts, Moved

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        sandbox.TABLE,
        vm.TABLE,
        agent.TABLE,
        network.TABLE,
        share.TABLE,
        container.TABLE,
        process.TABLE,
    )
}

TABLE_VERSION = 1
"""Goes up whenever a table changes in a way that makes an old journal read differently."""

POD_MACHINES = ("sandbox", "vm", "agent", "network", "share")

INIT = "init"

EXECS_REMEMBERED = 128
"""How many closed execs a pod knows: an engine that probes a container's health every few seconds makes one each time, for
months, and every step looks at all processes. The agent in the guest forgets them as well. The journal has all of them."""


def init_of(container_id: str) -> str:
    """The subject of a container's init process."""
    return f"{container_id}/{INIT}"


def container_of(process_subject: str) -> str:
    """The container that a process belongs to."""
    return process_subject.rsplit("/", 1)[0]


class Unit(msgspec.Struct, gc=False):  # as `Moved`
    """One machine of one subject: its state and what its transitions taught us."""

    state: str
    facts: Facts = msgspec.field(default_factory=dict)


class Pod(msgspec.Struct):
    """All machines of one sandbox. Treat as a value: `evolve` answers a new one."""

    sandbox: Unit = msgspec.field(default_factory=lambda: Unit(sandbox.ABSENT))
    vm: Unit = msgspec.field(default_factory=lambda: Unit(vm.ABSENT))
    agent: Unit = msgspec.field(default_factory=lambda: Unit(agent.ABSENT))
    network: Unit = msgspec.field(default_factory=lambda: Unit(network.ABSENT))
    share: Unit = msgspec.field(default_factory=lambda: Unit(share.ABSENT))
    containers: dict[str, Unit] = msgspec.field(default_factory=dict)
    processes: dict[str, Unit] = msgspec.field(default_factory=dict)

    def unit(self, machine: str, subject: str) -> Unit:
        """The unit of `machine` for `subject`; a fresh one in its initial state where there is none yet."""
        if machine == "container":
            return self.containers.get(subject) or Unit(container.ABSENT)
        if machine == "process":
            return self.processes.get(subject) or Unit(process.ABSENT)
        unit: Unit = getattr(self, machine)
        return unit

    def units(self) -> Iterable[tuple[str, str, Unit]]:
        """Every (machine, subject, unit), pod-wide machines first."""
        for name in POD_MACHINES:
            yield name, "", getattr(self, name)
        for subject, unit in self.containers.items():
            yield "container", subject, unit
        for subject, unit in self.processes.items():
            yield "process", subject, unit

    def processes_of(self, container_id: str) -> list[tuple[str, Unit]]:
        """The processes of one container, init first."""
        prefix = container_id + "/"
        return [(subject, unit) for subject, unit in self.processes.items() if subject.startswith(prefix)]

    @property
    def id(self) -> str:
        """The sandbox's id (empty before it was created)."""
        return str(self.sandbox.facts.get("id", ""))


def _place(pod: Pod, event: Moved, unit: Unit) -> None:
    if event.machine == "container":
        pod.containers[event.subject] = unit
    elif event.machine == "process":
        if unit.state == process.CLOSED and not _is_init(event.subject):
            pod.processes.pop(event.subject, None)  # to the end: forgotten are those that were closed first
            _forget(pod.processes)
        pod.processes[event.subject] = unit
    else:
        setattr(pod, event.machine, unit)


def _forget(processes: dict[str, Unit]) -> None:
    """Make room for one more closed exec, in a dict of our own."""
    if len(processes) < EXECS_REMEMBERED:
        return
    closed = [subject for subject, unit in processes.items() if unit.state == process.CLOSED and not _is_init(subject)]
    for subject in closed[: max(0, len(closed) + 1 - EXECS_REMEMBERED)]:
        del processes[subject]


def _is_init(process_subject: str) -> bool:
    return process_subject.endswith(f"/{INIT}")


def own(pod: Pod) -> Pod:
    """An equal pod that the caller may change by `adopt`."""
    return Pod(pod.sandbox, pod.vm, pod.agent, pod.network, pod.share, dict(pod.containers), dict(pod.processes))


def adopt(pod: Pod, event: Moved) -> None:
    """Apply `event` in place: only to a pod of one's own."""
    known = pod.unit(event.machine, event.subject).facts
    _place(pod, event, Unit(event.dest, {**known, **event.facts} if event.facts else known))


def evolve(pod: Pod, event: Moved) -> Pod:
    """The pod after `event`. Pure: the given pod is not changed."""
    new = own(pod)
    adopt(new, event)
    return new


def fold(events: Iterable[Moved], pod: Pod | None = None) -> Pod:
    """The pod after all `events`, applied in place to a pod of our own: the fast way for whole streams."""
    pod = Pod() if pod is None else own(pod)
    for event in events:
        adopt(pod, event)
    return pod


def check(pod: Pod, event: Moved) -> str | None:
    """What is wrong with `event` as the next one after `pod`, by this build's tables; None if nothing is."""
    table = TABLES.get(event.machine)
    if table is None:
        return f"there is no machine `{event.machine}`"
    state = pod.unit(event.machine, event.subject).state
    if state != event.source:
        return f"{event.machine} is `{state}`, the record says it was `{event.source}`"
    dest = table.follow(state, event.trigger)
    if dest is None:
        return f"{event.machine} has no row `{state}` --{event.trigger}-->"
    if dest != event.dest:
        return f"{event.machine} `{state}` --{event.trigger}--> leads to `{dest}`, the record says `{event.dest}`"
    return None


def moved_from_body(body: dict[str, Any]) -> Moved:
    """The event in a record's body. Raises `msgspec.ValidationError` if it is none."""
    return msgspec.convert(body, Moved)


def summary(pod: Pod) -> dict[str, Any]:
    """States only, for people and for `--json`."""
    return {
        **{name: getattr(pod, name).state for name in POD_MACHINES},
        "containers": {subject: unit.state for subject, unit in pod.containers.items()},
        "processes": {subject: unit.state for subject, unit in pod.processes.items()},
    }
