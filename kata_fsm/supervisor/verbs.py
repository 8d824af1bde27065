# SPDX-License-Identifier: Apache-2.0
"""What each request on the socket does: one function per `op`, and the table of them all.

A verb submits a command, then waits until the pod shows how it ended. An illegal command has raised by then, and nothing
was changed; a failed one answers with what failed, after everything that was begun has been undone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from kata_fsm.errors import CallerError, EffectError, WorldError
from kata_fsm.limits import UNREAD_OUTPUT_S
from kata_fsm.machines import Pod, container
from kata_fsm.machines.pod import init_of
from kata_fsm.machines.vocab import Delete, Facts, Kill, Pause, Resume, Start
from kata_fsm.supervisor import standing
from kata_fsm.supervisor.channel import Channel
from kata_fsm.supervisor.creation import StartFailed, create, exec_
from kata_fsm.supervisor.networking import network_change, network_list
from kata_fsm.supervisor.questions import ping, ps, stats, update
from kata_fsm.supervisor.recovering import recover, resolve
from kata_fsm.supervisor.requests import Reply, Request, Verb, text_in
from kata_fsm.supervisor.session import SIGNAL_MAX

if TYPE_CHECKING:
    from kata_fsm.supervisor.server import Server


async def start(server: Server, _: Channel, request: Request) -> Reply:
    """Run the workload."""
    container_id = text_in(request, "container")
    await server.runtime.submit(Start(container_id), request.get("actor"))
    pod = await server.runtime.until(lambda pod: pod.unit("container", container_id).state != container.STARTING)
    facts = pod.unit("container", container_id).facts
    if not facts.get("started"):
        why = facts.get("error") or facts.get("cause") or {}
        raise StartFailed(f"cannot start container `{container_id}`: {why.get('message') or 'its guest is gone'}")
    return _ok_but(facts.get("poststart_failed"))


def _ok_but(warnings: list[str] | None) -> Reply:
    """It was done; what hooks failed meanwhile is only to be logged (runtime-spec, lifecycle)."""
    return {"ok": True, "warnings": warnings} if warnings else {"ok": True}


async def _toggle(server: Server, request: Request, command: Any, passing: str, reached: str, word: str) -> Reply:
    container_id = text_in(request, "container")
    await server.runtime.submit(command(container_id), request.get("actor"))
    pod = await server.runtime.until(lambda pod: pod.unit("container", container_id).state != passing)
    unit = pod.unit("container", container_id)
    if unit.state != reached:
        why = unit.facts.get("error") or {}
        message = why.get("message", f"it is `{unit.state}` now")
        raise WorldError(f"cannot {word} container `{container_id}`: {message}")
    return {"ok": True}


async def pause(server: Server, _: Channel, request: Request) -> Reply:
    """Freeze every process of the container."""
    return await _toggle(server, request, Pause, container.PAUSING, container.PAUSED, "pause")


async def resume(server: Server, _: Channel, request: Request) -> Reply:
    """Thaw them."""
    return await _toggle(server, request, Resume, container.RESUMING, container.RUNNING, "resume")


async def kill(server: Server, _: Channel, request: Request) -> Reply:
    """Send a signal to the init process, or with `all` to every process."""
    from kata_fsm.effects.agent.handlers import signal_process

    container_id, number, everyone = text_in(request, "container"), request.get("signal"), bool(request.get("all"))
    if not isinstance(number, int) or not 0 <= number <= SIGNAL_MAX:
        raise CallerError(f"the request's `signal` is `{number!r:.50}`, legal is 0 to {SIGNAL_MAX}")
    await server.runtime.submit(Kill(container_id, number, everyone), request.get("actor"))
    body: Facts = {"subject": init_of(container_id), "signal": number}
    try:
        delivered = await signal_process(server.link, container_id, "" if everyone else container_id, number)
    except EffectError as error:
        await server.runtime.note("outcome", "process.signal", {**body, "ok": False, "message": error.message})
        raise
    await server.runtime.note("outcome", "process.signal", {**body, "ok": delivered})
    if not delivered:
        raise CallerError("container not running")
    return {"ok": True}


async def delete(server: Server, _: Channel, request: Request) -> Reply:
    """Forget the container, and with its last one the sandbox."""
    container_id, force = text_in(request, "container"), bool(request.get("force"))
    runtime = server.runtime
    await runtime.submit(Delete(container_id, force), request.get("actor"))

    def over(pod: Pod) -> bool:
        unit = pod.unit("container", container_id)
        return unit.state == container.DELETED or standing.stuck(pod, container_id)

    with trio.move_on_after(UNREAD_OUTPUT_S):
        await runtime.until(over)
    if not force and not over(runtime.pod) and standing.has_unread_output(runtime.pod, container_id):
        raise WorldError(
            f"container `{container_id}` cannot be deleted yet: nobody reads what is left of its output",
            hint="read it, or give it up with `delete --force`",
        )
    pod = await runtime.until(over)
    if force:
        server.forced.update(standing.shims_of(pod, container_id))
    if pod.unit("container", container_id).state != container.DELETED:
        message, hint = standing.stuck_error(pod)
        raise WorldError(f"container `{container_id}` cannot be deleted yet: {message}", hint=hint)
    return _ok_but(pod.unit("container", container_id).facts.get("poststop_failed"))


VERBS: dict[str, Verb] = {
    "create": create,
    "start": start,
    "pause": pause,
    "resume": resume,
    "kill": kill,
    "delete": delete,
    "exec": exec_,
    "update": update,
    "network_change": network_change,
    "network_list": network_list,
    "stats": stats,
    "ps": ps,
    "ping": ping,
    "recover": recover,
    "resolve": resolve,
}
