# SPDX-License-Identifier: Apache-2.0
"""Questions to the guest, and changes in it that move no machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kata_fsm.effects.agent.client import AGENT, EXTENSION
from kata_fsm.errors import EffectError, IllegalTransition, NotFoundError, WorldError
from kata_fsm.machines import container, process
from kata_fsm.machines.vocab import Update
from kata_fsm.supervisor.channel import Channel
from kata_fsm.supervisor.requests import Reply, Request, object_in, text_in

if TYPE_CHECKING:
    from kata_fsm.supervisor.server import Server


def in_guest(server: Server, container_id: str, asked: str) -> None:
    """Raises `NotFoundError` or `IllegalTransition` unless the guest holds the container."""
    unit = server.runtime.pod.containers.get(container_id)
    if unit is None or unit.state == container.DELETED:
        raise NotFoundError(f"Container ID ({container_id}) does not exist")
    if unit.state not in container.IN_GUEST:
        legal = container.TABLE.legal(unit.state)
        raise IllegalTransition(
            "container", container_id, unit.state, asked, legal, message=f"Container {container_id} is not running"
        )


async def update(server: Server, _: Channel, request: Request) -> Reply:
    """Change a container's resources in the guest."""
    from kata_wire import messages, spec

    container_id, resources = text_in(request, "container"), object_in(request, "resources")
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


async def stats(server: Server, _: Channel, request: Request) -> Reply:
    """The container's cgroup figures, as the agent reads them."""
    from kata_fsm.supervisor.plain import plain
    from kata_wire import messages

    container_id = text_in(request, "container")
    in_guest(server, container_id, "stats")
    reply = await server.link.call(
        AGENT, "StatsContainer", messages.agent.StatsContainerRequest(container_id=container_id)
    )
    return {"ok": True, "stats": plain(reply)}


async def ps(server: Server, _: Channel, request: Request) -> Reply:
    """Host pids that stand for the container's processes, the guest's pids, and `ps` as seen in the guest."""
    from kata_wire import messages

    container_id = text_in(request, "container")
    in_guest(server, container_id, "ps")
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


async def ping(server: Server, _: Channel, __: Request) -> Reply:
    """Is anybody there?"""
    return {"ok": True, "pid": os.getpid(), "stream": server.runtime.stream, "state": server.runtime.pod.sandbox.state}
