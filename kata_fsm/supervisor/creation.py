# SPDX-License-Identifier: Apache-2.0
"""Making something that has a shim: a container, or a further process in one.

Both are declared, ask their caller for a shim (unless it is on its way already), and are answered when the guest has them.
What only the guest needs, and may hold secrets, waits for it in a file of the run directory and never in the journal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from kata_fsm.effects import cgroup, hooks
from kata_fsm.errors import CallerError, IllegalTransition, WorldError
from kata_fsm.limits import EXEC_ID_CHARS_MAX, SHIM_ATTACH_S
from kata_fsm.machines import Cause, Pod, container, process
from kata_fsm.machines.pod import INIT, init_of
from kata_fsm.machines.vocab import (
    AbandonProcess,
    CreateContainer,
    CreateSandbox,
    Delete,
    Exec,
    Facts,
    StopSandbox,
)
from kata_fsm.oci.names import check_id
from kata_fsm.oci.process import check
from kata_fsm.oci.redact import redacted
from kata_fsm.supervisor import networking, standing
from kata_fsm.supervisor.channel import Channel
from kata_fsm.supervisor.kept import Kept
from kata_fsm.supervisor.limiting import asked_by, concerning
from kata_fsm.supervisor.requests import Reply, Request, object_in, text_in, told_seq

if TYPE_CHECKING:
    from kata_fsm.supervisor.server import Server


class CreateFailed(WorldError):
    """A sandbox or container could not be created; everything that was begun has been undone."""


class StartFailed(WorldError):
    """The workload's process could not be started."""


# --- a container ------------------------------------------------------------------------------------------------------


async def create(server: Server, channel: Channel, request: Request) -> Reply:
    """Make a sandbox with its first container, or a further container in this one."""
    given = object_in(request, "container")
    container_id = check_id(text_in(given, "id"))
    kept = server.keep(container_id, object_in(given, "guest_spec"))
    hooks_file = ""
    try:
        if given.get("hooks"):
            hooks_file = hooks.keep(server.paths.base, container_id, object_in(given, "hooks"))
        command = _command(server, request, container_id, given, kept, hooks_file)
        await server.runtime.submit(command, request.get("actor"))
    except Exception:
        kept.drop()
        hooks.forget(hooks_file)
        raise
    told = {**told_seq(request), **_told_of_notes(server, request)}
    pod = await _bring_up(server, channel, container_id, told)
    kept.drop()  # the guest has it, or never will
    if standing.created(pod, container_id):
        problem = await _join_what_hooks_brought(server, container_id) if hooks_file else None
        if problem is None:
            unit = pod.unit("container", container_id)
            warnings = concerning(asked_by(unit), unit.facts.get("unheld") or ())
            pid = pod.unit("process", init_of(container_id)).facts["shim"]["pid"]
            return {"ok": True, "pid": pid, **({"warnings": warnings} if warnings else {})}
        message, hint = problem
    else:
        message, hint = standing.error_of(pod, container_id)
    await server.runtime.until(lambda pod: standing.undone(pod, container_id))
    raise CreateFailed(f"cannot create container `{container_id}`: {message}", hint=hint)


async def _join_what_hooks_brought(server: Server, container_id: str) -> tuple[str, str | None] | None:
    """Give the guest what a hook has put into the pod's namespace, as Docker's does, before its workload starts.

    None when it has it; otherwise what is wrong and a hint, and the sandbox goes down rather than run without its network.
    """
    runtime = server.runtime
    if container_id != runtime.pod.id or not networking.has_model(runtime.pod):
        return None
    try:
        await networking.change(server, {"rescan": True})
    except (WorldError, IllegalTransition) as error:
        if not standing.over(runtime.pod, container_id):
            await runtime.submit(StopSandbox(Cause("create_failed", str(error)), force=True))
        if runtime.pod.unit("container", container_id).state != container.DELETED:
            await runtime.submit(Delete(container_id, force=True))
        return str(error), error.hint
    return None


def _told_of_notes(server: Server, request: Request) -> Reply:
    """{"config_changed": True} when other things are to be said of the configuration than when the sandbox was made, and
    since this supervisor began nobody was told so."""
    digest = request.get("config_notes")
    if not isinstance(digest, str) or isinstance(request.get("sandbox"), dict):
        return {}
    known = (server.runtime.pod.sandbox.facts.get("config") or {}).get("config_notes")
    if digest == known or digest in server.config_notes:
        return {}
    server.config_notes.add(digest)
    return {"config_changed": True}


def _command(
    server: Server, request: Request, container_id: str, given: Facts, kept: Kept, hooks_file: str
) -> CreateSandbox | CreateContainer:
    config = {key: value for key, value in given.items() if key not in ("guest_spec", "hooks")}
    config["spec_file"] = kept.path
    if hooks_file:
        config["hooks_file"] = hooks_file
    made = request.get("sandbox")
    if not isinstance(made, dict):
        return CreateContainer(container_id, config)
    if server.watcher.wiring is None:
        server.wire(made)
    return CreateSandbox(text_in(made, "id"), text_in(made, "uid"), made, config)


async def _bring_up(server: Server, channel: Channel, container_id: str, told: Reply) -> Pod:
    """Get the container its shim; the pod in which it was created, or will not be any more."""
    until = server.runtime.until
    pod = await until(lambda pod: standing.host_side_ready(pod, container_id) or standing.over(pod, container_id))
    if standing.over(pod, container_id):
        return pod
    if not await _get_shim(server, channel, container_id, INIT, told):
        await _give_up(server, container_id)
    return await until(lambda pod: standing.created(pod, container_id) or standing.over(pod, container_id))


async def _give_up(server: Server, container_id: str) -> None:
    """The caller went away, or sent no shim in time: undo the creation."""
    cause = Cause("client_gone", "the caller went away before the container was created")
    pod = server.runtime.pod
    if standing.over(pod, container_id):
        return
    if container_id == pod.id:
        await server.runtime.submit(StopSandbox(cause, force=True))
    else:
        await server.runtime.submit(Delete(container_id, force=True))


# --- a further process ------------------------------------------------------------------------------------------------


async def exec_(server: Server, channel: Channel, request: Request) -> Reply:
    """Add a process to a running container."""
    container_id, wanted = text_in(request, "container"), object_in(request, "process")
    warnings = check(wanted, where=str(request.get("where") or "exec"))
    early = _early_name(request)
    shim = _named_shim(server, request) if early else None
    name = early or server.exec_name(container_id)
    subject = f"{container_id}/{name}"
    kept = server.keep(f"{container_id}.{name}", wanted)
    config = {
        "terminal": bool(wanted.get("terminal")),
        "args": redacted(wanted["args"]),
        "cwd": wanted.get("cwd", "/"),
        "user": wanted.get("user", {}),
        "process_file": kept.path,
    }
    try:
        await server.runtime.submit(Exec(container_id, subject, config, shim or {}), request.get("actor"))
    except Exception:
        kept.drop()
        raise
    told = told_seq(request)
    facts = await _spawn(server, channel, container_id, name, told, early=bool(early), attached=bool(shim))
    kept.drop()
    if not facts.get("spawned"):
        why = facts.get("error") or facts.get("cause") or {}
        raise StartFailed(f"cannot exec in container `{container_id}`: {why.get('message') or 'the cause is unknown'}")
    return {"ok": True, "pid": facts["shim"]["pid"], "warnings": warnings}


def _named_shim(server: Server, request: Request) -> Facts | None:
    """The shim that the caller has started for the process, and which is on its way to us; None when it names none.

    Raises `CallerError` for one that is not there.
    """
    if "shim" not in request:
        return None
    named = object_in(request, "shim")
    pid = named.get("pid")
    processes = server.processes
    identity = processes.identify(pid) if isinstance(pid, int) else None
    if identity is None or identity.start_ticks != named.get("start_ticks") or not processes.alive(identity):
        raise CallerError(f"the request's shim `{pid}` is not there")
    return identity.to_dict()


def _early_name(request: Request) -> str:
    """The process's name when the caller chose it, because its shim is on its way already; empty when it did not."""
    name = request.get("exec_id") or ""
    if not isinstance(name, str) or (
        name and not (name.isascii() and name.isalnum() and len(name) <= EXEC_ID_CHARS_MAX)
    ):
        raise CallerError("the request's `exec_id` is not a short word of letters and digits")
    if name == INIT:
        raise CallerError(f"the request's `exec_id` is `{INIT}`, which every container has")
    return name


async def _spawn(
    server: Server, channel: Channel, container_id: str, name: str, told: Reply, *, early: bool, attached: bool
) -> Facts:
    """Get the process its shim; what is known of it once it runs, or will not any more."""
    runtime, subject = server.runtime, f"{container_id}/{name}"
    if attached:
        pass  # it was declared with it, and is being spawned
    elif early:
        attached = await _attached(server, channel, subject)
    else:
        attached = await _get_shim(server, channel, container_id, name, told)
    if not attached and runtime.pod.unit("process", subject).state == process.DECLARED:
        cause = Cause("client_gone", "the caller went away before the process was started")
        await runtime.submit(AbandonProcess(subject, cause))
    under_way = (process.DECLARED, process.SPAWNING)
    pod = await runtime.until(lambda pod: pod.unit("process", subject).state not in under_way)
    return pod.unit("process", subject).facts


# --- the shim ---------------------------------------------------------------------------------------------------------


async def _get_shim(server: Server, channel: Channel, container_id: str, name: str, told: Reply) -> bool:
    """Ask the client for a shim and wait until it is attached; False when the client went away or took too long."""
    need = {**_need_shim(server.runtime.pod, container_id, name), **told}
    return await channel.send(need) and await _attached(server, channel, f"{container_id}/{name}")


def _need_shim(pod: Pod, container_id: str, name: str) -> Reply:
    prepared = pod.unit("container", container_id).facts
    config = prepared.get("config", {})
    asked = name == INIT and config.get("systemd_cgroup")
    scope = cgroup.scope_of(str(config.get("cgroups_path"))) if asked else None
    return {
        **({"scope": list(scope)} if scope else {}),
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
                    "shim" in pod.unit("process", subject).facts or pod.unit("process", subject).state in process.OVER
                )
            )
            attached = True
            nursery.cancel_scope.cancel()
    return attached
