# SPDX-License-Identifier: Apache-2.0
"""Hearing of the OOM killer, and telling its SIGKILL from another's.

The kernel marks `memory.events` as urgent (EPOLLPRI) when it changes. The count in it rises before the killed process can be
reaped, so an exit by SIGKILL shortly after a rise, which we did not send ourselves, was the OOM killer's.
"""

from __future__ import annotations

import os
from time import monotonic

from . import cgroups
from .loop import BROKEN, URGENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .agent import Agent
    from .processes import Process

_BLAME_S = 10.0  # between the count's rise and the exit of a process that must first give its memory back
_FILE_BYTES = 4096
_SIGKILL = 9


class OomWatch:
    """For one container, from its creation to its removal."""

    def __init__(self, agent: Agent, container_id: str, directory: str) -> None:
        self._agent = agent
        self._container_id = container_id
        self._kills = 0
        self._rose_at_s = -_BLAME_S
        self._fd = -1
        try:
            self._fd = os.open(f"{directory}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return  # the guest's kernel has no memory controller, or it is not enabled here
        self._look()  # the kernel marks changes since the last read
        try:
            agent.loop.watch(self._fd, URGENT | BROKEN, self._on_event)
        except PermissionError:
            pass  # an ordinary file, as in tests: `blames` still looks

    def blames(self, process: Process) -> bool:
        """Was it the OOM killer who ended this process?"""
        if process.exit is None or process.exit.signal != _SIGKILL or process.killed_by_us:
            return False
        self._look()
        return monotonic() - self._rose_at_s < _BLAME_S

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            self._agent.loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _on_event(self, events: int) -> None:
        self._look()

    def _look(self) -> None:
        if self._fd < 0:
            return
        try:
            text = os.pread(self._fd, _FILE_BYTES, 0).decode()
        except OSError:  # ENODEV: the cgroup is gone
            self.close()
            return
        kills = cgroups.keyed(text).get("oom_kill", 0)
        if kills > self._kills:
            self._kills = kills
            self._rose_at_s = monotonic()
            self._agent.note_oom(self._container_id)
