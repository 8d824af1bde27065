# SPDX-License-Identifier: Apache-2.0
"""Network interfaces: finding one by its MAC address, changing and listing. linux/if_link.h, linux/if_addr.h."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from . import netlink
from .netlink import Netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO = 1, 3, 4, 18
_IFLA_INFO_KIND = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_NODAD = 0x02
_IFF_UP, _IFF_LOOPBACK, _IFF_NOARP = 0x1, 0x8, 0x80
_SCOPE_LINK = 253
_V4, _V6 = 0, 1  # types.IPFamily


class Link:
    """One interface as the kernel reports it."""

    def __init__(self, fixed: bytes, attributes: netlink.Attributes) -> None:
        _, _, self.index, self.flags, _ = netlink.LINK.unpack(fixed)
        self.name = attributes.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
        self.mtu = netlink.number(attributes.get(_IFLA_MTU, b""))
        self.mac = attributes.get(_IFLA_ADDRESS, b"").hex(":")
        info = netlink.parse_attributes(attributes.get(_IFLA_LINKINFO, b""), 0)
        self.kind = info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace")


class Address:
    """One address of an interface."""

    def __init__(self, fixed: bytes, attributes: netlink.Attributes) -> None:
        self.family, self.prefix, _, self.scope, self.index = netlink.ADDRESS.unpack(fixed)
        self.value = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS, b"")

    def to_message(self) -> Message:
        """types.IPAddress."""
        family = _V6 if self.family == AF_INET6 else _V4
        return {"family": family, "address": netlink.address_text(self.family, self.value), "mask": str(self.prefix)}


def links(kernel: Netlink) -> list[Link]:
    """All interfaces."""
    return [Link(*found) for found in kernel.dump(netlink.GET_LINK, netlink.LINK.pack(0, 0, 0, 0, 0))]


def addresses(kernel: Netlink) -> list[Address]:
    """All addresses of both families."""
    found = [Address(*entry) for entry in kernel.dump(netlink.GET_ADDRESS, netlink.ADDRESS.pack(0, 0, 0, 0, 0))]
    return [address for address in found if address.family in (AF_INET, AF_INET6)]


def by_mac(kernel: Netlink, mac: str) -> Link | None:
    """The interface with this address, any spelling; the guest's names are not known to the host."""
    wanted = mac.lower().replace("-", ":")
    return next((link for link in links(kernel) if link.mac == wanted), None)


def by_name(kernel: Netlink, name: str) -> Link | None:
    """The interface of this name."""
    return next((link for link in links(kernel) if link.name == name), None)


def configure(kernel: Netlink, link: Link, wanted: Message) -> None:
    """Name, MTU, flags, addresses (these alone, and IPv6 link-local ones); up at the end. Raises NetlinkError."""
    held = [
        (*netlink.address_bytes(entry["address"]), int(entry.get("mask") or 0))
        for entry in wanted.get("IPAddresses") or []
    ]
    name = wanted.get("name") or wanted.get("device") or link.name
    if name != link.name:
        holder = by_name(kernel, name)
        if holder is not None:  # two interfaces exchange their names: its holder gets one that nobody asks for
            _rename(kernel, holder, f"kata{holder.index}")
            _set(kernel, holder.index, holder.flags & _IFF_UP, _IFF_UP, [])
        _rename(kernel, link, name)
    changes = [(_IFLA_MTU, netlink.u32(wanted["mtu"]))] if wanted.get("mtu") else []
    noarp = wanted.get("raw_flags", 0) & _IFF_NOARP
    if changes or noarp:
        _set(kernel, link.index, noarp, noarp, changes)
    _replace_addresses(kernel, link, held)
    _set(kernel, link.index, _IFF_UP, _IFF_UP, [])


def listing(kernel: Netlink) -> list[Message]:
    """types.Interface of every interface."""
    held = addresses(kernel)
    return [
        {
            "device": link.name,
            "name": link.name,
            "mtu": link.mtu,
            "hwAddr": link.mac,
            "type": link.kind or ("loopback" if link.flags & _IFF_LOOPBACK else ""),
            "raw_flags": link.flags & 0xFFFF_FFFF,
            "IPAddresses": [address.to_message() for address in held if address.index == link.index],
        }
        for link in links(kernel)
    ]


def _set(kernel: Netlink, index: int, flags: int, change: int, attributes: list[tuple[int, bytes]]) -> None:
    kernel.change(netlink.NEW_LINK, 0, netlink.LINK.pack(0, 0, index, flags, change), attributes)


def _rename(kernel: Netlink, link: Link, name: str) -> None:
    _set(kernel, link.index, 0, _IFF_UP, [])  # the kernel refuses to rename what is up
    _set(kernel, link.index, 0, 0, [(_IFLA_IFNAME, name.encode() + b"\0")])


def _replace_addresses(kernel: Netlink, link: Link, wanted: list[tuple[int, bytes, int]]) -> None:
    """`wanted`: (family, address, prefix length). IPv6 link-local addresses are the kernel's own affair."""
    for present in addresses(kernel):
        if present.index != link.index or (present.family == AF_INET6 and present.scope == _SCOPE_LINK):
            continue
        if (present.family, present.value, present.prefix) not in wanted:
            body = netlink.ADDRESS.pack(present.family, present.prefix, 0, 0, link.index)
            kernel.change(netlink.DELETE_ADDRESS, 0, body, [(_IFA_LOCAL, present.value)])
    for family, value, prefix in wanted:
        # the host has made sure that nobody else has the address; finding out again takes a second
        flags = _IFA_F_NODAD if family == AF_INET6 else 0
        body = netlink.ADDRESS.pack(family, prefix, flags, 0, link.index)
        both = [(_IFA_LOCAL, value), (_IFA_ADDRESS, value)]
        kernel.change(netlink.NEW_ADDRESS, netlink.CREATE | netlink.REPLACE, body, both)
