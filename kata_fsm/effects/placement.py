# SPDX-License-Identifier: Apache-2.0
"""The host cgroup of a sandbox's own processes: supervisor, QEMU, virtiofsd; and the limits that it has.

They live in the cgroup of the container that made the sandbox (`linux.cgroupsPath`), beside its shim, as with Kata's
`sandbox_cgroup_only`: whoever asks the engine what the pod costs is told what it costs, and a limit that the engine has put
on a cgroup above holds for the whole machine. The pod's own limits (`oci.hosting`) are written there as well, before QEMU is
born, and again whenever a container comes, goes or changes: what `wanted` answers then. Each writing asks it anew, one
after the other, so the last one has written what is wanted last.

The supervisor goes in first; QEMU and virtiofsd are born in it, so every page of theirs is charged there. It leaves again
before the cgroup is removed, with the sandbox's last effect (`storage.ContainerDiscard`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import trio

from kata_fsm import errors, systemd
from kata_fsm.effects import cgroup, cgroup_limits
from kata_fsm.oci.hosting import Limits


def _unlimited() -> Limits:
    return Limits()


class Placement:
    """`config` is what the sandbox was created with: {"id", "cgroups_path", "systemd_cgroup" if systemd is to make it};
    without a path, as older sandboxes are, nobody is moved and nothing limited. `wanted`: the limits as of now."""

    def __init__(self, uid: str, config: Mapping[str, Any], wanted: Callable[[], Limits] = _unlimited) -> None:
        self.uid = uid
        self.path: str | None = None
        self.scope = cgroup.scope_of(str(config.get("cgroups_path"))) if config.get("systemd_cgroup") else None
        self._wanted = wanted
        self._lock = trio.Lock()
        self._entered: list[str] | None = None
        self._systemd_knows = Limits()
        self._written: Limits | None = None
        if "cgroups_path" in config:
            try:
                self.path = cgroup.resolve(str(config["cgroups_path"] or ""), str(config["id"]), uid)
            except errors.EffectError:
                pass  # `container.prepare` refuses it, and says why

    async def enter(self) -> list[str]:
        """Make the cgroup wherever it can be made, limit it, and move this process into it: the directories that took it.

        Raises `WorldError` when systemd was asked to make it and does not, or a limit cannot be applied.
        """
        async with self._lock:
            if self.path is not None and self._entered is None:
                made = await cgroup.created(self.path, self.uid)
                if self.scope is not None:
                    await self._start_scope(*self.scope)
                await self._write()
                self._entered = await self._join([str(each["path"]) for each in made["cgroups"]])
        return self._entered or []

    async def _start_scope(self, slice_name: str, unit: str) -> None:
        """systemd makes no scope without a process, and removes one without."""
        try:
            await trio.to_thread.run_sync(systemd.start_scope, unit, slice_name, os.getpid())
        except errors.WorldError as error:
            raise errors.EffectError("systemd", error.message, hint=error.hint) from error

    async def return_to(self) -> None:
        """Go into the cgroup if it is there: a supervisor that goes on with a sandbox was started from anywhere.

        One that cannot stays where it is: the sandbox is worth more than its statistics.
        """
        path = self.path
        if path is None:
            return
        async with self._lock:
            try:
                found = await cgroup.bounded(f"looking at cgroup `{path}`", lambda: cgroup.find(path, self.uid))
                self._entered = await self._join([str(each["path"]) for each in found]) or None
            except errors.TimeoutExceeded as error:
                print(f"supervisor: {error.message}", file=sys.stderr, flush=True)

    async def _join(self, directories: list[str]) -> list[str]:
        """In a thread: the kernel sleeps some milliseconds in the first move for a while."""
        what = f"moving the supervisor into cgroup `{self.path}`"
        refused = await cgroup.bounded(what, lambda: cgroup.attach(directories, os.getpid()))
        return [directory for directory in directories if directory not in {each["path"] for each in refused}]

    async def limit(self) -> dict[str, Any]:
        """Let the cgroup have the limits that are wanted now, if it is there.

        Answers {"limited": {file: value} of what was written, "unheld": a line for each that the host does not hold}.
        Raises `EffectError` for one that cannot be applied.
        """
        async with self._lock:
            return await self._write()

    async def _write(self) -> dict[str, Any]:
        if self.path is None:
            return {"limited": {}, "unheld": []}
        limits = self._wanted()
        places, what = self._places(self.path), f"limiting cgroup `{self.path}`"
        applied = await cgroup.bounded(what, lambda: cgroup_limits.apply(places, limits))
        if self.scope is not None and limits != self._systemd_knows:
            await self._tell_systemd(self.scope[1], limits)
        self._written = limits
        return {"limited": applied.written, "unheld": cgroup_limits.told(applied.unheld)}

    def _places(self, path: str) -> list[cgroup_limits.Place]:
        """Where the cgroup is. One that this process could not enter does not hold what is born here, and does not count."""
        there = [(each, each.point + path) for each in cgroup.hierarchies()]
        return [
            cgroup_limits.Place(each, directory, cgroup.owner_of(directory) == self.uid)
            for each, directory in there
            if os.path.isdir(directory) and (self._entered is None or directory in self._entered)
        ]

    async def _tell_systemd(self, unit: str, limits: Limits) -> None:
        unified = any(each.unified and each.point == "/sys/fs/cgroup" for each in cgroup.hierarchies())
        properties = cgroup_limits.systemds(limits, unified=unified)
        try:
            await trio.to_thread.run_sync(systemd.set_properties, unit, properties)
        except errors.WorldError as error:
            raise errors.EffectError("systemd", error.message, hint=error.hint) from error
        self._systemd_knows = limits

    def holds(self) -> bool:
        """Whether what is wanted now is what was last written from here."""
        return self.path is None or self._written == self._wanted()
