# SPDX-License-Identifier: Apache-2.0
"""What must hold after every step and at the end, by what the world knows and the journal does not.

Each stream is folded here once more, record by record, and every transition is compared with the tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from kata_fsm.effects.fake.network import recorded, taps
from kata_fsm.effects.process import Exit
from kata_fsm.machines import Moved, Pod, agent, check, container, network, process, sandbox, vm
from kata_fsm.machines.coupling import next_move
from kata_fsm.machines.pod import INIT, TABLES, adopt, own
from kata_fsm.machines.vocab import CAUSES, EXIT_UNKNOWN
from kata_fsm.oci.devices import wanted_by
from kata_fsm.projections import project
from kata_fsm.supervisor.limiting import disks_of, limits_of

if TYPE_CHECKING:
    from kata_fsm.effects.fake.guest import Workload
    from kata_fsm.machines.pod import Unit
    from kata_fsm.testing.sim.universe import Universe

_MOVED = msgspec.json.Decoder(Moved)

TOLD_BY_THE_GUEST = frozenset({"exited", "signaled", "guest_oom"})


LEFT = {
    "vm": ("qemu", "vm files"),
    "network": ("netns", "tap"),
    "share": ("virtiofsd", "tree", "mount"),
    "container": ("mount", "cgroup"),
}
"""What may be left of each machine that was given up."""


def _ended_by(workload: Workload) -> str:
    """The cause of its end, as the guest tells it. One that was killed because the sandbox ended has the sandbox's."""
    if workload.dismissed:
        return "that of the sandbox"
    if workload.signal is None:
        return "exited"
    return "guest_oom" if workload.oom_killed else "signaled"


class Truth:
    """The checks of one universe. Whatever is wrong is added to its list."""

    def __init__(self, universe: Universe) -> None:
        self._universe = universe
        self._folded: dict[str, tuple[Pod, int]] = {}
        self.final = False  # everything is over

    def _wrong(self, stream: str, what: str) -> None:
        self._universe.wrong.append(f"`{stream}`: {what}")

    def folded(self, stream: str) -> Pod:
        """The fold of what is recorded now, every new record checked."""
        known, begun = self._folded.get(stream, (Pod(), 0))
        pod, rev = known, begun
        for record in self._universe.journal.read_stream(stream, rev + 1):
            rev = record.rev
            if record.kind == "outcome" and record.data.get("evidence", {}).get("bug"):
                self._wrong(stream, f"an effect failed by a bug: {record.data}")
            if record.kind != "event":
                continue
            if pod is known:
                pod = own(known)
            event = _MOVED.decode(record.body)
            problem = check(pod, event)
            if problem is not None:
                self._wrong(stream, f"record {record.rev}: {problem}")
            adopt(pod, event)
            self._universe.seen[f"{event.machine} {event.source} {event.trigger}"] += 1
        self._folded[stream] = (pod, rev)
        if rev != begun:
            self._projections(stream, pod)
            move = next_move(pod)
            if move is not None:
                self._wrong(stream, f"a step ended before the fixed point: `{move.rule}` is due")
        return pod

    def _projections(self, stream: str, pod: Pod) -> None:
        for key, value in project(pod, stream).items():
            held = self._universe.journal.projection(key)
            if pod.sandbox.state != sandbox.ABSENT and value is not None and held != value:
                self._wrong(stream, f"projection `{key.decode()}` is not what the records fold to")

    def check(self) -> None:
        """Everything that holds at any time."""
        universe = self._universe
        for stream in universe.streams:
            pod = self.folded(stream)
            life = universe.lives.get(stream)
            if life is not None and life.runtime is not None and not life.doomed.dead and life.runtime.pod != pod:
                self._wrong(stream, "the fold of the journal is not the live state")
            for subject, unit in pod.processes.items():
                self._process(stream, subject, unit)
            for subject, unit in pod.containers.items():
                self._container(stream, subject, unit)
            self._network(stream, pod)
            self._limits(stream, pod)
            self._disks(stream, pod)
            for what in universe.deeds.unjustified(pod):
                self._wrong(stream, what)
            cause = pod.sandbox.facts.get("cause", {}).get("kind")
            if pod.sandbox.state in (sandbox.STOPPED, sandbox.FAILED) and cause not in CAUSES:
                self._wrong(stream, f"it ended with cause `{cause}`")
        for what in universe.host.ledger.wrong:
            self._wrong("host", what)

    def _process(self, stream: str, subject: str, unit: Unit) -> None:
        if unit.state not in (process.EXITED, process.CLOSED):
            return
        owner, name = subject.rsplit("/", 1)
        guest = self._universe.guest_of(stream)
        workload = None if guest is None else guest.find(owner, name)
        code, cause = unit.facts.get("exit_code"), unit.facts.get("cause", {}).get("kind")
        if cause not in CAUSES:
            self._wrong(stream, f"{subject} ended with cause `{cause}`")
        if cause in TOLD_BY_THE_GUEST:
            if workload is None or not workload.over or code != workload.status or cause != _ended_by(workload):
                real = None if workload is None else (workload.code, workload.signal)
                self._wrong(stream, f"{subject} is said to have ended with {code} ({cause}), really {real}")
        elif code != EXIT_UNKNOWN:
            self._wrong(stream, f"{subject} ended with cause `{cause}` and code {code}: unknown is never success")
        if workload is None:
            return
        if (
            "spawned" not in unit.facts
            and name != INIT
            and workload.began
            and not workload.over
            and not self._deaf(stream)
        ):
            self._wrong(stream, f"{subject} is said to have failed, and runs in the guest")
        for shim in self._universe.shims:
            if shim.stream == stream and shim.subject == subject:
                if self.final and not shim.told and not shim.killed and "shim" in unit.facts:
                    self._wrong(stream, f"the shim of {subject} was never told how it ended")
                if shim.told and shim.code != code:
                    self._wrong(stream, f"the shim of {subject} ended with {shim.code}, the record says {code}")
                for number, data in shim.received.items():
                    if not workload.outputs[number].startswith(data):
                        self._wrong(stream, f"output {number} of {subject} was lost or doubled: {data!r}")

    def _deaf(self, stream: str) -> bool:
        """Nobody can learn anything from the guest any more: it is off, silent, or dismissed and about to be off."""
        guest, (pod, _) = self._universe.guest_of(stream), self._folded[stream]
        return guest is None or guest.off or guest.silent or pod.agent.state in agent.OVER

    def _container(self, stream: str, subject: str, unit: Unit) -> None:
        guest = self._universe.guest_of(stream)
        if guest is None:
            return
        for (owner, name), count in guest.begun.items():
            if count > 1:
                self._wrong(stream, f"{owner}/{name or INIT} was started {count} times")
        box = guest.boxes.get(subject)
        if unit.facts.get("started") and not guest.begun.get((subject, "")):
            self._wrong(stream, f"{subject} is said to run, and was never started")
        if unit.state in (container.PAUSED, container.RUNNING) and box is not None and not self._deaf(stream):
            frozen = box.state == "paused"
            if frozen != (unit.state == container.PAUSED) and box.state != "stopped":
                self._wrong(stream, f"{subject} is `{unit.state}`, in the guest it is `{box.state}`")

    def _network(self, stream: str, pod: Pod) -> None:
        """What is recorded of a network that nobody is changing is what the guest has, and what is joined on the host."""
        guest, host = self._universe.guest_of(stream), self._universe.host
        if pod.network.state != network.PLUGGED or pod.vm.state != vm.RUNNING or guest is None or guest.off:
            return
        known = recorded(pod.network.facts)
        if guest.nics != known:
            self._wrong(stream, f"the guest has the interfaces {guest.nics}, the record says {known}")
        if taps(host, stream.rpartition("@")[2]) != known:
            self._wrong(stream, f"joined are {taps(host, stream.rpartition('@')[2])}, the record says {known}")

    def _limits(self, stream: str, pod: Pod) -> None:
        """A pod at rest is limited on the host as its living containers are, whatever came and went."""
        life = self._universe.lives.get(stream)
        if life is None or life.doomed.dead or not life.at_rest or pod.sandbox.state != sandbox.READY:
            return
        if any(unit.state == container.STUCK or "left" in unit.facts for unit in pod.containers.values()):
            return  # what could not be taken from it is not given to the others
        wanted, found = limits_of(pod), self._universe.host.limits.get(stream.rpartition("@")[2])
        if found != wanted:
            self._wrong(stream, f"the limits on the host are {found}, the record says {wanted}")

    def _disks(self, stream: str, pod: Pod) -> None:
        """What the guest holds has its disks; a pod at rest has no others than its living containers ask for."""
        guest, host = self._universe.guest_of(stream), self._universe.host
        if pod.vm.state != vm.RUNNING or guest is None or guest.off:
            return
        there = set(host.disks(stream.rpartition("@")[2]))
        held = [unit for unit in pod.containers.values() if unit.state in container.IN_GUEST]
        needed = {each.serial for unit in held for each in wanted_by(unit.facts["config"])}
        if not needed <= there:
            self._wrong(stream, f"the machine has the disks {sorted(there)}, its containers need {sorted(needed)}")
        life = self._universe.lives.get(stream)
        if life is None or life.doomed.dead or not life.at_rest or pod.sandbox.state != sandbox.READY:
            return
        stuck = [unit for unit in pod.containers.values() if unit.state == container.STUCK]
        asked = {each.serial for unit in stuck for each in wanted_by(unit.facts["config"])}
        asked |= {each.serial for each in disks_of(pod)}
        if not there <= asked:
            self._wrong(stream, f"the machine has the disks {sorted(there)}, asked for are {sorted(asked)}")

    def _remove_what_was_left(self, stream: str, pod: Pod) -> None:
        """What a resolution has given up is an orphan, which `recover remove` ends. Nothing else may be left."""
        uid, host = stream.rpartition("@")[2], self._universe.host
        for machine, subject, unit in pod.units():
            if "left" not in unit.facts:
                continue
            self._universe.seen[f"left {machine}"] += 1
            prefix = f"{uid}/{subject}" if subject else uid
            for kind, name in list(host.ledger.held):
                if kind not in LEFT[machine] or not (name == prefix or (not subject and name.startswith(prefix))):
                    continue
                process = next(
                    (p for p in host.running.values() if (p.kind, f"{uid}/{p.identity.pid}") == (kind, name)), None
                )
                if process is not None:
                    host.end(process.identity, Exit(signal=9))
                else:
                    host.give_back(kind, name)

    def at_the_end(self) -> None:
        """After everything was deleted."""
        universe = self._universe
        self.final = True
        self.check()
        for stream in universe.streams:
            pod = self.folded(stream)
            if pod.sandbox.state not in (sandbox.DELETED, sandbox.ABSENT):
                states = ", ".join(f"{m} {s} {u.state}" for m, s, u in pod.units() if u.state not in TABLES[m].terminal)
                self._wrong(stream, f"it cannot be deleted: {states}")
            self._remove_what_was_left(stream, pod)
        left = universe.ids()
        if left:
            self._wrong("host", f"these ids are not free: {left}")
        for kind, name in list(universe.host.ledger.held):
            uid = name.split("/")[0]
            if kind in ("directory", "file") and uid in universe.orphaned():
                universe.seen["directory left behind by a supervisor that died while it cleaned"] += 1
                universe.host.drop_file(name) if kind == "file" else universe.host.give_back(kind, name)
            else:
                self._wrong("host", f"{kind} `{name}` is left")
        for odd in universe.host.ledger.unbalanced():
            self._wrong("host", odd)
