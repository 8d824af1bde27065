# SPDX-License-Identifier: Apache-2.0
"""What the guest is told of its network: the agent's calls, in Kata's order.

virtcontainers/kata_agent.go, setupNetworks: UpdateInterface for each, UpdateRoutes, AddARPNeighbors. An interface is found
by its MAC address, and the agent waits for one that was just plugged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kata_fsm.effects.agent.client import AGENT
from kata_fsm.effects.network.model import Interface, Neighbour, Network, Route

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kata_fsm.effects.agent.link import Link

_IFF_NOARP = 0x80
_RTNH_F_ONLINK = 0x4
_V4, _V6 = 0, 1  # types.IPFamily


def _family(number: int) -> Any:
    return _V6 if number == 6 else _V4


def interface_message(interface: Interface) -> Any:
    """types.Interface."""
    from kata_wire import messages

    addresses = [
        messages.types.IPAddress(family=_family(each.family), address=each.address, mask=str(each.prefix))
        for each in interface.addresses
    ]
    return messages.types.Interface(
        device=interface.name,
        name=interface.name,
        IPAddresses=addresses,
        mtu=interface.mtu,
        hwAddr=interface.mac,
        type=interface.kind,
        raw_flags=_IFF_NOARP if interface.noarp else 0,
    )


def route_message(route: Route) -> Any:
    """types.Route."""
    from kata_wire import messages

    return messages.types.Route(
        dest=route.dest,
        gateway=route.gateway,
        device=route.device,
        source=route.source,
        scope=route.scope,
        family=_family(route.family),
        flags=_RTNH_F_ONLINK if route.onlink else 0,
        mtu=route.mtu,
        metric=route.metric,
    )


def _neighbour_message(entry: Neighbour) -> Any:
    from kata_wire import messages

    return messages.types.ARPNeighbor(
        toIPAddress=messages.types.IPAddress(family=_family(entry.family), address=entry.address),
        device=entry.device,
        lladdr=entry.mac,
        state=entry.state,
        flags=entry.flags,
    )


async def tell_interface(link: Link, interface: Interface) -> Any:
    """Name, MTU and addresses of one NIC; the agent's answer (types.Interface). Raises EffectError."""
    from kata_wire import messages

    request = messages.agent.UpdateInterfaceRequest(interface=interface_message(interface))
    return await link.call(AGENT, "UpdateInterface", request)


async def tell_routes(link: Link, routes: Iterable[Route]) -> Any:
    """All routes; the agent's answer (Routes). Raises EffectError."""
    from kata_wire import messages

    wanted = messages.agent.Routes(Routes=[route_message(route) for route in routes])
    return await link.call(AGENT, "UpdateRoutes", messages.agent.UpdateRoutesRequest(routes=wanted))


async def tell_neighbours(link: Link, neighbours: Iterable[Neighbour]) -> None:
    """Fixed neighbours. Raises EffectError."""
    from kata_wire import messages

    wanted = messages.agent.ARPNeighbors(ARPNeighbors=[_neighbour_message(entry) for entry in neighbours])
    if wanted.ARPNeighbors:
        await link.call(AGENT, "AddARPNeighbors", messages.agent.AddARPNeighborsRequest(neighbors=wanted))


async def tell(link: Link, network: Network) -> None:
    """All of it. Raises EffectError."""
    for interface in network.interfaces:
        await tell_interface(link, interface)
    await tell_routes(link, network.routes)
    await tell_neighbours(link, network.neighbours)
