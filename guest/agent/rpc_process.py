# SPDX-License-Identifier: Apache-2.0
"""Calls about single processes."""

from __future__ import annotations

from kata_wire.envelope import ALREADY_EXISTS

from .errors import RpcError, invalid, not_found
from .rpc_container import raw_or_message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from .agent import Agent
    from .loop import Wait
    from .processes import Process

    Message = dict[str, Any]
    Steps = Generator[Wait, bool, Message]

_SIGNAL_MAX = 64


def exec_process(agent: Agent, request: Message) -> Steps:
    """Repeating it with the same process is fine, also when that has ended; with another one it is ALREADY_EXISTS."""
    container = agent.container(request.get("container_id", ""))
    exec_id = request.get("exec_id", "")
    if not exec_id or exec_id == container.id:
        raise invalid("`exec_id` is empty, or that of the container's own process")
    present = container.processes.get(exec_id)
    while present is not None and present.state == "creating":
        yield present.changed.wait()
        present = container.processes.get(exec_id)
    if present is not None:
        if present.request == request:
            return {}
        raise RpcError(ALREADY_EXISTS, f"process `{exec_id}` exists in container `{container.id}`, and is another one")
    spec = raw_or_message(request.get("process"), "process", "message_to_process")
    yield from container.exec(exec_id, spec, request)
    return {}


def signal_process(agent: Agent, request: Message) -> Steps:
    """An empty `exec_id` means every process of the container. NOT_FOUND for one process that has ended."""
    container = agent.container(request.get("container_id", ""))
    exec_id, number = request.get("exec_id", ""), request.get("signal", 0)
    if not 0 <= number <= _SIGNAL_MAX:
        raise invalid(f"`signal` is `{number}`, legal is up to `{_SIGNAL_MAX}`")
    if exec_id:
        process = agent.process(container.id, exec_id)
        if process.exit is not None:
            raise not_found(f"{process.name} has ended")
        process.signal(number)
    else:
        yield from container.signal_all(number)
    return {}


def wait_process(agent: Agent, request: Message) -> Steps:
    """Blocks until the process has ended. `status` as a shell has it."""
    process = _find(agent, request)
    while process.exit is None:
        yield process.changed.wait()
    return {"status": process.exit.status}


def wait_process2(agent: Agent, request: Message) -> Steps:
    """Ours: tells a signal from a code, and whose signal it was; a time limit on request."""
    process = _find(agent, request)
    timeout_ms = request.get("timeout_ms", 0)
    while process.exit is None:
        woken = yield process.changed.wait(timeout_ms / 1000 if timeout_ms else None)
        if not woken and process.exit is None:
            return {"exited": False}
    end = process.exit
    return {
        "exited": True,
        "code": end.code,
        "signal": end.signal,
        "oom_killed": process.oom_killed,
        "exited_at_ns": end.at_ns,
    }


def tty_win_resize(agent: Agent, request: Message) -> Message:
    """Set a terminal's size."""
    process = _find(agent, request)
    try:
        process.resize(request.get("row", 0), request.get("column", 0))
    except OSError:
        if process.exit is None:
            raise
    return {}


def get_oom_event(agent: Agent, request: Message) -> Steps:
    """Blocks until the OOM killer has been at work in a container; tells which. Each event is handed out once."""
    while not agent.oom_events:
        yield agent.oom_changed.wait()
    return {"container_id": agent.oom_events.pop(0)}


def _find(agent: Agent, request: Message) -> Process:
    return agent.process(request.get("container_id", ""), request.get("exec_id", ""))
