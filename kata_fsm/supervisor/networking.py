# SPDX-License-Identifier: Apache-2.0
"""The pod's network while it runs: changing it, and what the guest says it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kata_fsm.effects.agent.client import AGENT
from kata_fsm.errors import CallerError, WorldError
from kata_fsm.machines import Pod, network
from kata_fsm.machines.vocab import ChangeNetwork, Facts
from kata_fsm.supervisor.channel import Channel
from kata_fsm.supervisor.questions import in_guest
from kata_fsm.supervisor.requests import Reply, Request, object_in, text_in

if TYPE_CHECKING:
    from kata_fsm.supervisor.server import Server

_UNDER_WAY = (network.ATTACHING, network.ATTACHED, network.PLUGGING, network.CHANGING)
_CHANGES = ("rescan", "add", "remove", "routes")


async def change(server: Server, wanted: Facts, actor: Any = None) -> Pod:
    """Change the network; the pod afterwards. Waits for what is under way, the first plugging included.

    `wanted` as in `ChangeNetwork`: {"rescan": true} after somebody has put interfaces into the namespace. Raises
    `WorldError` when it fails, after which all is as before, and `IllegalTransition` when there is no network to change.
    """
    async with server.network_changes:
        if _may_change(server.runtime.pod):
            await server.runtime.until(lambda pod: pod.network.state not in _UNDER_WAY or not _may_change(pod))
        await server.runtime.submit(ChangeNetwork(wanted), actor)
        pod = await server.runtime.until(lambda pod: pod.network.state != network.CHANGING)
    error = pod.network.facts.get("error")
    if error:
        raise WorldError(f"the network cannot be changed: {error.get('message')}", hint=error.get("hint"))
    return pod


def has_model(pod: Pod) -> bool:
    """Whether the guest is given what is in its network namespace."""
    return bool(pod.sandbox.facts.get("config", {}).get("network_model", "none") != "none")


def _may_change(pod: Pod) -> bool:
    """Whether the network of this pod comes to where it can be changed."""
    return has_model(pod) and pod.sandbox.state in ("creating", "ready")


async def network_change(server: Server, _: Channel, request: Request) -> Reply:
    """Add or remove an interface, look for new ones, or set the routes; then what the guest has of either."""
    wanted = object_in(request, "change")
    if len(wanted) != 1 or next(iter(wanted)) not in _CHANGES:
        raise CallerError(f"the request's `change` is none of {', '.join(f'`{name}`' for name in _CHANGES)}")
    in_guest(server, text_in(request, "container"), "change the network of")
    await change(server, wanted, request.get("actor"))
    return await _listing(server, "routes" if "routes" in wanted else "interfaces")


async def network_list(server: Server, _: Channel, request: Request) -> Reply:
    """The guest's interfaces or routes."""
    in_guest(server, text_in(request, "container"), "list the network of")
    what = text_in(request, "what")
    if what not in ("interfaces", "routes"):
        raise CallerError("the request's `what` is neither `interfaces` nor `routes`")
    return await _listing(server, what)


async def _listing(server: Server, what: str) -> Reply:
    from kata_fsm.supervisor.plain import plain
    from kata_wire import messages

    if what == "routes":
        reply = await server.link.call(AGENT, "ListRoutes", messages.agent.ListRoutesRequest())
        return {"ok": True, "routes": [plain(each) for each in reply.Routes]}
    reply = await server.link.call(AGENT, "ListInterfaces", messages.agent.ListInterfacesRequest())
    return {"ok": True, "interfaces": [plain(each) for each in reply.Interfaces]}
