# SPDX-License-Identifier: Apache-2.0
"""One world in which a program is performed: a host, a journal, supervisors that come and go, shims and clients."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import trio

from journal import Journal
from kata_fsm.effects.fake.clock import FakeWorld
from kata_fsm.effects.fake.dice import Dice
from kata_fsm.effects.fake.faults import AwaitDeaths, Faults
from kata_fsm.effects.fake.guest import FakeGuest
from kata_fsm.effects.fake.host import FakeHost
from kata_fsm.effects.process import Identity
from kata_fsm.limits import VERB_REPLY_S
from kata_fsm.machines import Cause, Pod
from kata_fsm.projections import container_key
from kata_fsm.testing.sim.causes import HOST, Deeds
from kata_fsm.testing.sim.lives import Life, Rewire
from kata_fsm.testing.sim.shims import SimShim
from kata_fsm.testing.sim.truth import Truth

Reply = dict[str, Any]


class _InStream(msgspec.Struct):
    """What of a container's projection tells where it is."""

    stream: str


_IN_STREAM = msgspec.json.Decoder(_InStream)


class Broken(AssertionError):
    """An invariant does not hold."""


class Universe:
    """Everything of one program. `root` is the namespace of its ids in the journal, which many programs share."""

    def __init__(
        self,
        journal: Journal,
        seed: int | str,
        nursery: trio.Nursery,
        *,
        seen: Counter[str] | None = None,
        rewire: Rewire = lambda wiring: None,
        distinct_awaits: bool = False,
    ) -> None:
        self.dice = Dice(seed)
        self.journal = journal
        self.nursery = nursery
        self.faults = Faults(seen)
        self.seen = self.faults.seen
        self.world = FakeWorld(self.dice)
        self.host = FakeHost(self.world, self.faults)
        self.rewire = rewire
        self.root = f"/sim/{seed}"
        self.lives: dict[str, Life] = {}
        self.streams: list[str] = []
        self.shims: list[SimShim] = []
        self.killed: set[str] = set()
        self.calm = False  # nobody starts a supervisor by himself
        self.wrong: list[str] = []
        self.deeds = Deeds(self.faults)
        self.truth = Truth(self)
        self.distinct_awaits = distinct_awaits
        self._instrument: AwaitDeaths | None = None
        self._dooms: dict[str, list[tuple[str, int]]] = {}

    # --- supervisors

    def supervise(self, stream: str) -> Life:
        """The supervisor of a stream, started if there is none."""
        life = self.lives.get(stream)
        if life is None:
            life = self.lives[stream] = Life(self, stream)
            if stream not in self.streams:
                self.streams.append(stream)
            self.seen["supervisor started"] += 1
            for boundary, count in self._dooms.pop(stream, []):
                life.doomed.doom(boundary, count)
            self.nursery.start_soon(life.run)
        return life

    async def supervised(self, stream: str) -> Life | None:
        """As `supervise`, waiting until it serves; None when it ended instead."""
        life = self.supervise(stream)
        await life.ready.wait()
        return life if life.listening else None

    def doom(self, stream: str, boundary: str, count: int) -> None:
        """The supervisor of `stream`, or the next one, dies at that boundary."""
        if boundary == "await" and self._instrument is None:
            self._instrument = AwaitDeaths(distinct=self.distinct_awaits)
            trio.lowlevel.add_instrument(self._instrument)
        life = self.lives.get(stream)
        if life is None:
            self._dooms.setdefault(stream, []).append((boundary, count))
        else:
            life.doomed.doom(boundary, count)

    def supervisor_failed(self, life: Life, error: BaseException) -> None:
        """A supervisor ended by an error of its own."""
        import traceback

        self.seen["supervisor failed"] += 1
        trace = "".join(traceback.format_exception(error)[-3:])
        self.wrong.append(f"the supervisor of `{life.stream}` failed: {type(error).__name__}: {error}\n{trace}")

    # --- shims

    def start_shim(self, stream: str, container: str, process: str, *, early: bool = False) -> SimShim:
        """A client starts a shim."""
        shim = SimShim(self, stream, container, process)
        self.shims.append(shim)

        async def run() -> None:
            await shim.run(early=early)

        self.nursery.start_soon(run)
        return shim

    def shim_of(self, hello: Reply) -> SimShim:
        """Who says this hello."""
        return next(s for s in reversed(self.shims) if s.identity.pid == hello["pid"] and s.alive)

    # --- clients

    async def ask(self, life: Life | None, request: Reply, *, patience_s: float = VERB_REPLY_S) -> Reply | None:
        """Ask a supervisor for something; its answer, or None when it is gone or the caller lost patience."""
        line = None if life is None else life.connect()
        if life is None or line is None:
            return None
        try:
            with trio.move_on_after(patience_s):
                await line.send(request)
                while (message := await line.receive()) is not None:
                    if message.get("need") != "shim":
                        return message
                    self.start_shim(life.stream, message["container"], message["process"])
            return None
        finally:
            line.close()

    def stream_of(self, container_id: str) -> str | None:
        """The stream that holds a container by that id, as verbs find it."""
        value = self.journal.projection(container_key(self.root, container_id))
        return None if value is None else _IN_STREAM.decode(value).stream

    def guest_of(self, stream: str) -> FakeGuest | None:
        """The guest of a stream's sandbox, dead or alive."""
        return self.host.guests.get(stream.rpartition("@")[2])

    def ids(self) -> list[str]:
        """The ids in use."""
        from kata_fsm.projections import root_digest

        prefix = f"c/{root_digest(self.root)}/".encode()
        return [key[len(prefix) :].decode() for key, _ in self.journal.projections(prefix)]

    def post_mortem(self, pod: Pod, identity: Identity | None) -> Cause:
        """What is left of a VMM that nobody watched: its console, where the guest says its last, and the kernel's log."""
        uid = str(pod.sandbox.facts.get("uid", ""))
        guest, evidence = self.host.guests.get(uid), {"wait_status": "unknown"}
        if guest is not None and guest.panicked:
            return Cause("guest_panic", guest.panicked, evidence)
        if guest is not None and guest.shutdown is not None:
            return Cause("guest_shutdown", "the guest switched itself off", evidence)
        if uid in self.host.oom_killed:
            return Cause("host_oom", "the kernel says so", evidence)
        return Cause("vm_killed", "the VMM is gone", evidence)

    def reboot(self) -> None:
        """The host is started anew."""
        for life in list(self.lives.values()):
            life.die()
        self.deeds.note(HOST, "rebooted")
        self.host.reboot()
        self.seen["host rebooted"] += 1

    def orphaned(self) -> frozenset[str]:
        """The uids of sandboxes whose supervisor was killed at some time: it may have been while it tidied up."""
        return frozenset(self.killed)
