# SPDX-License-Identifier: Apache-2.0
"""What each request on the socket does: one function per `op`.

A verb submits a command, then waits until the pod shows how it ended. An illegal command has raised by then, and nothing
was changed; a failed one answers with what failed, after everything that was begun has been undone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import trio

from kata_fsm.effects.agent.client import AGENT, EXTENSION
from kata_fsm.effects.process import Identity
from kata_fsm.errors import CallerError, EffectError, IllegalTransition, NotFoundError, WorldError
from kata_fsm.limits import EXEC_ID_CHARS_MAX, SHIM_ATTACH_S, UNREAD_OUTPUT_S
from kata_fsm.machines import Cause, Pod, container, network, process, sandbox
from kata_fsm.machines.pod import INIT, init_of
from kata_fsm.machines.vocab import (
    AbandonProcess,
    CreateContainer,
    CreateSandbox,
    Delete,
    Exec,
    Facts,
    Kill,
    Pause,
    Resume,
    Start,
    StopSandbox,
    Update,
)
from kata_fsm.oci.names import check_id
from kata_fsm.supervisor.channel import Channel
from kata_fsm.supervisor.session import SIGNAL_MAX
from kata_fsm.world import WORLD

if TYPE_CHECKING:
    from kata_fsm.supervisor.server import Server

Reply = dict[str, Any]
Verb = Callable[["Server", Channel, dict[str, Any]], Awaitable[Reply]]

_PREPARED = frozenset({container.PREPARED, container.CREATING}) | container.IN_GUEST
_ENDED_EARLY = frozenset(
    {container.STOPPED, container.REMOVING, container.UNSTAGING, container.STUCK, container.DEAD, container.DISCARDING,
     container.DELETED}
)  # fmt: skip


class CreateFailed(WorldError):
    """A sandbox or container could not be created; everything that was begun has been undone."""


class StartFailed(WorldError):
    """The workload's process could not be started."""


def _text(request: dict[str, Any], name: str) -> str:
    value = request.get(name)
    if not isinstance(value, str) or not value:
        raise CallerError(f"the request has no `{name}`")
    return value


def _object(request: dict[str, Any], name: str) -> dict[str, Any]:
    value = request.get(name)
    if not isinstance(value, dict):
        raise CallerError(f"the request has no `{name}`")
    return value


def _keep(directory: str, name: str, value: Facts) -> str:
    """Keep what only the guest needs (it may hold secrets) in the run directory, out of the journal."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    # A name of its own for each request: one that is refused must not touch what another container still needs.
    path = f"{directory}/{name}.{WORLD.random_bytes(4).hex()}.json"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump(value, file)
    return path


def _drop(path: str) -> None:
    """Forget what was kept."""
    try:
        os.unlink(path)
    except OSError:
        pass  # removed with the run directory at the latest


def _error_of(pod: Pod, container_id: str) -> tuple[str, str | None]:
    """Why a container did not come to be: its own error first, then its sandbox's."""
    found: Facts
    for found in (
        pod.unit("container", container_id).facts,
        pod.vm.facts,
        pod.share.facts,
        pod.network.facts,
        pod.agent.facts,
        pod.sandbox.facts,
    ):
        error = found.get("error")
        if error:
            return str(error.get("message", "")), error.get("hint")
    cause = pod.sandbox.facts.get("cause") or pod.unit("container", container_id).facts.get("cause") or {}
    return str(cause.get("message") or cause.get("kind") or "the cause is unknown"), None


# --- create -----------------------------------------------------------------------------------------------------------


async def create(server: Server, channel: Channel, request: dict[str, Any]) -> Reply:
    """Make a sandbox with its first container, or a further container in this one."""
    given = _object(request, "container")
    container_id = check_id(_text(given, "id"))
    config = {key: value for key, value in given.items() if key != "guest_spec"}
    config["spec_file"] = _keep(server.paths.base + "/specs", container_id, _object(given, "guest_spec"))
    made = request.get("sandbox")
    if isinstance(made, dict):
        if server.watcher.wiring is None:
            server.wire(made)
        command: Any = CreateSandbox(_text(made, "id"), _text(made, "uid"), made, config)
    else:
        command = CreateContainer(container_id, config)
    try:
        await server.runtime.submit(command, request.get("actor"))
    except Exception:
        _drop(config["spec_file"])
        raise
    pod = await server.runtime.until(lambda pod: _host_side_ready(pod, container_id) or _over(pod, container_id))
    if not _over(pod, container_id):
        subject = init_of(container_id)
        if not await _get_shim(server, channel, pod, container_id, subject, INIT):
            await _give_up(server, container_id)
        pod = await server.runtime.until(lambda pod: _created(pod, container_id) or _over(pod, container_id))
    _drop(config["spec_file"])  # the guest has it, or never will
    if _created(pod, container_id):
        return {"ok": True, "pid": pod.unit("process", init_of(container_id)).facts["shim"]["pid"]}
    message, hint = _error_of(pod, container_id)
    await server.runtime.until(lambda pod: _undone(pod, container_id))
    raise CreateFailed(f"cannot create container `{container_id}`: {message}", hint=hint)


def _host_side_ready(pod: Pod, container_id: str) -> bool:
    return pod.unit("container", container_id).state in _PREPARED and pod.network.state == network.ATTACHED


def _over(pod: Pod, container_id: str) -> bool:
    return (
        pod.sandbox.state not in (sandbox.CREATING, sandbox.READY)
        or pod.unit("container", container_id).state in _ENDED_EARLY
    )


def _created(pod: Pod, container_id: str) -> bool:
    return bool(pod.unit("container", container_id).facts.get("created"))


def _undone(pod: Pod, container_id: str) -> bool:
    if container_id == pod.id:
        return pod.sandbox.state == sandbox.DELETED or _stuck(pod, container_id)
    return pod.unit("container", container_id).state == container.DELETED or _stuck(pod, container_id)


def _stuck(pod: Pod, container_id: str) -> bool:
    """Whether a clean-up that the container's deletion waits for has failed."""
    unit = pod.unit("container", container_id)
    own = unit.state == container.STUCK or (unit.state == container.DEAD and bool(unit.facts.get("discard_failed")))
    return own or (container_id == pod.id and "stuck" in (pod.vm.state, pod.network.state, pod.share.state))


async def _give_up(server: Server, container_id: str) -> None:
    """The caller went away, or sent no shim in time: undo the creation."""
    cause = Cause("client_gone", "the caller went away before the container was created")
    pod = server.runtime.pod
    if _over(pod, container_id):
        return
    if container_id == pod.id:
        await server.runtime.submit(StopSandbox(cause, force=True))
    else:
        await server.runtime.submit(Delete(container_id, force=True))


async def _get_shim(server: Server, channel: Channel, pod: Pod, container_id: str, subject: str, name: str) -> bool:
    """Ask the client for a shim and wait until it is attached; False when the client went away or took too long."""
    need = _need_shim(pod, container_id, name)
    return await channel.send(need) and await _attached(server, channel, subject)


def _need_shim(pod: Pod, container_id: str, name: str) -> Reply:
    prepared = pod.unit("container", container_id).facts
    return {
        "need": "shim",
        "netns": pod.network.facts.get("netns"),
        "cgroups": [each["path"] for each in prepared.get("cgroups", [])],
        "container": container_id,
        "process": name,
    }


async def _attached(server: Server, channel: Channel, subject: str) -> bool:
    """Wait until a shim is attached to `subject`; False when the client went away or it took too long."""
    attached = False
    with trio.move_on_after(SHIM_ATTACH_S):
        async with trio.open_nursery() as nursery:

            async def hung_up() -> None:
                if await channel.receive() is None:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(hung_up)
            await server.runtime.until(
                lambda pod: (
                    "shim" in pod.unit("process", subject).facts or pod.unit("process", subject).state == process.CLOSED
                )
            )
            attached = True
            nursery.cancel_scope.cancel()
    return attached


# --- the life of a container ------------------------------------------------------------------------------------------


async def start(server: Server, _: Channel, request: dict[str, Any]) -> Reply:
    """Run the workload."""
    container_id = _text(request, "container")
    await server.runtime.submit(Start(container_id), request.get("actor"))
    pod = await server.runtime.until(lambda pod: pod.unit("container", container_id).state != container.STARTING)
    facts = pod.unit("container", container_id).facts
    if not facts.get("started"):
        why = facts.get("error") or facts.get("cause") or {}
        raise StartFailed(f"cannot start container `{container_id}`: {why.get('message') or 'its guest is gone'}")
    return {"ok": True}


async def _toggle(
    server: Server, request: dict[str, Any], command: Any, passing: str, reached: str, word: str
) -> Reply:
    container_id = _text(request, "container")
    await server.runtime.submit(command(container_id), request.get("actor"))
    pod = await server.runtime.until(lambda pod: pod.unit("container", container_id).state != passing)
    unit = pod.unit("container", container_id)
    if unit.state != reached:
        why = unit.facts.get("error") or {}
        message = why.get("message", f"it is `{unit.state}` now")
        raise WorldError(f"cannot {word} container `{container_id}`: {message}")
    return {"ok": True}


async def pause(server: Server, _: Channel, request: dict[str, Any]) -> Reply:
    """Freeze every process of the container."""
    return await _toggle(server, request, Pause, container.PAUSING, container.PAUSED, "pause")


async def resume(server: Server, _: Channel, request: dict[str, Any]) -> Reply:
    """Thaw them."""
    return await _toggle(server, request, Resume, container.RESUMING, container.RUNNING, "resume")


async def kill(server: Server, _: Channel, request: dict[str, Any]) -> Reply:
    """Send a signal to the init process, or with `all` to every process."""
    from kata_fsm.effects.agent.handlers import signal_process

    container_id, number, everyone = _text(request, "container"), request.get("signal"), bool(request.get("all"))
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


async def delete(server: Server, _: Channel, request: dict[str, Any]) -> Reply:
    """Forget the container, and with its last one the sandbox."""
    container_id, force = _text(request, "container"), bool(request.get("force"))
    runtime = server.runtime
    await runtime.submit(Delete(container_id, force), request.get("actor"))

    def over(pod: Pod) -> bool:
        unit = pod.unit("container", container_id)
        return unit.state == container.DELETED or _stuck(pod, container_id)

    with trio.move_on_after(UNREAD_OUTPUT_S):
        await runtime.until(over)
    if not force and not over(runtime.pod) and _has_unread_output(runtime.pod, container_id):
        raise WorldError(
            f"container `{container_id}` cannot be deleted yet: nobody reads what is left of its output",
            hint="read it, or give it up with `delete --force`",
        )
    pod = await runtime.until(over)
    if force:
        server.forced.update(_shims_of(pod, container_id))
    if pod.unit("container", container_id).state != container.DELETED:
        message, hint = _stuck_error(pod)
        raise WorldError(f"container `{container_id}` cannot be deleted yet: {message}", hint=hint)
    return {"ok": True}


def _has_unread_output(pod: Pod, container_id: str) -> bool:
    return any(unit.state == process.EXITED for _, unit in pod.processes_of(container_id))


def _shims_of(pod: Pod, container_id: str) -> list[Identity]:
    found = [Identity.from_dict(unit.facts.get("shim", {})) for _, unit in pod.processes_of(container_id)]
    return [identity for identity in found if identity is not None]


def _stuck_error(pod: Pod) -> tuple[str, str]:
    for machine, subject, unit in pod.units():
        error = unit.facts.get("error")
        if error and (unit.state == "stuck" or unit.facts.get("discard_failed")):
            where = f"{machine} `{subject}`" if subject else machine
            return f"{where}: {error.get('message')}", "delete it again to retry"
    return "a clean-up failed", "delete it again to retry"


# --- exec -------------------------------------------------------------------------------------------------------------


def _early_name(request: dict[str, Any]) -> str:
    """The process's name when the caller chose it, because its shim is on its way already; empty when it did not."""
    name = request.get("exec_id") or ""
    if not isinstance(name, str) or (name and not (name.isascii() and name.isalnum() and len(name) <= EXEC_ID_CHARS_MAX)):
        raise CallerError("the request's `exec_id` is not a short word of letters and digits")
    if name == INIT:
        raise CallerError(f"the request's `exec_id` is `{INIT}`, which every container has")
    return name


async def exec_(server: Server, channel: Channel, request: dict[str, Any]) -> Reply:
    """Add a process to a running container."""
    container_id, wanted = _text(request, "container"), _object(request, "process")
    runtime = server.runtime
    early = _early_name(request)
    name = early or server.exec_name(container_id)
    subject = f"{container_id}/{name}"
    config = {
        "terminal": bool(wanted.get("terminal")),
        "args": request.get("args_redacted") or [],
        "cwd": wanted.get("cwd", "/"),
        "user": wanted.get("user", {}),
        "process_file": _keep(server.paths.base + "/specs", f"{container_id}.{name}", wanted),
    }
    try:
        await runtime.submit(Exec(container_id, subject, config), request.get("actor"))
    except Exception:
        _drop(config["process_file"])
        raise
    attached = (
        await _attached(server, channel, subject)
        if early
        else await _get_shim(server, channel, runtime.pod, container_id, subject, name)
    )
    if not attached:
        cause = Cause("client_gone", "the caller went away before the process was started")
        if runtime.pod.unit("process", subject).state == process.DECLARED:
            await runtime.submit(AbandonProcess(subject, cause))
    pod = await runtime.until(
        lambda pod: pod.unit("process", subject).state not in (process.DECLARED, process.SPAWNING)
    )
    _drop(config["process_file"])
    facts = pod.unit("process", subject).facts
    if not facts.get("spawned"):
        why = facts.get("error") or facts.get("cause") or {}
        raise StartFailed(f"cannot exec in container `{container_id}`: {why.get('message') or 'the cause is unknown'}")
    return {"ok": True, "pid": facts["shim"]["pid"]}


# --- questions and changes that move no machine ------------------------------------------------------------------------


def _in_guest(server: Server, container_id: str, asked: str) -> None:
    unit = server.runtime.pod.containers.get(container_id)
    if unit is None or unit.state == container.DELETED:
        raise NotFoundError(f"Container ID ({container_id}) does not exist")
    if unit.state not in container.IN_GUEST:
        legal = container.TABLE.legal(unit.state)
        raise IllegalTransition(
            "container", container_id, unit.state, asked, legal, message=f"Container {container_id} is not running"
        )


async def update(server: Server, _: Channel, request: dict[str, Any]) -> Reply:
    """Change a container's resources in the guest."""
    from kata_wire import messages, spec

    container_id, resources = _text(request, "container"), _object(request, "resources")
    await server.runtime.submit(Update(container_id, resources), request.get("actor"))
    message = messages.agent.UpdateContainerRequest(
        container_id=container_id, resources=spec.resources_to_message(resources)
    )
    try:
        await server.link.call(AGENT, "UpdateContainer", message)
    except EffectError as error:
        await server.runtime.note(
            "outcome", "container.update", {"subject": container_id, "ok": False, "message": error.message}
        )
        raise
    await server.runtime.note("outcome", "container.update", {"subject": container_id, "ok": True})
    return {"ok": True}


async def stats(server: Server, _: Channel, request: dict[str, Any]) -> Reply:
    """The container's cgroup figures, as the agent reads them."""
    from kata_fsm.supervisor.plain import plain
    from kata_wire import messages

    container_id = _text(request, "container")
    _in_guest(server, container_id, "stats")
    reply = await server.link.call(
        AGENT, "StatsContainer", messages.agent.StatsContainerRequest(container_id=container_id)
    )
    return {"ok": True, "stats": plain(reply)}


async def ps(server: Server, _: Channel, request: dict[str, Any]) -> Reply:
    """Host pids that stand for the container's processes, the guest's pids, and `ps` as seen in the guest."""
    from kata_wire import messages

    container_id = _text(request, "container")
    _in_guest(server, container_id, "ps")
    args = [str(each) for each in request.get("args") or []]
    table = await server.link.call(
        EXTENSION, "RunPs", messages.extension.RunPsRequest(container_id=container_id, args=args)
    )
    listed = await server.link.call(
        EXTENSION, "ListPids", messages.extension.ListPidsRequest(container_id=container_id)
    )
    if table.status:
        raise WorldError(f"ps in the guest failed: {table.stderr.decode(errors='replace').strip()}")
    alive = (process.CREATED, process.RUNNING)
    units = [unit for _, unit in server.runtime.pod.processes_of(container_id) if unit.state in alive]
    return {
        "ok": True,
        "pids": [unit.facts["shim"]["pid"] for unit in units if "shim" in unit.facts],
        "guest_pids": list(listed.pids),
        "text": table.stdout.decode(errors="replace"),
    }


async def ping(server: Server, _: Channel, __: dict[str, Any]) -> Reply:
    """Is anybody there?"""
    return {"ok": True, "pid": os.getpid(), "stream": server.runtime.stream, "state": server.runtime.pod.sandbox.state}


VERBS: dict[str, Verb] = {
    "create": create,
    "start": start,
    "pause": pause,
    "resume": resume,
    "kill": kill,
    "delete": delete,
    "exec": exec_,
    "update": update,
    "stats": stats,
    "ps": ps,
    "ping": ping,
}
