# SPDX-License-Identifier: Apache-2.0
"""What a network namespace holds, read by netlink. Looks, and changes nothing.

Which interfaces the guest gets: every one that is up, or has an address of its own, except `lo`. What is down and bare is
no part of a network: many kernels put unused tunnel devices (`tunl0`, `sit0`) into every namespace, and Kata leaves out
interfaces without addresses for the same reason (virtcontainers/network_linux.go, addAllEndpoints). A port of a bridge
or bond inside the namespace is reached through its master. What is neither can be served or refused, never left out.
"""

from __future__ import annotations

from typing import Any

from kata_fsm import errors, limits
from kata_fsm.effects.network.model import Address, Interface, Neighbour, Network, Route

PREFIX = "k"
"""Of the names of our own taps, before the sandbox's uid."""

ETHERNET_KINDS = frozenset({"veth", "macvlan", "ipvlan", "tun", "bridge", "vlan", "dummy", "bond"})
_IFF_UP, _IFF_NOARP = 0x1, 0x80
_ARPHRD_ETHER = 1
_IPVLAN_L2 = 0
_FAMILIES = {2: 4, 10: 6}  # AF_INET, AF_INET6
_IFA_F_TEMPORARY, _IFA_F_DADFAILED = 0x01, 0x08
_TABLE_MAIN, _TABLE_LOCAL = 254, 255
_UNICAST = 1
_REJECTING = (6, 7, 8, 9)  # blackhole, unreachable, prohibit, throw
_USUAL_RULES = (0, 32766, 32767)
_PROTO_KERNEL = 2
_SCOPE_LINK = 253
_RTNH_F_ONLINK = 0x4
_NUD_PERMANENT, _NUD_NOARP = 0x80, 0x40
_NTF_EXT_LEARNED = 0x10


def scan(netlink: Any, *, own: str = "") -> Network:
    """The namespace that `netlink` (an `IPRoute`) looks at. Taps whose name begins with `own` are ours and left out.

    Raises EffectError for an interface that is in use and cannot be given to a guest, and for more routes or neighbours
    than can be recorded.
    """
    links = [link for link in netlink.get_links() if not _is_ours(link, own)]
    names = {link["index"]: str(link.get_attr("IFLA_IFNAME")) for link in links}
    addresses, peers = _addresses(netlink, names)
    interfaces = [
        _interface(link, tuple(addresses.get(link["index"], ())))
        for link in links
        if _is_in_use(link, addresses.get(link["index"], []))
    ]
    served = {interface.index: interface.name for interface in interfaces}
    routes = [*(route for index, route in peers if index in served), *_routes(netlink, served)]
    neighbours = _neighbours(netlink, served)
    for what, found in (("routes", routes), ("neighbours", neighbours)):
        if len(found) > limits.NETWORK_ENTRIES_MAX:
            message = f"the network namespace has `{len(found)}` {what}, legal is up to `{limits.NETWORK_ENTRIES_MAX}`"
            raise errors.EffectError("scan", message)
    return Network(tuple(interfaces), tuple(routes), tuple(neighbours))


def _is_ours(link: Any, own: str) -> bool:
    return bool(own) and str(link.get_attr("IFLA_IFNAME")).startswith(own)


def _is_in_use(link: Any, addresses: list[Address]) -> bool:
    if str(link.get_attr("IFLA_IFNAME")) == "lo" or link.get_attr("IFLA_MASTER"):
        return False
    return bool(link["flags"] & _IFF_UP) or bool(addresses)


def _interface(link: Any, addresses: tuple[Address, ...]) -> Interface:
    name = str(link.get_attr("IFLA_IFNAME"))
    info = link.get_attr("IFLA_LINKINFO")
    kind = str(info.get_attr("IFLA_INFO_KIND") or "") if info is not None else ""
    problem = _problem(link, info, kind)
    if problem:
        message = f"interface `{name}` cannot be given to the guest: {problem}"
        hint = "take it out of the namespace or down, or set `runtime.internetworking_model` to `none`"
        raise errors.EffectError("scan", message, evidence={"interface": name, "kind": kind}, hint=hint)
    return Interface(
        index=int(link["index"]),
        name=name,
        kind=kind,
        mac=str(link.get_attr("IFLA_ADDRESS")),
        mtu=int(link.get_attr("IFLA_MTU")),
        addresses=addresses,
        noarp=bool(link["flags"] & _IFF_NOARP),
    )


def _problem(link: Any, info: Any, kind: str) -> str:
    """Why an interface cannot be served; empty if it can."""
    if link["ifi_type"] != _ARPHRD_ETHER:
        return f"it carries no Ethernet frames (a `{kind or 'hardware'}` device of type `{link['ifi_type']}`)"
    if not kind:
        return "it is a hardware device, and those are not passed through"
    if kind not in ETHERNET_KINDS:
        return f"its kind is `{kind}`, legal are {', '.join(f'`{each}`' for each in sorted(ETHERNET_KINDS))}"
    if kind == "ipvlan":
        data = info.get_attr("IFLA_INFO_DATA")
        mode = data.get_attr("IFLA_IPVLAN_MODE") if data is not None else _IPVLAN_L2
        if mode not in (_IPVLAN_L2, None, "l2"):
            return "it is an ipvlan in an L3 mode, which resolves no neighbours for a guest"
    return ""


def _addresses(netlink: Any, names: dict[int, str]) -> tuple[dict[int, list[Address]], list[tuple[int, Route]]]:
    """The addresses of each interface, and a route to the other end of each point-to-point address."""
    found: dict[int, list[Address]] = {}
    peers: list[tuple[int, Route]] = []
    for message in netlink.get_addr():
        family, index = _FAMILIES.get(message["family"]), int(message["index"])
        flags = message.get_attr("IFA_FLAGS") or message["flags"]
        ours = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        if family is None or index not in names or flags & _IFA_F_DADFAILED:
            continue
        if family == 6 and flags & _IFA_F_TEMPORARY:
            continue  # the guest draws its own
        peer = message.get_attr("IFA_ADDRESS")
        prefix = int(message["prefixlen"])
        if peer and peer != ours:
            peers.append((index, Route(family, names[index], dest=f"{peer}/{prefix}", scope=_SCOPE_LINK)))
            prefix = 32 if family == 4 else 128
        found.setdefault(index, []).append(Address(family, str(ours), prefix))
    return found, peers


def _routes(netlink: Any, served: dict[int, str]) -> list[Route]:
    """Those that somebody has set: the guest's kernel makes its own for its addresses, as Kata leaves it to (validGuestRoute
    in virtcontainers/network_linux.go)."""
    found = []
    for number, family in _FAMILIES.items():
        for message in netlink.get_routes(family=number):
            table = message.get_attr("RTA_TABLE") or message["table"]
            index = message.get_attr("RTA_OIF")
            if table != _TABLE_MAIN or message["type"] != _UNICAST or message["proto"] == _PROTO_KERNEL:
                continue
            if index is None:
                _require_single(message, served)
            elif index in served:
                found.append(_route(message, family, served[index]))
    return found


def uncarried(netlink: Any) -> list[str]:
    """Routing that the agent's calls have no words for: named, so that nobody has to find out."""
    tables, rejecting = set(), 0
    for number in _FAMILIES:
        for message in netlink.get_routes(family=number):
            table = int(message.get_attr("RTA_TABLE") or message["table"])
            if table not in (_TABLE_MAIN, _TABLE_LOCAL):
                tables.add(table)
            elif table == _TABLE_MAIN and message["type"] in _REJECTING:
                rejecting += 1
    rules = sum(
        (rule.get_attr("FRA_PRIORITY") or 0) not in _USUAL_RULES
        for number in _FAMILIES
        for rule in netlink.get_rules(family=number)
    )
    found = [f"routing table `{table}`" for table in sorted(tables)]
    found += [f"`{rules}` routing rules"] if rules else []
    return found + ([f"`{rejecting}` routes that reject"] if rejecting else [])


def _require_single(message: Any, served: dict[int, str]) -> None:
    hops = message.get_attr("RTA_MULTIPATH") or []
    if any(hop["oif"] in served for hop in hops):
        dest = message.get_attr("RTA_DST") or "default"
        raise errors.EffectError("scan", f"the route to `{dest}` has several next hops, which a guest cannot be given")


def _route(message: Any, family: int, device: str) -> Route:
    dest = message.get_attr("RTA_DST")
    gateway = message.get_attr("RTA_GATEWAY") or ""
    via = message.get_attr("RTA_VIA")
    if via:
        name = dest or "default"
        raise errors.EffectError("scan", f"the route to `{name}` has a gateway of another family: no guest can be told")
    metrics = message.get_attr("RTA_METRICS")
    mtu = metrics.get_attr("RTAX_MTU") if metrics is not None else 0
    return Route(
        family=family,
        device=device,
        dest=f"{dest}/{message['dst_len']}" if dest else "",
        gateway=str(gateway),
        source=str(message.get_attr("RTA_PREFSRC") or ""),
        scope=int(message["scope"]),
        metric=int(message.get_attr("RTA_PRIORITY") or 0),
        mtu=int(mtu or 0),
        onlink=bool(message["flags"] & _RTNH_F_ONLINK),
    )


def _neighbours(netlink: Any, served: dict[int, str]) -> list[Neighbour]:
    """Those that somebody has set; the rest the guest finds out."""
    found = []
    for number, family in _FAMILIES.items():
        for message in netlink.get_neighbours(family=number):
            mac, state = message.get_attr("NDA_LLADDR"), int(message["state"])
            if message["ifindex"] not in served or not state & _NUD_PERMANENT or not mac:
                continue
            address = str(message.get_attr("NDA_DST"))
            flags = int(message["flags"]) & ~_NTF_EXT_LEARNED
            found.append(Neighbour(family, served[message["ifindex"]], address, str(mac), state, flags))
    return found
