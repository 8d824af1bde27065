# SPDX-License-Identifier: Apache-2.0
"""What a host that was away wants to know: every container and process, and how each ended."""

from __future__ import annotations

from time import CLOCK_BOOTTIME, clock_gettime_ns

from . import VERSION, cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .agent import Agent
    from .processes import Process

    Message = dict[str, Any]

_STDOUT, _STDERR = 1, 2
_PASSING = ("creating", "removing", "removed", "failed")  # the call that is at it will tell whoever repeats it


def query_state(agent: Agent, request: Message) -> Message:
    """Containers in the order of their creation, without those being created or removed at this moment."""
    return {
        "containers": [
            {
                "container_id": container.id,
                "state": container.state,
                "init_pid": 0 if container.init.exit is not None else container.init.pid,
                "processes": [_process(p) for p in container.processes.values() if p.state not in _PASSING],
            }
            for container in agent.containers.values()
            if container.state not in _PASSING
        ],
        "boot_ns": clock_gettime_ns(CLOCK_BOOTTIME),
        "agent_version": VERSION,
    }


def list_pids(agent: Agent, request: Message) -> Message:
    """Pids as the guest sees them."""
    return {"pids": cgroups.pids(agent.container(request.get("container_id", "")).cgroup)}


def run_ps(agent: Agent, request: Message) -> Message:
    """`ps` over the container's processes."""
    from . import ps

    pids = cgroups.pids(agent.container(request.get("container_id", "")).cgroup)
    status, out, err = ps.run(request.get("args") or [], pids, agent.settings.procfs)
    return {"stdout": out.encode(errors="replace"), "stderr": err.encode(errors="replace"), "status": status}


def _process(process: Process) -> Message:
    end = process.exit
    stdout, stderr = process.outputs.get(_STDOUT), process.outputs.get(_STDERR)
    return {
        "exec_id": process.exec_id,
        "pid": process.pid,
        "state": process.state,
        "exit_status": end.status if end is not None else 0,
        "signalled": end is not None and end.signal != 0,
        "oom_killed": process.oom_killed,
        "stdout_read": stdout.acknowledged if stdout is not None else 0,
        "stderr_read": stderr.acknowledged if stderr is not None else 0,
        "stdin_written": process.stdin.accepted if process.stdin is not None else 0,
        "exited_at_ns": end.at_ns if end is not None else 0,
    }
