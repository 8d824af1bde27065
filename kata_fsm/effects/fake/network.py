# SPDX-License-Identifier: Apache-2.0
"""The effects on the network, over the simulated host: a namespace that others fill, a tap for each of its interfaces, a
NIC in the guest for each tap. As in `kata_fsm.effects.network`, a change that fails puts back what is recorded.
"""

from __future__ import annotations

from typing import Any

from kata_fsm.effects.fake.guest import FakeGuest
from kata_fsm.effects.fake.handlers import HostHandler, Result
from kata_fsm.effects.fake.host import FakeHost
from kata_fsm.effects.protocols import Intent, Observed
from kata_fsm.errors import EffectError

Slots = dict[int, str]
"""Which interface has which slot."""


def taps(host: FakeHost, uid: str) -> Slots:
    """What is joined of a sandbox's namespace. As on a real host, a tap tells whose it is and what it belongs to."""
    found = (name.removeprefix(f"{uid}/").split(".", 1) for name in host.ledger.names("tap", f"{uid}/"))
    return {int(slot): name for slot, name in found}


def recorded(facts: dict[str, Any]) -> Slots:
    """The interfaces that a record, or an intent's params, tell of."""
    return {int(each["slot"]): str(each["name"]) for each in facts.get("interfaces", [])}


def _facts(slots: Slots) -> list[dict[str, Any]]:
    return [{"slot": slot, "name": name} for slot, name in sorted(slots.items())]


def _slotted(known: Slots, names: list[str]) -> Slots:
    """Each interface with the slot that it has, or the lowest free one."""
    slots = {slot: name for slot, name in known.items() if name in names}
    for name in names:
        if name not in slots.values():
            slots[
                next(number for number in range(1, len(slots) + len(known) + 2) if number not in (*slots, *known))
            ] = name
    return slots


class NetworkHandler(HostHandler):
    """What they share."""

    def join(self, slot: int, name: str) -> None:
        """A tap, if there is none yet."""
        if slot not in taps(self.host, self.uid):
            self.host.take("tap", f"{self.uid}/{slot}.{name}")

    def part(self, slot: int) -> None:
        """And away with it."""
        for name in self.host.ledger.names("tap", f"{self.uid}/{slot}."):
            self.host.give_back("tap", name)


class Attach(NetworkHandler):
    """`network.attach`: our namespace, and with a network model a tap for each interface in it."""

    def _wanted(self, intent: Intent) -> Slots:
        has_model = intent.params.get("model", "none") != "none"
        return _slotted({}, self.host.interfaces(self.uid)) if has_model else {}

    def _result(self, intent: Intent) -> Result:
        model = str(intent.params.get("model") or "none")
        result = {"netns": f"netns/{self.uid}", "created": True, "model": model}
        if model == "none":
            return {**result, "unserved": []}
        return {**result, "interfaces": _facts(taps(self.host, self.uid)), "routes": [], "neighbours": []}

    async def perform(self, intent: Intent) -> Result:
        """Made anew."""
        await self.undo(intent)
        self.host.take("netns", self.uid)
        try:
            await self.step()
            for slot, name in self._wanted(intent).items():
                self.join(slot, name)
                await self.step()
        except EffectError:
            await self.undo(intent)
            raise
        return self._result(intent)

    async def probe(self, intent: Intent) -> Observed:
        """Whether all of it is there."""
        joined = sorted(taps(self.host, self.uid).values()) == sorted(self._wanted(intent).values())
        return Observed(joined and self.host.ledger.has("netns", self.uid), self._result(intent))

    async def undo(self, intent: Intent) -> Result:
        """Remove it."""
        self.host.give_back_below("tap", f"{self.uid}/")
        return {"removed": self.host.give_back("netns", self.uid)}


class Detach(Attach):
    """`network.detach`."""

    async def perform(self, intent: Intent) -> Result:
        """Remove it."""
        await self.step()
        return await self.undo(intent)

    async def probe(self, intent: Intent) -> Observed:
        """Done when nothing of it is there."""
        return Observed(not self.host.ledger.has("netns", self.uid) and not taps(self.host, self.uid))


class Plugger(NetworkHandler):
    """NICs of the machine, which go with it."""

    def machine(self) -> FakeGuest:
        """Who gets them. Raises EffectError."""
        guest = self.host.guests.get(self.uid)
        if self.host.find("qemu", self.uid) is None or guest is None:
            raise EffectError("plug", "there is no qemu")
        return guest

    def plug(self, guest: FakeGuest, slot: int, name: str) -> None:
        """One NIC. Raises EffectError."""
        if taps(self.host, self.uid).get(slot) != name:
            raise EffectError("plug", f"there is no tap for `{name}`")
        guest.nics[slot] = name
        self.host.changed()

    async def probe(self, intent: Intent) -> Observed:
        """What the guest was told cannot be seen; doing it again does no harm."""
        return Observed(None)

    async def undo(self, intent: Intent) -> Result:
        """Nothing is kept of it."""
        return {}


class PlugNetwork(Plugger):
    """`network.plug`."""

    async def perform(self, intent: Intent) -> Result:
        """Needs QEMU and the taps."""
        await self.step()
        for slot, name in recorded(intent.params).items():
            self.plug(self.machine(), slot, name)
            await self.step()
        return {"nics": [f"nic{slot}" for slot in recorded(intent.params)]}


class ChangeNetwork(Plugger):
    """`network.change`: what is not recorded goes, then guest and namespace are made to agree with what is asked for."""

    async def perform(self, intent: Intent) -> Result:
        """As the real one."""
        await self.step()
        guest, known = self.machine(), recorded(intent.params)
        self._sweep(guest, known)
        change, by_hand = intent.params.get("change") or {}, bool(intent.params.get("routes_given"))
        if "routes" in change:
            return {"interfaces": _facts(known), "routes": change["routes"], "neighbours": [], "routes_given": True}
        wanted = self._wanted(known, change)
        try:
            await self._converge(guest, known, wanted)
        except EffectError:
            await self.failed(intent)
            raise
        routes = intent.params["routes"] if by_hand else []
        return {"interfaces": _facts(wanted), "routes": routes, "neighbours": [], "routes_given": by_hand}

    def _wanted(self, known: Slots, change: dict[str, Any]) -> Slots:
        there = self.host.interfaces(self.uid)
        if "remove" in change:
            gone = change["remove"]["name"]
            if gone not in known.values():
                raise EffectError("find", f"the guest has no interface `{gone}`")
            return {slot: name for slot, name in known.items() if name != gone}
        if "add" in change:
            name = change["add"]["name"]
            if name in known.values() or name not in there:
                raise EffectError("find", f"interface `{name}` cannot be added")
            return _slotted(known, [*known.values(), name])
        return _slotted(known, there)

    async def _converge(self, guest: FakeGuest, known: Slots, wanted: Slots) -> None:
        for slot in [slot for slot in known if slot not in wanted]:
            guest.nics.pop(slot, None)
            await self.step()
            self.part(slot)
        for slot, name in wanted.items():
            if guest.nics.get(slot) != name:
                self.join(slot, name)
                await self.step()
                self.plug(guest, slot, name)
        await self.step()

    def _sweep(self, guest: FakeGuest, known: Slots) -> None:
        for slot in [slot for slot in guest.nics if slot not in known]:
            del guest.nics[slot]
            self.host.changed()
        for slot in [slot for slot in taps(self.host, self.uid) if slot not in known]:
            self.part(slot)

    async def undo(self, intent: Intent) -> Result:
        """What is not recorded goes."""
        guest = self.host.guests.get(self.uid)
        if guest is not None:
            self._sweep(guest, recorded(intent.params))
        return {}

    async def failed(self, intent: Intent) -> None:
        """Back to what is recorded."""
        guest, known = self.host.guests.get(self.uid), recorded(intent.params)
        if guest is None or guest.off:
            return
        self._sweep(guest, known)
        for slot, name in known.items():
            self.join(slot, name)
            self.plug(guest, slot, name)
