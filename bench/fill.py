# SPDX-License-Identifier: Apache-2.0
"""A journal of many running containers, written by the product's machines and projections, without any VM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from journal import Journal, NewRecord, Stamp
from kata_fsm.machines import Pod, decide, events_of, fold, outstanding
from kata_fsm.machines.vocab import AttachShim, CreateSandbox, EffectDone, Start
from kata_fsm.projections import project
from kata_fsm.world import WORLD


class Sandbox:
    """A sandbox with one running container, brought up in the journal alone. `journal`: whatever has its `append`."""

    def __init__(self, journal: Any, root: str, number: int) -> None:
        self.journal = journal
        self.name = self.name_of(number)
        self.uid = f"{number:012x}"
        self.stream = f"{self.name}@{self.uid}"
        self.process = {"pid": 10_000 + number, "start_ticks": 7, "boot_id": WORLD.boot_id()}
        self.pod = Pod()
        self.rev = 0
        self._projected: dict[bytes, bytes | None] = {}
        self._bring_up(root)

    @staticmethod
    def name_of(number: int) -> str:
        return f"web-{number:03d}"

    def _bring_up(self, root: str) -> None:
        bundle = f"/var/lib/engine/containers/{self.name}/bundle"
        sandbox = {"root": root, "hypervisor": {"machine": "q35", "memory_mib": 256}, "hostname": self.name}
        container = {
            "id": self.name,
            "root": root,
            "bundle": bundle,
            "rootfs": bundle + "/rootfs",
            "args": ["sleep", "100000"],
            "terminal": False,
            "created": "2026-11-23T11:02:07.000000000Z",
            "owner": "#0",
            "annotations": {"io.container.manager": "engine"},
        }
        self.give(CreateSandbox(self.name, self.uid, sandbox, container))
        self.give(AttachShim(f"{self.name}/init", self.process))
        self.work_off()
        self.give(Start(self.name))
        self.work_off()

    def work_off(self) -> None:
        while waiting := outstanding(self.pod):
            self.give(EffectDone(waiting[0].kind, waiting[0].subject, {"process": self.process}, 1.0))

    def give(self, given: Any) -> None:
        step = decide(self.pod, given)
        self.pod = fold(events_of(step), self.pod)
        records = [NewRecord(d.kind, d.type, dict(d.body), cause=d.cause or None) for d in step.records]
        stamp = Stamp(WORLD.wall_ns(), WORLD.mono_ns(), WORLD.boot_id())
        projected = project(self.pod, self.stream)
        changes = {key: value for key, value in projected.items() if self._projected.get(key, b"") != value}
        stored = self.journal.append(self.stream, records, stamp=stamp, expected_rev=self.rev, projections=changes)
        self._projected = projected
        self.rev = stored[-1].rev


def fill(path: Path, root: str, count: int) -> dict[str, str]:
    """`count` sandboxes with one running container each. Answers container id -> uid."""
    path.parent.mkdir(parents=True)
    with Journal.open(path, sync=False) as journal:
        made = [Sandbox(journal, root, number) for number in range(count)]
    return {each.name: each.uid for each in made}
