# SPDX-License-Identifier: Apache-2.0
"""The effect `network.change`: the guest's network while the pod runs.

Whatever is asked for, the same is done: say what the guest should have, take away what it should not, give it what it
lacks, tell it. Whoever did half of it and ended is followed by somebody who first sweeps away what is not recorded.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec
import trio

from kata_fsm import errors
from kata_fsm.effects.hypervisor import nic
from kata_fsm.effects.network import namespace, told
from kata_fsm.effects.network.handlers import LOOKING, PARTING, Plugger
from kata_fsm.effects.network.model import Address, Interface, Network, Route, from_facts
from kata_fsm.effects.protocols import Intent, Observed


class NetworkChange(Plugger):
    """`network.change`. Params: those of `network.plug`, "routes_given" (routes were set by hand and are left alone), and
    "change": one of {"rescan": true}, {"add": interface}, {"remove": interface}, {"routes": [as in `model.Route`]}, where
    an interface is {"name", "mac", "mtu", "addresses"}, of which `add` needs the name, `remove` name or mac.

    Result: "interfaces", "routes", "neighbours", "routes_given" as they are then, and "resolver" (true), only with one, when
    Docker answers names in there. When it fails, all is as it was before.
    """

    async def perform(self, intent: Intent) -> dict[str, Any]:
        """Make guest and namespace agree with what is asked for."""
        known, change = from_facts(intent.params), intent.params.get("change") or {}
        await self._sweep(known)
        if "routes" in change:
            routes = msgspec.convert(change["routes"], tuple[Route, ...])
            await told.tell_routes(self.link, routes)
            return {**Network(known.interfaces, routes, known.neighbours).to_facts(), "routes_given": True}
        by_hand = bool(intent.params.get("routes_given"))
        wanted = await self._wanted(known, change)
        if by_hand:
            wanted = Network(wanted.interfaces, known.on(wanted.interfaces).routes, wanted.neighbours)
        try:
            await self._converge(self._model(intent), known, wanted, by_hand)
        except errors.EffectError as error:
            with trio.CancelScope(shield=True):
                why = await self._restored(self._model(intent), known)
            if not why:
                raise
            message = f"{error.message}; and what was there before cannot be put back: {why}"
            raise errors.EffectError(error.phase, message, evidence=error.evidence, hint=error.hint) from error
        resolver = await self._inside(LOOKING, lambda _: namespace.has_resolver())
        return {**wanted.to_facts(), "routes_given": by_hand, **({"resolver": True} if resolver else {})}

    async def _wanted(self, known: Network, change: dict[str, Any]) -> Network:
        if "remove" in change:
            gone = _find(known, change["remove"])
            return known.on(each for each in known.interfaces if each is not gone)
        found = await self.found(known)
        if "add" not in change:
            return found
        return _with_added(known, found, change["add"])

    async def found(self, known: Network) -> Network:
        """What the guest should have, in the slots of what it has. Raises EffectError."""
        if not os.path.lexists(self.paths.netns):
            raise errors.EffectError("netns", "the network namespace is not held any more")
        uid, settings = self.paths.uid, self.settings
        return await self._inside(LOOKING, lambda _: namespace.look(uid, settings, known))

    async def _converge(self, model: str, known: Network, wanted: Network, by_hand: bool) -> None:
        uid = self.paths.uid
        slots = {interface.slot for interface in wanted.interfaces}
        gone = [interface.slot for interface in known.interfaces if interface.slot not in slots]
        for slot in gone:
            await nic.unplug(self.monitor, slot)
        if gone:
            await self._inside(PARTING, lambda _: namespace.part(uid, but=slots))
        before = {interface.slot: interface for interface in known.interfaces}
        plugged = await nic.slots(self.monitor)
        fresh = [each for each in wanted.interfaces if before.get(each.slot) != each or each.slot not in plugged]
        await self._join(model, fresh)
        for interface in fresh:
            await self.plug(model, interface)
            await told.tell_interface(self.link, interface)
        if not by_hand:
            await told.tell_routes(self.link, wanted.routes)
        await told.tell_neighbours(self.link, wanted.neighbours)

    async def _restored(self, model: str, known: Network) -> str:
        """Put back what is recorded, also what was unplugged already; why that cannot be done, or nothing."""
        try:
            await self._sweep(known)
            await self._join(model, known.interfaces)
            for interface in known.interfaces:
                await self.plug(model, interface)
            await told.tell(self.link, known)
        except errors.EffectError as error:
            return error.message
        return ""

    async def _sweep(self, known: Network) -> None:
        """Take away NICs and taps that no record tells of."""
        slots = {interface.slot for interface in known.interfaces}
        for slot in await nic.slots(self.monitor):
            if slot not in slots:
                await nic.unplug(self.monitor, slot)
        await self._inside(PARTING, lambda _: namespace.part(self.paths.uid, but=slots))

    async def probe(self, intent: Intent) -> Observed:
        """What the guest was told cannot be seen from outside; doing it again does no harm."""
        await trio.lowlevel.checkpoint()
        return Observed(None)

    async def undo(self, intent: Intent) -> dict[str, Any]:
        """Back to what is recorded."""
        await self._sweep(from_facts(intent.params))
        return {}


def _find(known: Network, asked: dict[str, Any]) -> Interface:
    mac, name = str(asked.get("mac") or "").lower(), str(asked.get("name") or "")
    for interface in known.interfaces:
        if interface.mac == mac if mac else interface.name == name:
            return interface
    raise errors.EffectError("find", f"the guest has no interface `{mac or name}` of this namespace")


def _with_added(known: Network, found: Network, asked: dict[str, Any]) -> Network:
    name, mac = str(asked.get("name") or ""), str(asked.get("mac") or "").lower()
    if any(interface.name == name for interface in known.interfaces):
        raise errors.EffectError("find", f"the guest has the interface `{name}` already")
    interface = next((each for each in found.interfaces if each.name == name), None)
    if interface is None:
        raise errors.EffectError(
            "find", f"the network namespace has no interface `{name}` that is up", hint="bring it up first"
        )
    if mac and mac != interface.mac:
        raise errors.EffectError("find", f"interface `{name}` has the MAC address `{interface.mac}`, not `{mac}`")
    changes: dict[str, Any] = {}
    if asked.get("addresses"):
        changes["addresses"] = msgspec.convert(asked["addresses"], tuple[Address, ...])
    if asked.get("mtu"):
        changes["mtu"] = int(asked["mtu"])
    taken = {each.slot for each in known.interfaces}
    slot = next(number for number in range(1, len(taken) + 2) if number not in taken)
    new = msgspec.structs.replace(interface, slot=slot, **changes)
    rest = {each.name for each in known.interfaces} | {name}
    return Network(
        (*known.interfaces, new),
        (*known.routes, *(route for route in found.routes if route.device == name)),
        tuple(entry for entry in found.neighbours if entry.device in rest),
    )
