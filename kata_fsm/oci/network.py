# SPDX-License-Identifier: Apache-2.0
"""Interfaces and routes as `kata-runtime kata-network` reads and prints them, and as they are recorded here. Pure.

The JSON keys are the names of Go's fields, read in any case: Interface {Device, Name, IPAddresses [{Family, Address, Mask}],
Mtu, RawFlags, HwAddr, PciPath, LinkType}, Route {Dest, Gateway, Device, Source, Scope}, to which we add Metric, Mtu and
Flags (kata-containers/runtime 1.x, virtcontainers/pkg/types). What a field says that follows from others (the family of an
address, the type of a link that exists) is read and not believed.
"""

from __future__ import annotations

import ipaddress
import json
from typing import Any

from kata_fsm.errors import UsageError
from kata_fsm.limits import NETWORK_ENTRIES_MAX

Document = dict[str, Any]

_INTERFACE = frozenset({"device", "name", "ipaddresses", "mtu", "rawflags", "hwaddr", "pcipath", "linktype"})
_ADDRESS = frozenset({"family", "address", "mask"})
_ROUTE = frozenset({"dest", "gateway", "device", "source", "scope", "metric", "mtu", "flags", "family"})
_AF = {4: 2, 6: 10}  # what Kata's `Family` holds: AF_INET, AF_INET6
_MTU_MAX = 65535
_U32_MAX = (1 << 32) - 1
_RTNH_F_ONLINK = 0x4


def interface_in(text: str) -> Document:
    """{"name", "mac", "mtu", "addresses": [{"family", "address", "prefix"}]} of a JSON object. Raises `UsageError`."""
    given = _fields(_parsed(text, dict, "an object"), _INTERFACE, "interface")
    name = _text(given, "name", "interface") or _text(given, "device", "interface")
    mac = _text(given, "hwaddr", "interface")
    if not name and not mac:
        raise UsageError("interface: `Name` is missing")
    return {
        "name": name,
        "mac": mac.lower(),
        "mtu": _number(given, "mtu", "interface", _MTU_MAX),
        "addresses": [_address(each) for each in _list(given, "ipaddresses", "interface")],
    }


def routes_in(text: str) -> list[Document]:
    """Routes as `effects.network.model.Route` is recorded, of a JSON list. Raises `UsageError`."""
    given = _parsed(text, list, "a list")
    if len(given) > NETWORK_ENTRIES_MAX:
        raise UsageError(f"routes: there are `{len(given)}`, legal is up to `{NETWORK_ENTRIES_MAX}`")
    return [_route(each, f"routes[{number}]") for number, each in enumerate(given)]


def interface_out(message: Document) -> Document:
    """An interface of the guest (types.Interface, plain) with Kata's keys."""
    return {
        "Device": message.get("device", ""),
        "Name": message.get("name", ""),
        "IPAddresses": [
            {
                "Family": _AF[6 if ":" in str(each.get("address", "")) else 4],
                "Address": each.get("address", ""),
                "Mask": each.get("mask", ""),
            }
            for each in message.get("IPAddresses", [])
        ],
        "Mtu": message.get("mtu", 0),
        "RawFlags": message.get("raw_flags", 0),
        "HwAddr": message.get("hwAddr", ""),
        "PciPath": message.get("devicePath", ""),
        "LinkType": message.get("type", ""),
    }


def route_out(message: Document) -> Document:
    """A route of the guest (types.Route, plain) with Kata's keys and ours."""
    return {
        "Dest": message.get("dest", ""),
        "Gateway": message.get("gateway", ""),
        "Device": message.get("device", ""),
        "Source": message.get("source", ""),
        "Scope": message.get("scope", 0),
        "Metric": message.get("metric", 0),
        "Mtu": message.get("mtu", 0),
        "Flags": message.get("flags", 0),
    }


def _parsed(text: str, kind: type[Any], what: str) -> Any:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"network: the input is not JSON: {error}") from error
    if not isinstance(document, kind):
        raise UsageError(f"network: the input is not {what}")
    return document


def _fields(given: object, known: frozenset[str], what: str) -> Document:
    if not isinstance(given, dict):
        raise UsageError(f"{what}: is not an object")
    found = {}
    for key, value in given.items():
        if key.lower() not in known:
            raise UsageError(f"{what}: there is no field `{key}`")
        if value is not None:  # as Go writes what is empty
            found[key.lower()] = value
    return found


def _text(given: Document, name: str, what: str) -> str:
    value = given.get(name, "")
    if not isinstance(value, str):
        raise UsageError(f"{what}: `{name}` is not a text")
    return value


def _number(given: Document, name: str, what: str, most: int) -> int:
    value = given.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise UsageError(f"{what}: `{name}` is `{value}`, legal is 0 to {most}")
    return value


def _list(given: Document, name: str, what: str) -> list[Any]:
    value = given.get(name, [])
    if not isinstance(value, list):
        raise UsageError(f"{what}: `{name}` is not a list")
    return value


def _address(given: object) -> Document:
    fields = _fields(given, _ADDRESS, "interface address")
    text, mask = _text(fields, "address", "interface address"), fields.get("mask", "")
    try:
        both = ipaddress.ip_interface(f"{text}/{mask}" if mask != "" else text)
    except ValueError as error:
        raise UsageError(f"interface address: {error}") from error
    return {"family": both.version, "address": str(both.ip), "prefix": both.network.prefixlen}


def _ip(given: Document, name: str, what: str) -> str:
    text = _text(given, name, what)
    try:
        return str(ipaddress.ip_address(text)) if text else ""
    except ValueError as error:
        raise UsageError(f"{what}: `{name}`: {error}") from error


def _route(given: object, what: str) -> Document:
    fields = _fields(given, _ROUTE, what)
    device = _text(fields, "device", what)
    if not device:
        raise UsageError(f"{what}: `Device` is missing")
    dest, gateway, source = _dest(fields, what), _ip(fields, "gateway", what), _ip(fields, "source", what)
    families = {6 if ":" in text else 4 for text in (dest, gateway, source) if text}
    if len(families) > 1:
        raise UsageError(f"{what}: it mixes IPv4 and IPv6")
    if not families:
        raise UsageError(f"{what}: neither `Dest` nor `Gateway` says where to")
    return {
        "family": families.pop(),
        "device": device,
        "dest": dest,
        "gateway": gateway,
        "source": source,
        "scope": _number(fields, "scope", what, 255),
        "metric": _number(fields, "metric", what, _U32_MAX),
        "mtu": _number(fields, "mtu", what, _MTU_MAX),
        "onlink": bool(_number(fields, "flags", what, _U32_MAX) & _RTNH_F_ONLINK),
    }


def _dest(given: Document, what: str) -> str:
    text = _text(given, "dest", what)
    if text in ("", "default"):
        return ""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise UsageError(f"{what}: `dest`: {error}") from error
    return str(network) if network.prefixlen else ""
