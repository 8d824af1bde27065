# SPDX-License-Identifier: Apache-2.0
"""A world in which effects are scripted: real runtime, real journal, handlers that keep a list of what there is.

A `Stage` remembers what was brought about (`there`) and in which order effects were begun (`begun`). Each effect succeeds
at once unless the test holds it (`hold`), makes it fail (`fail`) or lets it raise (`raises`). It outlives any one
runtime, as the world outlives a supervisor.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio

from journal import Journal, Record
from kata_fsm.effects.process import identify
from kata_fsm.effects.protocols import Intent, Observed
from kata_fsm.errors import EffectError
from kata_fsm.machines import Pod
from kata_fsm.machines.intents import PARAMS
from kata_fsm.machines.pod import INIT, summary
from kata_fsm.machines.vocab import CreateSandbox
from kata_fsm.runtime import Runtime
from kata_fsm.world import World

LIMIT_S = 30.0  # for anything that is waited for; reached only when a test fails
UID = "0123456789ab"
BOX = "box"
STREAM = f"{BOX}@{UID}"
SUBJECT = f"{BOX}/{INIT}"
ROOT = "/run/x"
Key = tuple[str, str]


def create_box(name: str = BOX, uid: str = UID, **container: Any) -> CreateSandbox:
    """The command that makes a sandbox."""
    config = {"bundle": "/bundles/box", "rootfs": "/bundles/box/rootfs", "terminal": False, **container}
    return CreateSandbox(name, uid, {"root": ROOT, "hypervisor": {}, "hostname": name}, config)


def ourselves() -> dict[str, object]:
    """This very process, standing in for daemons and shims that must be seen to be alive."""
    identity = identify(os.getpid())
    assert identity is not None
    return identity.to_dict()


class Clocks(World):
    """Clocks that a test may push forward."""

    def __init__(self) -> None:
        self.ahead_ns = 0
        self.boot = super().boot_id()

    def mono_ns(self) -> int:
        return super().mono_ns() + self.ahead_ns

    def boot_id(self) -> str:
        return self.boot


class Stage:
    """The scripted world."""

    def __init__(self) -> None:
        self.there: set[Key] = set()
        self.begun: list[Key] = []
        self.cancelled: list[Key] = []
        self.probed: list[Key] = []
        self.fail: dict[str, EffectError] = {}
        self.raises: dict[str, BaseException] = {}
        self.results: dict[str, Any] = {
            "hypervisor.launch": {**ourselves(), "accel": "tcg"},
            "share.prepare": ourselves(),
            "network.attach": {"netns": "/run/x/netns"},
            "agent.connect": {"agent_version": "0.1.0"},
        }
        self._held: dict[str, trio.Event] = {}
        self.reached: dict[str, trio.Event] = {}
        self.before: Callable[[Intent], None] = lambda intent: None
        self.handlers = {kind: Scripted(self, kind) for kind in PARAMS}

    def hold(self, kind: str) -> trio.Event:
        """Effects of `kind` wait until the answered event is set; `reached[kind]` is set when one waits."""
        self._held[kind] = trio.Event()
        self.reached[kind] = trio.Event()
        return self._held[kind]

    def release(self) -> None:
        """Nothing is held any more."""
        for event in self._held.values():
            event.set()
        self._held.clear()

    async def perform(self, kind: str, intent: Intent) -> dict[str, Any]:
        self.begun.append(intent.key)
        self.before(intent)
        try:
            if kind in self._held:
                self.reached[kind].set()
                await self._held[kind].wait()
        except trio.Cancelled:
            self.cancelled.append(intent.key)
            raise
        if kind in self.raises:
            raise self.raises[kind]
        if kind in self.fail:
            raise self.fail[kind]
        self.there.add(intent.key)
        await trio.lowlevel.checkpoint()
        return self.results.get(kind, {})


class Scripted:
    """The handler of one kind of effect on a stage."""

    def __init__(self, stage: Stage, kind: str) -> None:
        self.stage = stage
        self.kind = kind

    async def perform(self, intent: Intent) -> dict[str, Any]:
        assert intent.kind == self.kind
        return await self.stage.perform(self.kind, intent)

    async def probe(self, intent: Intent) -> Observed:
        await trio.lowlevel.checkpoint()
        self.stage.probed.append(intent.key)
        return Observed(intent.key in self.stage.there, self.stage.results.get(self.kind, {}))

    async def undo(self, intent: Intent) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        self.stage.there.discard(intent.key)
        return {}


@contextmanager
def opened(path: Path) -> Iterator[Journal]:
    """The journal in `path`. Not synced: no power is cut here."""
    with Journal.open(path, sync=False, map_bytes=1 << 22) as journal:
        yield journal


@asynccontextmanager
async def running(
    journal: Journal, stage: Stage, *, stream: str = STREAM, world: World | None = None
) -> AsyncIterator[Runtime]:
    """A runtime, with everything that it has begun cut off at the end, as its process's death would."""
    with trio.move_on_after(LIMIT_S) as limit:
        async with trio.open_nursery() as nursery:
            runtime = Runtime(journal, stream, world or Clocks(), stage.handlers, nursery)
            yield runtime
            nursery.cancel_scope.cancel()
    assert not limit.cancelled_caught, f"not within {LIMIT_S:g} s; the pod is {summary(runtime.pod)}"


def records(journal: Journal, stream: str = STREAM) -> list[Record]:
    """Everything in the stream."""
    return list(journal.read_stream(stream))


def of_kind(journal: Journal, kind: str, type_: str | None = None) -> list[dict[str, Any]]:
    """Bodies of the stream's records of one kind (and type)."""
    return [record.data for record in records(journal) if record.kind == kind and type_ in (None, record.type)]


def state(machine: str, wanted: str, subject: str = "") -> Callable[[Pod], bool]:
    """The condition that a machine is in a state."""
    return lambda pod: pod.unit(machine, subject).state == wanted
