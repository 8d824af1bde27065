# SPDX-License-Identifier: Apache-2.0
"""The host cgroup of a sandbox's own processes: supervisor, QEMU, virtiofsd.

They live in the cgroup of the container that made the sandbox (`linux.cgroupsPath`), beside its shim, as with Kata's
`sandbox_cgroup_only`: whoever asks the engine what the pod costs is told what it costs, and a limit that the engine has put
on a cgroup above holds for the whole machine. No limit is written here: a container's own holds inside the guest, and one of
the same size around QEMU would have it killed for what the machine needs beside its workload.

The supervisor goes in first; QEMU and virtiofsd are born in it, so every page of theirs is charged there. It leaves again
before the cgroup is removed, with the sandbox's last effect (`storage.ContainerDiscard`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import trio

from kata_fsm import errors, systemd
from kata_fsm.effects import cgroup


class Placement:
    """`config` is what the sandbox was created with: {"id", "cgroups_path", "systemd_cgroup" if systemd is to make it};
    without a path, as older sandboxes are, nobody is moved."""

    def __init__(self, uid: str, config: Mapping[str, Any]) -> None:
        self.uid = uid
        self.path: str | None = None
        self.scope = cgroup.scope_of(str(config.get("cgroups_path"))) if config.get("systemd_cgroup") else None
        self._lock = trio.Lock()
        self._entered: list[str] = []
        if "cgroups_path" in config:
            try:
                self.path = cgroup.resolve(str(config["cgroups_path"] or ""), str(config["id"]), uid)
            except errors.EffectError:
                pass  # `container.prepare` refuses it, and says why

    async def enter(self) -> list[str]:
        """Make the cgroup wherever it can be made, and move this process into it: the directories that took it.

        Raises `WorldError` when systemd was asked to make it and does not.
        """
        async with self._lock:
            if self.path is not None and not self._entered:
                made = await cgroup.created(self.path, self.uid)
                if self.scope is not None:
                    await self._start_scope(*self.scope)
                self._entered = await self._join([str(each["path"]) for each in made["cgroups"]])
        return self._entered

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
                self._entered = await self._join([str(each["path"]) for each in found])
            except errors.TimeoutExceeded as error:
                print(f"supervisor: {error.message}", file=sys.stderr, flush=True)

    async def _join(self, directories: list[str]) -> list[str]:
        """In a thread: the kernel sleeps some milliseconds in the first move for a while."""
        what = f"moving the supervisor into cgroup `{self.path}`"
        refused = await cgroup.bounded(what, lambda: cgroup.attach(directories, os.getpid()))
        return [directory for directory in directories if directory not in {each["path"] for each in refused}]
