# SPDX-License-Identifier: Apache-2.0
"""The effects `network.attach`, `network.plug` and `network.detach`.

The namespace is entered by threads that end with it; QEMU and we stay where we are. pyroute2 takes 0.17 s to import, so
it is imported only for a namespace that somebody gave us, and while the guest boots.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from kata_fsm import errors
from kata_fsm.effects import netns
from kata_fsm.effects.bounded import Bounded, Enter
from kata_fsm.effects.hypervisor import nic
from kata_fsm.effects.hypervisor.hotplug import has_device
from kata_fsm.effects.hypervisor.settings import HypervisorSettings
from kata_fsm.effects.network import namespace, told
from kata_fsm.effects.network.model import Interface, Network, from_facts
from kata_fsm.effects.protocols import Intent, Observed
from kata_fsm.world import Paths

if TYPE_CHECKING:
    from kata_fsm.effects.agent.link import Link
    from kata_fsm.effects.hypervisor.qmp import Monitor

NONE = "none"
T = TypeVar("T")

LOOKING = "looking into the network namespace"
PARTING = "parting what was joined to the network namespace"


def _made_anew(path: str) -> None:
    netns.remove(path)
    netns.make(path)


class _Handler:
    """What they share. `netns` of the intent's params is the path that the spec names, or empty."""

    def __init__(self, paths: Paths, settings: HypervisorSettings) -> None:
        self.paths = paths
        self.settings = settings

    def _given(self, intent: Intent) -> str:
        return str(intent.params.get("netns") or "")

    def _model(self, intent: Intent) -> str:
        return str(intent.params.get("model") or NONE)

    async def _inside(
        self, what: str, work: Callable[[Enter], T], *, late: Callable[[], object] | None = None, path: str = ""
    ) -> T:
        """Run `work`, which tells what it turns to, in the sandbox's namespace or the one at `path`. Raises EffectError.

        `what` and `late` are as in `Bounded`: the kernel answers nobody while something holds up its network's lock.
        """
        task = Bounded("netns", what)

        def blocking() -> T:
            task.enter(path or self.paths.netns)
            return netns.inside(path or self.paths.netns, lambda: work(task.enter))

        try:
            return await task.run(blocking, late=late)
        except OSError as error:
            raise errors.EffectError("netns", f"in the network namespace: {error.strerror or error}") from error

    async def _join(
        self, model: str, interfaces: Iterable[Interface], *, late: Callable[[], object] | None = None
    ) -> None:
        """Join these interfaces to the sandbox's namespace."""
        uid, settings = self.paths.uid, self.settings
        what = "joining interfaces of the network namespace"
        await self._inside(what, lambda enter: namespace.join(uid, model, interfaces, settings, enter), late=late)

    async def _leave(self, intent: Intent) -> dict[str, Any]:
        """Part what is joined, and let the namespace go. One of ours that never held anything just ends."""
        parted: list[str] = []
        joined = self._model(intent) != NONE and (self._given(intent) or intent.params.get("late"))
        if joined and os.path.lexists(self.paths.netns):
            try:
                right = netns.is_network_namespace(self.paths.netns)
            except OSError:
                right = False
            if right:
                parted = await self._inside(PARTING, lambda _: namespace.part(self.paths.uid))
        task = Bounded("netns", "unmounting the hold of the network namespace")
        removed = await task.run(lambda: netns.remove(self.paths.netns))
        return {"removed": removed, **({"parted": parted} if parted else {})}


class NetworkAttach(_Handler):
    """`network.attach`. Params: {"netns": path that the spec names, or "", "model": `none`, `tcfilter` or `macvtap`}.

    Result: {"netns": the path by which we hold it, "created": bool, "model": str}, and with the model `none` {"unserved":
    [interfaces up in a given namespace, which the guest will not have], "warning": str, only with such}, with another
    {"interfaces", "routes", "neighbours"} as in `model.Network`, each interface with its slot, and "warning" if something of
    the namespace is not carried to the guest. Phases of failure: netns, scan, tap, join.
    """

    async def perform(self, intent: Intent) -> dict[str, Any]:
        """Check the given namespace or make one; join what it holds."""
        given, model = self._given(intent), self._model(intent)
        if not given:
            return self._result(await self._make(), True, model, Network(), [])
        task = Bounded("netns", f"looking at the network namespace `{given}`")
        await task.run(lambda: netns.check_given(given))
        if model == NONE:
            return self._result(given, False, model, Network(), await self._unserved(given))
        if netns.is_own(given):  # its interfaces are everybody's; Kata refuses it in the same words
            message = f"`{given}` is the host's network namespace: host networking requested, not supported by runtime"
            raise errors.EffectError("netns", message)
        await self._hold(given)
        uid, settings = self.paths.uid, self.settings
        network = await self._inside(LOOKING, lambda _: namespace.look(uid, settings, Network()))
        await self._join(model, network.interfaces, late=lambda: self._part_late(given))
        return await self._with_warning(self._result(self.paths.netns, False, model, network, []))

    def _part_late(self, given: str) -> None:
        """What is joined after it was given up is parted, wherever the namespace is held by then."""
        for path in (self.paths.netns, given):
            try:
                netns.inside(path, lambda: namespace.part(self.paths.uid))
                return
            except (OSError, errors.EffectError):
                continue

    async def _with_warning(self, result: dict[str, Any]) -> dict[str, Any]:
        uncarried = await self._inside(LOOKING, lambda _: namespace.uncarried())
        return {**result, "warning": "the guest will not have " + ", ".join(uncarried)} if uncarried else result

    async def _make(self) -> str:
        path = self.paths.netns
        task = Bounded("netns", "making a network namespace")
        try:
            await task.run(lambda: _made_anew(path), late=lambda: netns.remove(path))
        except OSError as error:
            raise errors.EffectError("netns", f"cannot make a network namespace: {error.strerror}") from error
        return path

    async def _hold(self, given: str) -> None:
        try:
            task = Bounded("netns", f"holding the network namespace `{given}`")
            await task.run(lambda: netns.pin(given, self.paths.netns), late=lambda: netns.remove(self.paths.netns))
        except OSError as error:
            message = f"the network namespace `{given}` cannot be held: {error.strerror}"
            raise errors.EffectError("netns", message) from error

    async def _unserved(self, given: str) -> list[str]:
        return await self._inside(LOOKING, lambda _: namespace.names_up(), path=given)

    @staticmethod
    def _result(path: str, created: bool, model: str, network: Network, unserved: list[str]) -> dict[str, Any]:
        result: dict[str, Any] = {"netns": path, "created": created, "model": model}
        if model != NONE:
            return {**result, **network.to_facts()}
        result["unserved"] = unserved
        if unserved:
            names = ", ".join(f"`{name}`" for name in unserved)
            result["warning"] = f"the network model is `none`: the guest will not have {names} of `{path}`"
        return result

    async def probe(self, intent: Intent) -> Observed:
        """Done when the namespace is there and nothing of it has still to be joined."""
        given, model = self._given(intent), self._model(intent)
        held = not given or model != NONE
        path = self.paths.netns if held else given
        try:
            task = Bounded("netns", f"looking at the network namespace `{path}`")
            if not await task.run(lambda: netns.is_network_namespace(path)):
                return Observed(False)
            if not given:
                return Observed(True, self._result(path, True, model, Network(), []))
            if not held:
                return Observed(True, self._result(path, False, model, Network(), await self._unserved(path)))
            uid, settings = self.paths.uid, self.settings
            network = await self._inside(LOOKING, lambda _: namespace.joined(uid, settings))
        except (OSError, errors.EffectError):
            return Observed(False)
        if network is None:
            return Observed(False)
        return Observed(True, await self._with_warning(self._result(path, False, model, network, [])))

    async def undo(self, intent: Intent) -> dict[str, Any]:
        """Part what was joined, and remove the namespace if we made it."""
        return await self._leave(intent)


class NetworkDetach(_Handler):
    """`network.detach`: parts every tap from the namespace, and removes it if we made it.

    Params: those of `network.attach`, and "late" (true) when a namespace of ours may hold something by now.

    Result: {"removed": bool, "parted": [names of taps], only with such}. A namespace that vanished took its taps along.
    """

    async def perform(self, intent: Intent) -> dict[str, Any]:
        """Part, unmount and remove."""
        return await self._leave(intent)

    async def probe(self, intent: Intent) -> Observed:
        """Done when we hold no namespace: the taps go before it does."""
        await trio.lowlevel.checkpoint()
        return Observed(not os.path.lexists(self.paths.netns))

    async def undo(self, intent: Intent) -> dict[str, Any]:
        """Nothing to take back: doing it again is always right."""
        return await self._leave(intent)


class Plugger(_Handler):
    """Plugs NICs and tells the guest of them: what `network.plug` and `network.change` have in common."""

    def __init__(self, paths: Paths, settings: HypervisorSettings, monitor: Monitor, link: Link) -> None:
        super().__init__(paths, settings)
        self.monitor = monitor
        self.link = link

    async def plug(self, model: str, interface: Interface) -> bool:
        """Give the guest the NIC of a joined interface; False if it had it. Raises EffectError."""
        if await has_device(self.monitor, nic.device(interface.slot)):
            return False
        await nic.clear(self.monitor, interface.slot, interface.queues)
        uid, settings = self.paths.uid, self.settings
        opened: list[tuple[list[int], list[int]]] = []

        def close() -> None:
            for fd in (fd for both in opened for fds in both for fd in fds):
                os.close(fd)

        await self._inside(
            f"opening the tap of `{interface.name}`",
            lambda _: opened.append(namespace.open_queues(uid, model, interface, settings)),
            late=close,
        )
        try:
            fds, vhost = opened[0]
            return await nic.plug(self.monitor, slot=interface.slot, mac=interface.mac, fds=fds, vhost=vhost)
        finally:
            close()


class NetworkPlug(Plugger):
    """`network.plug`: a NIC for each joined interface, once the agent answers, and what the guest has to know of them.

    Params: those of `network.attach` and its result's "interfaces", "routes", "neighbours". Result: {"nics": [ids]}.
    """

    async def perform(self, intent: Intent) -> dict[str, Any]:
        """Plug and tell; what is there already is fine."""
        network = from_facts(intent.params)
        if not network.interfaces:
            return {"nics": []}
        for interface in network.interfaces:
            await self.plug(self._model(intent), interface)
        await told.tell(self.link, network)
        return {"nics": [nic.device(interface.slot) for interface in network.interfaces]}

    async def probe(self, intent: Intent) -> Observed:
        """What the guest was told cannot be seen from outside, and telling it again does no harm."""
        await trio.lowlevel.checkpoint()
        return Observed(None)

    async def undo(self, intent: Intent) -> dict[str, Any]:
        """Unplug the NICs."""
        found = [interface.slot for interface in from_facts(intent.params).interfaces]
        return {"unplugged": [slot for slot in found if await nic.unplug(self.monitor, slot)]}
