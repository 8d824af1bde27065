# SPDX-License-Identifier: Apache-2.0
"""Questions to the guest, and changes in it that move no machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kata_fsm.effects.agent.client import AGENT, EXTENSION
from kata_fsm.errors import EffectError, IllegalTransition, NotFoundError, WorldError
from kata_fsm.machines import container, process
from kata_fsm.machines.vocab import Facts, Update, UpdateUndone
from kata_fsm.oci import hosting, spec
from kata_fsm.supervisor.channel import Channel
from kata_fsm.supervisor.limiting import asked_by, concerning
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
    """Change a container's resources: the pod's limits on the host, then its own in the guest; both, or neither."""
    from kata_fsm.oci.guest import without_hosts

    container_id, resources = text_in(request, "container"), object_in(request, "resources")
    change = hosting.asked(spec.convert(resources, spec.Resources, where="update"))
    runtime = server.runtime
    async with server.updates:
        before = asked_by(runtime.pod.unit("container", container_id))
        await runtime.submit(Update(container_id, resources, hosting.merged(before, change)), request.get("actor"))
        try:
            unheld = await _limit(server)
            in_guest = without_hosts(resources)
            if in_guest or not resources:
                await _update_guest(server, container_id, in_guest)
        except EffectError as error:
            await runtime.report(UpdateUndone(container_id, before))
            body = {"subject": container_id, "ok": False, "message": error.message}
            try:
                await _limit(server)
            except EffectError as again:  # the wider of both stays, until the next change
                body["limiting_failed"] = again.message
            await runtime.note("outcome", "container.update", body)
            raise
        await runtime.note("outcome", "container.update", {"subject": container_id, "ok": True})
    warnings = [f"update: {line}" for line in concerning(change, unheld)]
    return {"ok": True, "warnings": warnings} if warnings else {"ok": True}


async def _limit(server: Server) -> list[str]:
    wiring = server.watcher.wiring
    return await wiring.limit() if wiring is not None else []


async def _update_guest(server: Server, container_id: str, resources: Facts) -> None:
    from kata_wire import messages
    from kata_wire.spec import resources_to_message

    message = messages.agent.UpdateContainerRequest(
        container_id=container_id, resources=resources_to_message(resources)
    )
    await server.link.call(AGENT, "UpdateContainer", message)


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
