# SPDX-License-Identifier: Apache-2.0
"""Routes and neighbours. linux/rtnetlink.h, linux/neighbour.h."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6
from errno import ESRCH

from . import links, netlink
from .errors import invalid, not_found
from .netlink import Netlink, NetlinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]

_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_METRICS, _RTA_TABLE = 1, 4, 5, 6, 7, 8, 15
_RTAX_MTU = 2
_TABLE_MAIN = 254
_PROTO_KERNEL, _PROTO_BOOT, _PROTO_RA = 2, 3, 9
_SCOPE_LINK = 253
_TYPE_UNICAST = 1
_RTNH_F_ONLINK = 0x4
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT = 0x80
_V6_METRIC = 1024  # what the kernel gives an IPv6 route that asks for none (IP6_RT_PRIO_USER)
_BITS = {AF_INET: 32, AF_INET6: 128}
_V6 = 1  # types.IPFamily


class Route:
    """One route of the main table as the kernel reports it."""

    def __init__(self, fixed: bytes, attributes: netlink.Attributes) -> None:
        self.family, self.prefix, _, _, table, self.protocol, self.scope, self.kind, self.flags = netlink.ROUTE.unpack(
            fixed
        )
        self.table = netlink.number(attributes[_RTA_TABLE]) if _RTA_TABLE in attributes else table
        self.destination = attributes.get(_RTA_DST, b"")
        self.gateway = attributes.get(_RTA_GATEWAY, b"")
        self.source = attributes.get(_RTA_PREFSRC, b"")
        metric = netlink.number(attributes.get(_RTA_PRIORITY, b""))
        self.metric = 0 if self.family == AF_INET6 and metric == _V6_METRIC else metric
        self.index = netlink.number(attributes.get(_RTA_OIF, b""))
        metrics = netlink.parse_attributes(attributes.get(_RTA_METRICS, b""), 0)
        self.mtu = netlink.number(metrics.get(_RTAX_MTU, b""))

    def to_message(self, names: dict[int, str]) -> Message:
        """types.Route."""

        def text(value: bytes) -> str:
            return netlink.address_text(self.family, value) if value else ""

        return {
            "dest": f"{text(self.destination)}/{self.prefix}" if self.destination else "",
            "gateway": text(self.gateway),
            "device": names.get(self.index, ""),
            "source": text(self.source),
            "scope": self.scope,
            "family": _V6 if self.family == AF_INET6 else 0,
            "flags": self.flags & _RTNH_F_ONLINK,  # the others tell of the moment
            "mtu": self.mtu,
            "metric": self.metric,
        }


def routes(kernel: Netlink) -> list[Route]:
    """Unicast routes of the main table, both families."""
    found: list[Route] = []
    for family in (AF_INET, AF_INET6):
        body = netlink.ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
        try:
            found += [Route(*entry) for entry in kernel.dump(netlink.GET_ROUTE, body)]
        except NetlinkError:
            if family == AF_INET:
                raise  # a kernel without IPv6 is none of our business
    return [route for route in found if route.table == _TABLE_MAIN and route.kind == _TYPE_UNICAST]


def listing(kernel: Netlink) -> list[Message]:
    """types.Route of every route."""
    names = {link.index: link.name for link in links.links(kernel)}
    return [route.to_message(names) for route in routes(kernel)]


def replace(kernel: Netlink, wanted: list[Message]) -> None:
    """These routes, and those the kernel made for its addresses. Gateways come last, as they must be reachable."""
    indexes = {link.name: link.index for link in links.links(kernel)}
    for route in routes(kernel):
        if route.protocol not in (_PROTO_KERNEL, _PROTO_RA):
            _delete(kernel, route)
    for entry in sorted(wanted, key=lambda entry: bool(entry.get("gateway"))):
        try:
            _add(kernel, entry, indexes)
        except NetlinkError as error:
            name = entry.get("dest") or "default"
            raise invalid(f"route to `{name}`: the kernel refused it: {error.strerror}") from None


def add_neighbour(kernel: Netlink, entry: Message) -> None:
    """types.ARPNeighbor: a fixed entry unless it says otherwise."""
    link = links.by_name(kernel, entry.get("device", ""))
    if link is None:
        raise not_found(f"interface `{entry.get('device', '')}` is not in this guest")
    address = (entry.get("toIPAddress") or {}).get("address", "").partition("/")[0]
    family, value = netlink.address_bytes(address)
    attributes = [(_NDA_DST, value)]
    if entry.get("lladdr"):
        attributes.append((_NDA_LLADDR, bytes.fromhex(entry["lladdr"].replace(":", ""))))
    state = entry.get("state", 0) or _NUD_PERMANENT
    body = netlink.NEIGHBOUR.pack(family, link.index, state, entry.get("flags", 0) & 0xFF, 0)
    kernel.change(netlink.NEW_NEIGHBOUR, netlink.CREATE | netlink.REPLACE, body, attributes)


def _delete(kernel: Netlink, route: Route) -> None:
    body = netlink.ROUTE.pack(route.family, route.prefix, 0, 0, _TABLE_MAIN, 0, route.scope, route.kind, 0)
    attributes = [(_RTA_OIF, netlink.u32(route.index))] if route.index else []
    if route.destination:
        attributes.append((_RTA_DST, route.destination))
    if route.gateway:
        attributes.append((_RTA_GATEWAY, route.gateway))
    if route.metric:
        attributes.append((_RTA_PRIORITY, netlink.u32(route.metric)))
    try:
        kernel.change(netlink.DELETE_ROUTE, 0, body, attributes)
    except NetlinkError as error:
        if error.errno != ESRCH:  # it went with another
            raise


def _add(kernel: Netlink, entry: Message, indexes: dict[str, int]) -> None:
    device = entry.get("device", "")
    if device not in indexes:
        raise not_found(f"route to `{entry.get('dest') or 'default'}`: interface `{device}` is not in this guest")
    family, destination, prefix = _destination(entry)
    attributes = [(_RTA_OIF, netlink.u32(indexes[device]))]
    if prefix:
        attributes.append((_RTA_DST, destination))
    for number, name in ((_RTA_GATEWAY, "gateway"), (_RTA_PREFSRC, "source")):
        if entry.get(name):
            value = netlink.address_bytes(entry[name])[1]
            attributes.append((number, value))
    if entry.get("metric"):
        attributes.append((_RTA_PRIORITY, netlink.u32(entry["metric"])))
    if entry.get("mtu"):
        attributes.append((_RTA_METRICS, netlink.pack_attribute(_RTAX_MTU, netlink.u32(entry["mtu"]))))
    scope = entry.get("scope", 0)
    if family == AF_INET and not entry.get("gateway") and not scope:
        scope = _SCOPE_LINK
    flags = entry.get("flags", 0)
    body = netlink.ROUTE.pack(family, prefix, 0, 0, _TABLE_MAIN, _PROTO_BOOT, scope, _TYPE_UNICAST, flags)
    kernel.change(netlink.NEW_ROUTE, netlink.CREATE | netlink.REPLACE, body, attributes)


def _destination(entry: Message) -> tuple[int, bytes, int]:
    """(family, address, prefix length); an empty destination and `default` are everything."""
    text = entry.get("dest") or ""
    if text in ("", "default"):
        v6 = entry.get("family") == _V6 or ":" in (entry.get("gateway") or "")
        return (AF_INET6 if v6 else AF_INET), b"", 0
    address, _, length = text.partition("/")
    family, value = netlink.address_bytes(address)
    prefix = int(length) if length else _BITS[family]
    if not 0 <= prefix <= _BITS[family]:
        raise invalid(f"route to `{text}` has a prefix length over `{_BITS[family]}`")
    return family, value, prefix
