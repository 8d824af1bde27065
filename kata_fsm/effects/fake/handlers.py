# SPDX-License-Identifier: Apache-2.0
"""The effects on the host, over the simulated one: what the real handlers promise, step by step.

Each step that takes or gives something back passes a boundary, so that a supervisor can die in the middle of an effect;
`half` is the fault that stops there. As with the real handlers, one that fails by itself leaves nothing behind, and one
that was cut off leaves whatever it had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from kata_fsm.effects.fake.faults import Doomed
from kata_fsm.effects.fake.guest import FakeGuest
from kata_fsm.effects.fake.host import FakeHost
from kata_fsm.effects.process import Exit
from kata_fsm.effects.protocols import Intent, Observed
from kata_fsm.errors import EffectError
from kata_fsm.oci.devices import Wanted, wanted_by
from kata_fsm.oci.hosting import Limits

Result = dict[str, Any]


class HostHandler:
    """What they share. `half` is set by the wrapper that plans faults: fail once, in the middle."""

    def __init__(
        self,
        host: FakeHost,
        uid: str,
        doomed: Doomed,
        boot_s: float = 2.0,
        limits: Callable[[], Limits] = Limits,
        asked: Callable[[], frozenset[Wanted]] = frozenset,
    ) -> None:
        self.limits = limits
        self.asked = asked
        self.host = host
        self.uid = uid
        self.doomed = doomed
        self.boot_s = boot_s
        self.half = False

    async def step(self) -> None:
        """Between two things that an effect does."""
        self.doomed.boundary("effect")
        await trio.lowlevel.checkpoint()
        self.doomed.boundary("effect")
        if self.half:
            self.half = False
            raise EffectError("half", "it failed half way")

    async def failed(self, intent: Intent) -> None:
        """What the real handler does when it fails at its end, if it does not leave that to an effect of its own."""

    def limit(self) -> None:
        """The sandbox's cgroup gets the limits that are wanted now."""
        self.host.limit(self.uid, self.limits())

    async def plug_disks(self, intent: Intent) -> None:
        """The disks that a container asks for, those that are not there."""
        for each in wanted_by(intent.params):
            await self.step()
            if self.host.find("qemu", self.uid) is None:
                raise EffectError("qmp", "QEMU hung up")
            if each.serial not in self.host.disks(self.uid):
                self.host.take("disk", f"{self.uid}/{each.serial}")

    async def unplug_disks(self, intent: Intent) -> None:
        """Those of its disks that no living container asks for."""
        for each in wanted_by(intent.params):
            await self.step()
            if each not in self.asked():
                self.host.give_back("disk", f"{self.uid}/{each.serial}")

    def name(self, intent: Intent) -> str:
        """Of what belongs to one container."""
        return f"{self.uid}/{intent.params['container']}"


class Launch(HostHandler):
    """`hypervisor.launch`: files, then QEMU."""

    async def perform(self, intent: Intent) -> Result:
        """One that runs already is answered as it is."""
        found = self.host.find("qemu", self.uid)
        if found is not None:
            return {**found.identity.to_dict(), "accel": "tcg"}
        if not self.host.ledger.has("vm files", self.uid):
            self.host.take("vm files", self.uid)
        try:
            self.limit()
            await self.step()
            identity = self.host.spawn("qemu", self.uid, self.doomed)
            self.host.guests[self.uid] = FakeGuest(self.host.faults, trio.current_time() + self.boot_s)
            await self.step()
        except EffectError:
            await self.undo(intent)
            raise
        return {**identity.to_dict(), "accel": "tcg"}

    async def probe(self, intent: Intent) -> Observed:
        """Whether QEMU runs."""
        found = self.host.find("qemu", self.uid)
        return Observed(False) if found is None else Observed(True, {**found.identity.to_dict(), "accel": "tcg"})

    async def undo(self, intent: Intent) -> Result:
        """End it and remove its files."""
        found = self.host.find("qemu", self.uid)
        if found is not None:
            self.host.end(found.identity, Exit(signal=9))
        self.host.give_back("vm files", self.uid)
        return {"found": found is not None}


class Stop(Launch):
    """`hypervisor.stop`: QEMU, then its files. Repeatable."""

    async def perform(self, intent: Intent) -> Result:
        """End it."""
        found = self.host.find("qemu", self.uid)
        if found is not None:
            self.host.end(found.identity, Exit(code=0))
            await self.step()
        self.host.give_back("vm files", self.uid)
        return {"found": found is not None, "forced": False}

    async def probe(self, intent: Intent) -> Observed:
        """Done when neither process nor file is left."""
        return Observed(self.host.find("qemu", self.uid) is None and not self.host.ledger.has("vm files", self.uid))


class Prepare(HostHandler):
    """`share.prepare`: the tree, then virtiofsd."""

    async def perform(self, intent: Intent) -> Result:
        """Made anew."""
        await self.undo(intent)
        self.host.take("tree", self.uid)
        try:
            await self.step()
            identity = self.host.spawn("virtiofsd", self.uid, self.doomed)
            await self.step()
        except EffectError:
            await self.undo(intent)
            raise
        return identity.to_dict()

    async def probe(self, intent: Intent) -> Observed:
        """Done when tree and daemon are there."""
        found = self.host.find("virtiofsd", self.uid)
        there = found is not None and self.host.ledger.has("tree", self.uid)
        return Observed(there, {} if found is None else found.identity.to_dict())

    async def undo(self, intent: Intent) -> Result:
        """End the daemon, unmount everything below the tree, remove it."""
        found = self.host.find("virtiofsd", self.uid)
        if found is not None:
            self.host.end(found.identity, Exit(signal=9))
        gone = self.host.give_back_below("mount", f"{self.uid}/")
        self.host.give_back("tree", self.uid)
        return {"unmounted": gone}


class Release(Prepare):
    """`share.release`."""

    async def perform(self, intent: Intent) -> Result:
        """Let go of all of it."""
        await self.step()
        return await self.undo(intent)

    async def probe(self, intent: Intent) -> Observed:
        """Done when neither daemon nor tree is left."""
        there = self.host.find("virtiofsd", self.uid) is not None or self.host.ledger.has("tree", self.uid)
        return Observed(not there)


class Plug(HostHandler):
    """`share.plug`: a device of the machine, which goes with it."""

    async def perform(self, intent: Intent) -> Result:
        """Needs both daemons."""
        await self.step()
        for kind in ("qemu", "virtiofsd"):
            if self.host.find(kind, self.uid) is None:
                raise EffectError("plug", f"there is no {kind}")
        return {"plugged": True}

    async def probe(self, intent: Intent) -> Observed:
        """QEMU is asked; nobody remembers here."""
        return Observed(None)

    async def undo(self, intent: Intent) -> Result:
        """Nothing is kept of it."""
        return {}


class Stage(HostHandler):
    """`container.prepare`: a cgroup, the pod's limits, then the binds."""

    async def perform(self, intent: Intent) -> Result:
        """All of it, or nothing."""
        name = self.name(intent)
        if not self.host.ledger.has("tree", self.uid):
            raise EffectError("share", "the shared tree is not there")
        if not self.host.ledger.has("cgroup", name):
            self.host.take("cgroup", name)
        try:
            self.limit()
            await self.step()
            self.host.give_back("mount", name)
            if not self.host.ledger.has("tree", self.uid):
                raise EffectError("share", "the shared tree is gone")
            self.host.take("mount", name)
            await self.step()
        except EffectError:
            await self.undo(intent)
            raise
        return {"cgroups": [{"path": f"cgroup/{name}"}], "binds": []}

    async def probe(self, intent: Intent) -> Observed:
        """Done when the binds are, for they come last."""
        name = self.name(intent)
        return Observed(self.host.ledger.has("mount", name), {"cgroups": [{"path": f"cgroup/{name}"}], "binds": []})

    async def undo(self, intent: Intent) -> Result:
        """Binds and cgroup."""
        self.host.give_back("mount", self.name(intent))
        self.host.give_back("cgroup", self.name(intent))
        return {}


class Unstage(HostHandler):
    """`container.unstage`: the disks and the binds go, and its part of the limits; the cgroup stays."""

    async def perform(self, intent: Intent) -> Result:
        """Unplug, and unmount."""
        await self.unplug_disks(intent)
        self.limit()
        await self.step()
        return {"unmounted": self.host.give_back("mount", self.name(intent))}

    async def probe(self, intent: Intent) -> Observed:
        """Done when nothing is mounted, the pod is limited without it, and its disks are gone or another's."""
        there = self.host.disks(self.uid)
        held = [each for each in wanted_by(intent.params) if each.serial in there and each not in self.asked()]
        limited = self.host.limits.get(self.uid, Limits()) == self.limits()
        return Observed(limited and not held and not self.host.ledger.has("mount", self.name(intent)))

    async def undo(self, intent: Intent) -> Result:
        """Doing it again is always right."""
        return {}


class Discard(HostHandler):
    """`container.discard`: whatever is left."""

    async def perform(self, intent: Intent) -> Result:
        """Binds and cgroup."""
        self.host.give_back("mount", self.name(intent))
        await self.step()
        return {"cgroups": self.host.give_back("cgroup", self.name(intent))}

    async def probe(self, intent: Intent) -> Observed:
        """Done when neither is left."""
        held = self.host.ledger.has
        return Observed(not held("mount", self.name(intent)) and not held("cgroup", self.name(intent)))

    async def undo(self, intent: Intent) -> Result:
        """Doing it again is always right."""
        return {}
