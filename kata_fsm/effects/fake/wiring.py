# SPDX-License-Identifier: Apache-2.0
"""Which handler performs which kind of effect in the simulated world: the counterpart of `kata_fsm.supervisor.wiring`.

Host effects are simulated; those in the guest are the real handlers, over the simulated link. Around each stands `Faulty`,
which brings about the faults that were planned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import trio

from kata_fsm.effects import oom
from kata_fsm.effects.agent import handlers as guest
from kata_fsm.effects.agent.link import Link
from kata_fsm.effects.fake import handlers as fake
from kata_fsm.effects.fake import network
from kata_fsm.effects.fake.clock import nap
from kata_fsm.effects.fake.faults import Doomed
from kata_fsm.effects.fake.host import FakeHost
from kata_fsm.effects.fake.link import FakeLink
from kata_fsm.effects.hypervisor.watch import judge
from kata_fsm.effects.process import UNKNOWN, Identity
from kata_fsm.effects.protocols import Handler, Intent, Observed
from kata_fsm.errors import EffectError, TimeoutExceeded
from kata_fsm.machines.vocab import Cause
from kata_fsm.oci.devices import Wanted
from kata_fsm.oci.hosting import Limits
from kata_fsm.world import World

if TYPE_CHECKING:
    from kata_fsm.effects.localhost.doorway import Doorway
    from kata_fsm.effects.network.model import Network
    from kata_fsm.effects.network.news import News

LIMIT_S = 30.0
"""After this an effect that hangs is given up by its own limit."""

EFFECT_S = 0.005


class FromMemory:
    """Configurations for the guest come from the simulated host's files."""

    host: FakeHost

    def load(self, path: object) -> dict[str, Any]:
        """As the real one."""
        if path not in self.host.files:
            raise EffectError("spec", f"the configuration for the guest is not at `{path}`")
        kept: dict[str, Any] = self.host.files[path]
        return kept


class Create(FromMemory, guest.ContainerCreate):
    """`container.create`: the disks, which `plugs` plugs, and the guest."""

    def __init__(self, link: Link, world: World, host: FakeHost, plugs: fake.HostHandler) -> None:
        super().__init__(link, world)
        self.host = host
        self.plugs = plugs

    async def perform(self, intent: Intent) -> dict[str, Any]:
        """As the real ones do it."""
        await self.plugs.plug_disks(intent)
        return await super().perform(intent)


class Exec(FromMemory, guest.ProcessExec):
    """`process.exec`."""

    def __init__(self, link: Link, world: World, host: FakeHost) -> None:
        super().__init__(link, world)
        self.host = host


class Faulty:
    """A handler that meets what was planned for it."""

    def __init__(self, kind: str, handler: Handler, doomed: Doomed) -> None:
        self.kind = kind
        self.handler = handler
        self.doomed = doomed

    async def perform(self, intent: Intent) -> dict[str, Any]:
        """Through the handler, or not, or not noticed."""
        faults = self.doomed.faults
        self.doomed.boundary("effect")
        faults.seen[f"effect {self.kind}"] += 1
        fault = faults.of_effect(self.kind)
        if fault == "hang":
            await self._nap(LIMIT_S)
            raise TimeoutExceeded("hang", f"nothing happened within {LIMIT_S:g} s")
        await self._nap(EFFECT_S)
        if fault == "before" or (fault == "half" and not isinstance(self.handler, fake.HostHandler)):
            raise EffectError("planned", "it failed before it did anything")
        if isinstance(self.handler, fake.HostHandler):
            self.handler.half = fault == "half"
        result = await self.handler.perform(intent)
        self.doomed.boundary("effect")
        if fault in ("after", "lost") and isinstance(self.handler, fake.HostHandler):
            await self.handler.failed(intent)
        if fault == "after":
            raise EffectError("planned", "it was done, and failed all the same")
        if fault == "lost":
            await self._nap(LIMIT_S)
            raise TimeoutExceeded("lost", f"no answer came within {LIMIT_S:g} s")
        return result

    async def _nap(self, seconds: float) -> None:
        await nap(seconds)
        self.doomed.check()  # it may have died in the very moment in which that was over

    async def probe(self, intent: Intent) -> Observed:
        """Through the handler."""
        self.doomed.boundary("effect")
        self.doomed.faults.seen[f"probe {self.kind}"] += 1
        await trio.lowlevel.checkpoint()
        return await self.handler.probe(intent)

    async def undo(self, intent: Intent) -> dict[str, Any]:
        """Through the handler."""
        self.doomed.boundary("effect")
        return await self.handler.undo(intent)


class FakeWiring:
    """In the place of `kata_fsm.supervisor.wiring.Wiring`."""

    def __init__(
        self,
        host: FakeHost,
        uid: str,
        doomed: Doomed,
        link: FakeLink,
        boot_s: float = 2.0,
        limits: Callable[[], Limits] = Limits,
        asked: Callable[[], frozenset[Wanted]] = frozenset,
    ) -> None:
        self.limits = limits
        self.host = host
        self.uid = uid
        self.doomed = doomed
        here = (host, uid, doomed, boot_s, limits, asked)
        there = (cast(Link, link), host.world)
        made: dict[str, Handler] = {
            "hypervisor.launch": fake.Launch(*here),
            "hypervisor.stop": fake.Stop(*here),
            "network.attach": network.Attach(*here),
            "network.plug": network.PlugNetwork(*here),
            "network.change": network.ChangeNetwork(*here),
            "network.detach": network.Detach(*here),
            "share.prepare": fake.Prepare(*here),
            "share.plug": fake.Plug(*here),
            "share.release": fake.Release(*here),
            "agent.connect": guest.AgentConnect(*there),
            "agent.configure": guest.AgentConfigure(*there),
            "agent.disconnect": guest.AgentDisconnect(*there),
            "container.prepare": fake.Stage(*here),
            "container.create": Create(*there, host, fake.HostHandler(*here)),
            "container.start": guest.ContainerStart(*there),
            "container.pause": guest.ContainerPause(*there),
            "container.resume": guest.ContainerResume(*there),
            "container.kill": guest.ContainerKill(*there),
            "container.remove": guest.ContainerRemove(*there),
            "container.unstage": fake.Unstage(*here),
            "container.discard": fake.Discard(*here),
            "process.exec": Exec(*there, host),
        }
        self.handlers: dict[str, Handler] = {kind: Faulty(kind, handler, doomed) for kind, handler in made.items()}

    async def doorway(self, held: str) -> Doorway | None:
        """Nobody in this world connects to anything."""

    async def network_news(self, held: str) -> News | None:
        """In this world whoever changes a network says so."""

    async def network_found(self, known: Network) -> Network:
        """Nobody looks by himself."""
        return known

    async def settle_in(self) -> None:
        """The limits are made those of the record."""
        await self.limit()

    async def limit(self) -> list[str]:
        """The cgroup gets the limits that the pod has now."""
        self.doomed.boundary("effect")
        await trio.lowlevel.checkpoint()
        self.doomed.boundary("effect")
        self.host.limit(self.uid, self.limits())
        return []

    async def vm_ended(self, identity: Identity) -> Cause:
        """Wait for QEMU's end. Its starter knows the wait status; others what the console and the monitor told."""
        known = self.host.alive(identity)
        ended = await self.host.wait_exit(identity)
        mine = self.host.past.get(identity)
        inside = self.host.guests.get(self.uid)
        kind, message = judge(
            ended if mine is not None and mine.parent is self.doomed else UNKNOWN,
            inside.shutdown if inside is not None and known else None,
            panicked=inside.panicked if inside is not None else "",
            heard=known,
            told=oom.Testimony(by_oom="simulated") if self.uid in self.host.oom_killed else oom.NOTHING,
        )
        return Cause(kind, message, {})

    async def share_ended(self, identity: Identity) -> Cause:
        """Wait for virtiofsd's end."""
        await self.host.wait_exit(identity)
        return Cause("virtiofsd_lost", "virtiofsd ended", {})
