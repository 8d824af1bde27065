# SPDX-License-Identifier: Apache-2.0
"""Journals made by the machines themselves: a runtime without a world.

`Host` is a journal with clocks that stand still until told; `Driven` is one sandbox on it. `give(input)` lets the
machines decide and appends what they answer, in the shape in which the runtime writes it. What the world would have
answered is scripted by the test, so the bytes of a journal depend on nothing but the test's text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from journal import Journal, NewRecord, Record, Stamp
from kata_fsm.machines import Pod, decide, events_of, fold, outstanding
from kata_fsm.machines.vocab import (
    AttachShim,
    Cause,
    CreateSandbox,
    Drained,
    EffectDone,
    EffectFailed,
    ProcessExited,
    Start,
    VmDied,
)
from kata_fsm.projections import project

BOOT_ID = "11111111-2222-3333-4444-555555555555"
NEXT_BOOT_ID = "66666666-7777-8888-9999-000000000000"
WALL_NS = 1_795_431_727_000_000_000  # 2026-11-23 11:02:07 UTC
MONO_NS = 5_000_000_000_000

ENGINE = {"uid": 0, "loginuid": 1000, "pid": 8812, "comm": "podman", "argv": ["podman", "run", "busybox"]}
SHIM = {"uid": 0, "loginuid": 4294967295, "pid": 9001, "comm": "kata-fsm-shim", "argv": ["kata-fsm-shim"]}

RESULTS: dict[str, dict[str, Any]] = {
    "hypervisor.launch": {
        "process": {"pid": 9120, "start_ticks": 77, "boot_id": BOOT_ID},
        "argv": ["qemu-system-x86_64", "-nodefaults", "-machine", "q35,accel=kvm"],
        "accel": "kvm",
    },
    "share.prepare": {"process": {"pid": 9121, "start_ticks": 78, "boot_id": BOOT_ID}},
    "agent.connect": {"agent_version": "0.1.0", "tries": 3},
}
"""What the scripted world answers, where it has something to say."""


class Host:
    """One journal, one pair of clocks, one boot."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = Journal.open(path, sync=False)
        self.wall_ns = WALL_NS
        self.mono_ns = MONO_NS
        self.boot_id = BOOT_ID

    def close(self) -> None:
        self.journal.close()

    def wait(self, ms: float) -> None:
        """Let time pass."""
        self.wall_ns += int(ms * 1e6)
        self.mono_ns += int(ms * 1e6)

    def reboot(self, *, away_ms: float = 60_000.0) -> None:
        """A new boot: the monotonic clock begins again."""
        self.wall_ns += int(away_ms * 1e6)
        self.mono_ns = 10_000_000_000
        self.boot_id = NEXT_BOOT_ID

    def stamp(self) -> Stamp:
        return Stamp(self.wall_ns, self.mono_ns, self.boot_id)

    def sandbox(self, name: str = "web", uid: str = "3f9c1a2b4d5e") -> Driven:
        return Driven(self, name, uid)


class Driven:
    """One sandbox, driven by scripted inputs."""

    def __init__(self, host: Host, name: str, uid: str) -> None:
        self.host = host
        self.name = name
        self.uid = uid
        self.stream = f"{name}@{uid}"
        self.pod = Pod()
        self.rev = 0

    def append(self, records: list[NewRecord]) -> list[Record]:
        projections = project(self.pod, self.stream) if self.pod.id else {}
        stored = self.host.journal.append(
            self.stream, records, stamp=self.host.stamp(), expected_rev=self.rev, projections=projections
        )
        self.rev = stored[-1].rev
        return stored

    def give(self, given: Any, *, after_ms: float = 0.0, actor: dict[str, Any] | None = None) -> list[Record]:
        """Decide, append, fold. A command comes from `podman` unless told otherwise."""
        self.host.wait(after_ms)
        step = decide(self.pod, given)
        records = []
        for draft in step.records:
            body = dict(draft.body)
            who = (actor or ENGINE) if draft.kind == "command" else None
            if draft.type == "create_sandbox":
                body["versions"] = {"kata_fsm": "0.1.0", "tables": 1}
            records.append(NewRecord(draft.kind, draft.type, body, who, draft.cause or None))
        self.pod = fold(events_of(step), self.pod)
        return self.append(records)

    # -- what the world answers

    def done(self, kind: str, subject: str = "", *, ms: float = 10.0) -> None:
        self.give(EffectDone(kind, subject, RESULTS.get(kind, {}), ms), after_ms=ms)

    def failed(
        self, kind: str, phase: str, message: str, subject: str = "", *, ms: float = 10.0, **evidence: Any
    ) -> None:
        self.give(EffectFailed(kind, subject, phase, message, evidence, ms), after_ms=ms)

    def work_off(self, *, ms: float = 5.0) -> None:
        """Everything outstanding succeeds, one after the other, until nothing is."""
        while waiting := outstanding(self.pod):
            self.done(waiting[0].kind, waiting[0].subject, ms=ms)

    # -- whole passages

    def create(self) -> Driven:
        """`create`, up to the OCI status `created`."""
        config = {"root": "/run/x", "hypervisor": {"machine": "q35", "memory_mib": 256}, "hostname": self.name}
        container = {"bundle": "/bundles/web", "rootfs": "rootfs", "args": ["sleep", "9"], "terminal": False}
        self.give(CreateSandbox(self.name, self.uid, config, container))
        self.done("network.attach", ms=3)
        self.done("share.prepare", ms=12)
        self.give(AttachShim(f"{self.name}/init", {"pid": 9001, "start_ticks": 5, "boot_id": BOOT_ID}), actor=SHIM)
        self.done("container.prepare", self.name, ms=2)
        self.done("hypervisor.launch", ms=121)
        self.work_off(ms=40)
        return self

    def start(self) -> Driven:
        """`start`, up to `running`."""
        self.give(Start(self.name), after_ms=25)
        self.done("container.start", self.name, ms=30)
        return self

    def exits(self, code: int, *, after_ms: float = 2500.0) -> Driven:
        """The workload ends and everything is taken down."""
        kind = "signaled" if code > 128 else "exited"
        evidence = {"signal": code - 128} if code > 128 else {"code": code}
        cause = Cause(kind, f"ended by signal {code - 128}" if code > 128 else f"exit code {code}", evidence)
        self.give(ProcessExited(f"{self.name}/init", code, cause), after_ms=after_ms)
        self.give(Drained(f"{self.name}/init", {"stdout": 12, "stderr": 0}), after_ms=4)
        self.work_off()
        return self

    def vm_killed(self, *, after_ms: float = 191_000.0) -> Driven:
        """QEMU dies by SIGKILL; everything is taken down."""
        cause = Cause("vm_killed", "qemu ended by signal 9 (SIGKILL)", {"signal": 9, "source": "pidfd"})
        self.give(VmDied(cause), after_ms=after_ms)
        for subject, unit in list(self.pod.processes.items()):
            if unit.state == "exited":
                self.give(Drained(subject), after_ms=1)
        self.work_off()
        return self

    def delete(self, *, force: bool = False) -> Driven:
        from kata_fsm.machines.vocab import Delete

        self.give(Delete(self.name, force), after_ms=50)
        self.work_off()
        return self
