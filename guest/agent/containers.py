# SPDX-License-Identifier: Apache-2.0
"""One container: crun makes it, the agent does the rest without crun, as every run of crun costs 0.1 s under emulation.

creating -> created -> running <-> paused; stopped when its init process has ended, whatever else still runs; removing.
"""

from __future__ import annotations

import os

from . import bundle, cgroups, files, jsonc, submounts
from .errors import RpcError, from_os_error, invalid, precondition
from .launch import launch, run_crun
from .loop import Notice
from .oom import OomWatch
from .processes import SIGKILL, Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from .agent import Agent
    from .launch import Launched
    from .loop import Wait

_FINISHED_EXECS_MAX = 256  # remembered of one container; a health probe adds one every few seconds for months


class Container:
    """See the head of this file. `request` is the call that asked for it, to know it again."""

    def __init__(self, agent: Agent, container_id: str, request: dict[str, Any]) -> None:
        self._agent = agent
        self.id = container_id
        self.request = request
        self.state = "creating"
        self.changed = Notice()
        self.bundle_dir = f"{agent.settings.state_dir}/bundles/{container_id}"
        self.cgroup = agent.settings.cgroup_root + cgroups.path_for(container_id)
        self.mounts: list[str] = []  # mount points of its storages
        self.init = Process(container_id, "", {})
        self.processes: dict[str, Process] = {"": self.init}
        self._spec: dict[str, Any] = {}
        self._held: list[str] = []  # directories of the host that are its own file systems here
        self._oom: OomWatch | None = None
        self._begun = False  # its program has been let run

    def become(self, state: str) -> None:
        """Change state and tell."""
        self.state = state
        self.changed.notify()

    def create(self, spec: dict[str, Any], pid_namespace: str | None) -> Generator[Wait, bool, None]:
        """Up to `created`. Raises RpcError; then nothing is left of it."""
        settings = self._agent.settings
        self._spec = spec
        try:
            machine_settings = bundle.adapt(spec, self.id, pid_namespace)
            process = bundle.section(spec, "process")
            bundle.apply_settings(machine_settings, settings.procfs)
            os.makedirs(self.bundle_dir, 0o700, exist_ok=True)
            files.write(f"{self.bundle_dir}/config.json", jsonc.dumps(spec))
            options = ["--bundle", self.bundle_dir, *(["--no-pivot"] if needs_no_pivot(settings.procfs) else [])]
            terminal = bool(process.get("terminal"))
            self._held = submounts.directories(spec, settings.shared_root)
            yield from submounts.hold(self._agent, self._held)
            launched = yield from launch(
                self._agent, "create", options, self.id, terminal=terminal, owner=bundle.owner(spec, process)
            )
        except Exception as error:
            yield from self._clear()
            raise _as_rpc_error(error, f"cannot create container `{self.id}`", spec.get("process")) from None
        self._oom = OomWatch(self._agent, self.id, self.cgroup)
        self._begin(self.init, launched, "created", process)
        self.become("created" if self.init.exit is None else "stopped")

    def start(self) -> Generator[Wait, bool, None]:
        """Let the created container's program begin."""
        if self._begun:
            return  # asked twice; how it ended is another call's business
        if self.state == "stopped":
            raise precondition(f"container `{self.id}` has ended before it was started")
        if self.state != "created":
            raise precondition(f"container `{self.id}` is `{self.state}`: `start` is not legal, legal in `created`")
        if (self._spec.get("hooks") or {}).get("poststart"):
            yield from run_crun(self._agent, "start", self.id)
        else:
            self._open_fifo()
        self._begun = True
        if self.init.exit is None:
            self.init.become("running")
            self.become("running")

    def exec(self, exec_id: str, spec: dict[str, Any], request: dict[str, Any]) -> Generator[Wait, bool, None]:
        """Run a further process. Raises RpcError; then nothing is left of it."""
        if self.state not in ("created", "running"):  # in a frozen one crun would hang
            legal = "`created` and `running`"
            raise precondition(f"container `{self.id}` is `{self.state}`: `exec` is not legal, legal in {legal}")
        process = self.processes[exec_id] = Process(self.id, exec_id, request)
        path = f"{self._agent.settings.state_dir}/{self._agent.next_serial()}.json"
        try:
            bundle.adapt_process(spec)
            files.write(path, jsonc.dumps(spec))
            launched = yield from launch(
                self._agent,
                "exec",
                ("--detach", "--process", path),
                self.id,
                terminal=bool(spec.get("terminal")),
                owner=bundle.owner(self._spec, spec),
            )
        except Exception as error:
            del self.processes[exec_id]
            process.become("failed")
            raise _as_rpc_error(error, f"cannot run process `{exec_id}` in container `{self.id}`", spec) from None
        finally:
            files.remove(path)
        self._begin(process, launched, "running", spec)
        self._forget_finished()

    def signal_all(self, number: int) -> Generator[Wait, bool, None]:
        """A signal to every process. It is frozen meanwhile, so that none can escape by forking."""
        for process in self.processes.values():
            process.killed_by_us = process.killed_by_us or number == SIGKILL
        if number == SIGKILL:
            cgroups.kill_all(self.cgroup)
            return
        paused = self.state == "paused"
        if not paused:
            yield from cgroups.freeze(self.cgroup, True)
        for pid in cgroups.pids(self.cgroup):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
        if not paused:
            yield from cgroups.freeze(self.cgroup, False)

    def freeze(self, frozen: bool) -> Generator[Wait, bool, None]:
        """Pause or resume; a repeat does nothing."""
        verb, wanted = ("pause", "paused") if frozen else ("resume", "running")
        if self.state == wanted:
            return
        if self.state not in ("running", "paused", "created"):
            raise precondition(f"container `{self.id}` is `{self.state}`: `{verb}` is not legal")
        yield from cgroups.freeze(self.cgroup, frozen)
        if self.state in ("running", "paused"):
            self.become(wanted)

    def update(self, resources: dict[str, Any]) -> Generator[Wait, bool, None]:
        """Change limits; crun knows how each is written."""
        path = f"{self._agent.settings.state_dir}/{self._agent.next_serial()}.json"
        try:
            files.write(path, jsonc.dumps(resources))
            yield from run_crun(self._agent, "update", "--resources", path, self.id)
        except (OSError, ValueError) as error:
            raise _as_rpc_error(error, f"cannot update container `{self.id}`") from None
        finally:
            files.remove(path)

    def remove(self, timeout_s: float | None) -> Generator[Wait, bool, None]:
        """Kill what runs and leave nothing. Raises FAILED_PRECONDITION when the init process outlives `timeout_s`."""
        self.become("removing")
        for process in self.processes.values():
            process.killed_by_us = True
        try:
            if self.init.exit is None:
                cgroups.kill_all(self.cgroup)
                self.init.signal(SIGKILL)
            while self.init.exit is None:
                if not (yield self.init.changed.wait(timeout_s)) and self.init.exit is None:
                    raise precondition(f"container `{self.id}` did not end in `{timeout_s:.0f}` s after SIGKILL")
            yield from self._clear()
        except Exception as error:
            self.become("stopped" if self.init.exit is not None else "running")
            raise _as_rpc_error(error, f"cannot remove container `{self.id}`") from None
        self.become("removed")

    def _clear(self) -> Generator[Wait, bool, None]:
        """Give back whatever there is of it."""
        if self._oom is not None:
            self._oom.close()
        for process in self.processes.values():
            process.release()
        yield from cgroups.remove(self.cgroup)
        files.remove_tree(f"{self._agent.settings.crun_root}/{self.id}")
        files.remove_tree(self.bundle_dir)
        yield from submounts.let_go(self._agent, self._held)

    def _begin(self, process: Process, launched: Launched, state: str, spec: dict[str, Any]) -> None:
        process.launched(self._agent.loop, launched, state)
        size = spec.get("consoleSize")
        if process.terminal and isinstance(size, dict):
            process.resize(int(size.get("height") or 0), int(size.get("width") or 0))
        launched.child.on_exit = lambda: self._exited(process, launched)
        if launched.child.exit is not None:  # it was quicker than crun
            self._exited(process, launched)

    def _exited(self, process: Process, launched: Launched) -> None:
        process.exit = launched.child.exit
        if self._oom is not None:
            process.oom_killed = self._oom.blames(process)
        process.become("exited")
        if process is self.init and self.state in ("created", "running", "paused"):
            self.become("stopped")

    def _open_fifo(self) -> None:
        """What `crun start` does: open its fifo and write one byte (crun 1.8.1, libcrun/status.c)."""
        path = f"{self._agent.settings.crun_root}/{self.id}/exec.fifo"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # ENXIO rather than waiting, if nobody reads
        except OSError as error:
            if self.init.exit is not None:
                raise precondition(f"container `{self.id}` has ended before it was started") from None
            raise from_os_error(error, f"cannot start container `{self.id}`") from None
        try:
            os.unlink(path)
            os.write(fd, b"\0")
        finally:
            os.close(fd)

    def _forget_finished(self) -> None:
        """Drop the oldest execs that ended and whose output was read, when there are very many."""
        surplus = len(self.processes) - _FINISHED_EXECS_MAX
        if surplus <= 0:
            return
        for exec_id, process in list(self.processes.items()):
            read = all(output.at_eof and output.acknowledged == output.end for output in process.outputs.values())
            if exec_id and process.state == "exited" and read and surplus > 0:
                process.release()
                del self.processes[exec_id]
                surplus -= 1


def needs_no_pivot(procfs: str) -> bool:
    """Is our root the initramfs itself, from which `pivot_root` is impossible? That mount alone is its own parent."""
    answer = False
    for line in files.read_or(f"{procfs}/self/mountinfo", "").splitlines():
        mount_id, parent_id, _, _, mount_point = line.split(" ", 5)[:5]
        if mount_point == "/":
            answer = mount_id == parent_id  # the last line with this mount point is the one on top
    return answer


def valid_id(container_id: object) -> str:
    """An id that may become a part of a path. Raises INVALID_ARGUMENT."""
    if not isinstance(container_id, str) or not container_id:
        raise invalid("`container_id` is empty")
    if "/" in container_id or container_id in (".", "..") or "\0" in container_id or len(container_id.encode()) > 255:
        raise invalid(f"`container_id` is `{container_id[:80]}`; it must be at most 255 bytes, without `/`")
    return container_id


def _as_rpc_error(error: Exception, what: str, process: Any = None) -> RpcError:
    if isinstance(error, RpcError):
        if isinstance(process, dict):
            # crun tells a program that is not there by name, but not one that cannot be executed
            name = str((process.get("args") or [""])[0])
            return RpcError(error.code, error.message.replace("open executable: ", f"open executable `{name}`: ", 1))
        return error
    if isinstance(error, OSError):
        return from_os_error(error, what)
    # a number where an object belongs, and the like: crun's schema is not repeated here
    return invalid(f"{what}: {type(error).__name__}: {error}")
