# SPDX-License-Identifier: Apache-2.0
"""What is recorded of a network: JSON-able, immutable. Addresses are text; `family` is 4 or 6; numbers are the kernel's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec


class Address(msgspec.Struct, frozen=True):
    """One address of an interface. `prefix` in bits."""

    family: int
    address: str
    prefix: int


class Interface(msgspec.Struct, frozen=True, omit_defaults=True):
    """One interface of the namespace that the guest has. `slot` (from 1) names its tap, its NIC and its bus; 0: none yet.

    `name`, `mac` and `mtu` (bytes) are the interface's own, and the guest's NIC gets the same; `index` is its number in
    the namespace. `queues`: pairs of the tap.
    """

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    addresses: tuple[Address, ...] = ()
    noarp: bool = False
    slot: int = 0
    queues: int = 1


class Route(msgspec.Struct, frozen=True, omit_defaults=True):
    """One unicast route of the main table. An empty `dest` is the default route; `metric` 0 the kernel's default."""

    family: int
    device: str
    dest: str = ""
    gateway: str = ""
    source: str = ""
    scope: int = 0
    metric: int = 0
    mtu: int = 0
    onlink: bool = False


class Neighbour(msgspec.Struct, frozen=True, omit_defaults=True):
    """A fixed entry of the neighbour table. `state` and `flags` as in linux/neighbour.h."""

    family: int
    device: str
    address: str
    mac: str
    state: int
    flags: int = 0


class Network(msgspec.Struct, frozen=True):
    """All of it."""

    interfaces: tuple[Interface, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()

    def to_facts(self) -> dict[str, Any]:
        """As recorded."""
        facts: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))  # lists, as a record gives them back
        return facts

    def on(self, interfaces: Iterable[Interface]) -> Network:
        """The same with these interfaces, and only what concerns them."""
        kept = tuple(interfaces)
        names = {interface.name for interface in kept}
        return Network(
            kept,
            tuple(route for route in self.routes if route.device in names),
            tuple(entry for entry in self.neighbours if entry.device in names),
        )


def from_facts(facts: dict[str, Any]) -> Network:
    """From a record. Raises `msgspec.ValidationError` for what is none."""
    return msgspec.convert({name: facts.get(name, []) for name in Network.__struct_fields__}, Network)
