# SPDX-License-Identifier: Apache-2.0
"""Interfaces, routes and neighbours of the machine, which its containers share."""

from __future__ import annotations

from . import links, routes
from .errors import RpcError, invalid, not_found
from .loop import pause
from .netlink import Netlink, NetlinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from .agent import Agent
    from .loop import Wait

    Message = dict[str, Any]
    Steps = Generator[Wait, bool, Message]

_LINK_TIMEOUT_S = 10.0  # a plugged NIC was seen after 0.21 to 0.26 s under emulation
_POLL_S = 0.005


def update_interface(agent: Agent, request: Message) -> Steps:
    """The interface with the given MAC address becomes as described; waits for one that was just plugged."""
    wanted = request.get("interface") or {}
    mac = wanted.get("hwAddr", "")
    if not mac:
        raise invalid("`interface.hwAddr` is empty; it says which interface is meant")
    waited_s = 0.0
    with Netlink() as kernel:
        while (link := links.by_mac(kernel, mac)) is None:
            if waited_s >= _LINK_TIMEOUT_S:
                raise not_found(f"no interface with the address `{mac}` appeared in `{_LINK_TIMEOUT_S:.0f}` s")
            waited_s += _POLL_S
            yield pause(_POLL_S)
        found = link
        _attempt(f"interface `{mac}`", lambda: links.configure(kernel, found, wanted))
        return next(entry for entry in links.listing(kernel) if entry["hwAddr"] == found.mac)


def list_interfaces(agent: Agent, request: Message) -> Message:
    """All of them."""
    with Netlink() as kernel:
        return {"Interfaces": links.listing(kernel)}


def update_routes(agent: Agent, request: Message) -> Message:
    """Replace the routes; answers with those there are then."""
    wanted = (request.get("routes") or {}).get("Routes") or []
    with Netlink() as kernel:
        _attempt("routes", lambda: routes.replace(kernel, wanted))
        return {"Routes": routes.listing(kernel)}


def list_routes(agent: Agent, request: Message) -> Message:
    """Those of the main table."""
    with Netlink() as kernel:
        return {"Routes": routes.listing(kernel)}


def add_arp_neighbors(agent: Agent, request: Message) -> Message:
    """Add or replace entries."""
    with Netlink() as kernel:
        for entry in (request.get("neighbors") or {}).get("ARPNeighbors") or []:
            _attempt("neighbour", lambda entry=entry: routes.add_neighbour(kernel, entry))  # type: ignore[misc]
    return {}


def _attempt(what: str, act: Callable[[], None]) -> None:
    """The kernel's refusal, and an address that is none, as a status."""
    try:
        act()
    except RpcError:
        raise
    except NetlinkError as error:
        raise invalid(f"{what}: the kernel refused it: {error.strerror}") from None
    except (OSError, ValueError, KeyError) as error:
        raise invalid(f"{what}: {error}") from None
