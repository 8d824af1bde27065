# SPDX-License-Identifier: Apache-2.0
"""Which handler performs which kind of effect, with a real host and a real guest."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from kata_fsm.effects import disks, hooks, share, storage
from kata_fsm.effects.agent import handlers as guest
from kata_fsm.effects.agent.link import Link
from kata_fsm.effects.hypervisor import handler as hypervisor
from kata_fsm.effects.hypervisor.qmp import Monitor
from kata_fsm.effects.hypervisor.settings import from_dict
from kata_fsm.effects.network import handlers as network
from kata_fsm.effects.network.change import NetworkChange
from kata_fsm.effects.placement import Placement
from kata_fsm.effects.protocols import Handler
from kata_fsm.errors import EffectError
from kata_fsm.limits import AGENT_CALL_TIMEOUT_S, BOOT_TIMEOUT_S
from kata_fsm.machines.vocab import Cause
from kata_fsm.oci.hosting import Limits
from kata_fsm.world import Paths, World

if TYPE_CHECKING:
    from kata_fsm.effects.localhost.doorway import Doorway
    from kata_fsm.effects.network.model import Network
    from kata_fsm.effects.network.news import News


class Wiring:
    """The handlers of one sandbox, and the two watches that know what an end leaves behind.

    `config` is what the sandbox was created with: it is recorded, so every supervisor of a sandbox uses the same. `limits`
    answers those that the pod has now, `asked` the disks that its living containers ask for.
    """

    def __init__(
        self,
        paths: Paths,
        world: World,
        link: Link,
        config: dict[str, Any],
        limits: Callable[[], Limits],
        asked: disks.Asked,
    ) -> None:
        settings = from_dict(config.get("hypervisor") or {})
        boot_timeout_s = float(config.get("boot_timeout_s") or BOOT_TIMEOUT_S)
        create_timeout_s = float(config.get("create_timeout_s") or AGENT_CALL_TIMEOUT_S)
        self.netns = paths.netns
        self.monitor = Monitor(paths.qmp_sock)
        self.place = Placement(paths.uid, config, limits)
        self.launch = hypervisor.HypervisorLaunch(paths, settings, self.monitor, self.place)
        self.change = NetworkChange(paths, settings, self.monitor, link)
        self.prepare = share.SharePrepare(paths, settings, self.place)
        self.disks = disks.Disks(paths, settings, self.monitor, asked)
        create = disks.Plugging(guest.ContainerCreate(link, world, create_timeout_s), self.disks)
        self.handlers: dict[str, Handler] = {
            "hypervisor.launch": self.launch,
            "hypervisor.stop": hypervisor.HypervisorStop(paths, settings, self.monitor),
            "network.attach": network.NetworkAttach(paths, settings),
            "network.plug": network.NetworkPlug(paths, settings, self.monitor, link),
            "network.change": self.change,
            "network.detach": network.NetworkDetach(paths, settings),
            "share.prepare": self.prepare,
            "share.plug": share.SharePlug(paths, settings, self.monitor),
            "share.release": share.ShareRelease(paths, settings),
            "agent.connect": guest.AgentConnect(link, world, boot_timeout_s),
            "agent.configure": guest.AgentConfigure(link, world, config.get("kernel_modules") or ()),
            "agent.disconnect": guest.AgentDisconnect(link, world),
            "container.prepare": storage.ContainerPrepare(paths, self.place),
            "container.create": hooks.Before(create, paths),
            "container.start": hooks.After(guest.ContainerStart(link, world), "poststart"),
            "container.pause": guest.ContainerPause(link, world),
            "container.resume": guest.ContainerResume(link, world),
            "container.kill": guest.ContainerKill(link, world),
            "container.remove": guest.ContainerRemove(link, world),
            "container.unstage": disks.Unplugging(storage.ContainerUnstage(paths, self.place), self.disks),
            "container.discard": hooks.After(storage.ContainerDiscard(paths), "poststop"),
            "process.exec": guest.ProcessExec(link, world),
        }

    async def doorway(self, held: str) -> Doorway | None:
        """Who stands for the guest at `localhost` of the namespace at `held`; None for one that is not ours to hold.
        Raises OSError."""
        from kata_fsm.effects.localhost.doorway import Doorway

        return await trio.to_thread.run_sync(Doorway, held) if held == self.netns else None

    async def network_news(self, held: str) -> News | None:
        """News of the network of the namespace at `held`, from now on. Raises OSError."""
        from kata_fsm.effects.network.news import News

        return await trio.to_thread.run_sync(News, held)

    async def network_found(self, known: Network) -> Network:
        """What the guest should have: `known`, where nothing has changed. Raises EffectError."""
        return await self.change.found(known)

    async def settle_in(self) -> None:
        """Go where a supervisor of this sandbox belongs, since whoever started this one was somewhere else, and see to it
        that the limits there are those of the record: the one before may have been about to change them."""
        await self.place.return_to()
        try:
            await self.place.limit()
        except EffectError as error:
            print(f"supervisor: {error.message}", file=sys.stderr, flush=True)

    async def limit(self) -> list[str]:
        """Let the sandbox's processes have the limits that the pod has now; a line for each that the host does not hold."""
        unheld: list[str] = (await self.place.limit())["unheld"]
        return unheld

    async def vm_ended(self, identity: Any) -> Cause:
        """Wait for the VMM's end; why it ended, with its last words."""
        return _cause(await self.launch.watch(identity))

    async def share_ended(self, identity: Any) -> Cause:
        """Wait for virtiofsd's end; why it ended, with its last words."""
        return _cause(await self.prepare.watch(identity))


def _cause(evidence: dict[str, Any]) -> Cause:
    rest = {key: value for key, value in evidence.items() if key not in ("cause", "message")}
    return Cause(str(evidence["cause"]), str(evidence["message"]), rest)
