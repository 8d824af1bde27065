# SPDX-License-Identifier: Apache-2.0
"""One supervisor's life in the simulated world: `kata_fsm.supervisor.main` without its process, lock and socket.

Runtime, recovery, watcher, sessions, server and verbs are the real ones. What they stand on is simulated: see
`kata_fsm.effects.fake`. When it dies, nothing of it touches the world any more, and every line to it hangs up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import trio

from journal import Journal, JournalBusy, JournalDiskFull, Record
from kata_fsm.effects.agent.link import Link
from kata_fsm.effects.fake.faults import CURRENT, Died, Doomed
from kata_fsm.effects.fake.link import FakeLink
from kata_fsm.effects.fake.wiring import FakeWiring
from kata_fsm.machines import outstanding, sandbox
from kata_fsm.recovery import note_failure
from kata_fsm.runtime import Runtime
from kata_fsm.supervisor.channel import Channel
from kata_fsm.supervisor.kept import Kept
from kata_fsm.supervisor.limiting import disks_of, limits_of
from kata_fsm.supervisor.main import drain, take_over, until_answered, until_over, until_shims_came
from kata_fsm.supervisor.server import Server
from kata_fsm.supervisor.session import Shim
from kata_fsm.supervisor.watch import Watcher
from kata_fsm.supervisor.wiring import Wiring
from kata_fsm.testing.sim.lines import Line
from kata_fsm.testing.sim.shims import ShimEnd
from kata_fsm.world import Paths

if TYPE_CHECKING:
    from kata_fsm.effects.fake.host import FakeHost
    from kata_fsm.testing.sim.universe import Universe

Rewire = Callable[[FakeWiring], None]
"""What a test does to the handlers of every supervisor: its own in the place of one, or a planted bug."""


class JournalDoor:
    """The journal as one doomed process sees it: it may die before or after an append, and find it busy or full."""

    def __init__(self, journal: Journal, doomed: Doomed) -> None:
        self._journal = journal
        self._doomed = doomed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    def append(self, stream: str, *args: Any, **kwargs: Any) -> list[Record]:
        """As `Journal.append`."""
        self._doomed.boundary("append")
        fault = self._doomed.faults.of_append()
        if fault == "busy":
            raise JournalBusy("journal", 10.0, None)
        if fault == "full":
            raise JournalDiskFull("the disk is full")
        stored = self._journal.append(stream, *args, **kwargs)
        self._doomed.faults.changes += 1
        self._doomed.boundary("append")
        return stored


class KeptInMemory:
    """In the place of `kata_fsm.supervisor.kept.Kept`."""

    def __init__(self, host: FakeHost, doomed: Doomed, path: str, value: dict[str, Any]) -> None:
        self._host = host
        self._doomed = doomed
        self.path = path
        doomed.check()
        host.keep_file(path, value)

    def drop(self) -> None:
        """Forget it."""
        self._doomed.check()
        self._host.drop_file(self.path)


class SimServer(Server):
    """The real server, over simulated things."""

    life: Life

    def wire(self, config: dict[str, Any]) -> None:
        """As the real one."""
        life = self.life
        wiring = FakeWiring(
            life.universe.host,
            life.uid,
            life.doomed,
            life.link,
            limits=lambda: limits_of(self.runtime.pod),
            asked=lambda: disks_of(self.runtime.pod),
        )
        life.universe.rewire(wiring)
        self.watcher.wiring = cast(Wiring, wiring)
        self.runtime.handlers = wiring.handlers

    def keep(self, name: str, value: dict[str, Any]) -> Kept:
        """As the real one."""
        life = self.life
        path = f"{life.uid}/{name}.{life.universe.world.random_bytes(4).hex()}"
        return cast(Kept, KeptInMemory(life.universe.host, life.doomed, path, value))

    def take_shim(self, channel: Channel, hello: dict[str, Any], fds: list[int]) -> Shim:
        """As the real one."""
        return cast(Shim, ShimEnd(channel, hello, self.life.universe.shim_of(hello), self.life.doomed))


class Life:
    """One supervisor. `ready` is set when it serves, `over` when nothing of it is left."""

    def __init__(self, universe: Universe, stream: str) -> None:
        self.universe = universe
        self.stream = stream
        self.uid = stream.rpartition("@")[2]
        self.doomed = Doomed(universe.faults)
        self.ready = trio.Event()
        self.over = trio.Event()
        self.listening = False
        self.runtime: Runtime | None = None
        self._lines: list[Line] = []
        self._nursery: trio.Nursery | None = None
        self._server: SimServer | None = None

    async def run(self) -> None:
        """From its start to its end, whichever that is."""
        CURRENT.set(self.doomed)
        try:
            with self.doomed.scope:
                await self._serve()
        except* Died:
            pass
        except* Exception as group:
            self._failed(group)
        finally:
            self.listening = False
            self.ready.set()
            for line in self._lines:
                line.close()
            if self.universe.lives.get(self.stream) is self:
                del self.universe.lives[self.stream]
            if self.doomed.dead:
                self.universe.killed.add(self.uid)
                self.universe.deeds.note(self.uid, "supervisor died")
            self.over.set()

    def _failed(self, error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if not self.doomed.dead:
            note_failure(self.universe.journal, self.stream, self.universe.world, error)
            self.universe.supervisor_failed(self, error)

    @property
    def at_rest(self) -> bool:
        """It serves, and neither an effect nor an update is under way."""
        runtime, server = self.runtime, self._server
        if runtime is None or server is None or not self.ready.is_set():
            return False
        return not outstanding(runtime.pod) and not server.updates.locked()

    def die(self) -> None:
        """SIGKILL."""
        self.doomed.die()

    def connect(self) -> Line | None:
        """A client's end of a new connection; None when nobody listens."""
        if not self.listening or self.doomed.dead or self._nursery is None:
            return None
        server, client = Line.pair(self.doomed)
        self._lines.append(server)
        self._nursery.start_soon(self._attend, server)
        return client

    async def _attend(self, line: Line) -> None:
        CURRENT.set(self.doomed)
        assert self._server is not None, "nobody connects before it listens"
        try:
            await self._server.attend(cast(Channel, line))
        finally:
            line.close()

    async def _serve(self) -> None:
        host, doomed = self.universe.host, self.doomed
        doomed.boundary("effect")
        if not host.ledger.has("directory", self.uid):
            host.take("directory", self.uid)

        async def at_once(work: Callable[[], None]) -> None:
            doomed.check()
            await trio.lowlevel.checkpoint()
            work()

        async with trio.open_nursery() as nursery:
            self.link = FakeLink(host, self.uid, doomed)
            journal = cast(Journal, JournalDoor(self.universe.journal, doomed))
            world = self.universe.world
            runtime = self.runtime = Runtime(journal, self.stream, world, {}, nursery, blocking=at_once)
            watcher = Watcher(runtime, cast(Link, self.link), nursery, processes=host)
            cleaned = trio.Event()
            server = SimServer(runtime, cast(Link, self.link), watcher, Paths(self.uid), cleaned, processes=host)
            server.life = self
            runtime.on_step = watcher.reconcile
            self._server, self._nursery, self.listening = server, nursery, True
            await take_over(runtime, server, watcher, host, self.universe.post_mortem)
            self.ready.set()
            await until_over(runtime, server)
            await until_shims_came(runtime, server, host)
            self.listening = False
            await until_answered(runtime, server)
            if runtime.pod.sandbox.state in (sandbox.DELETED, sandbox.ABSENT):
                self._clean()
            cleaned.set()
            await drain(server, host)
            nursery.cancel_scope.cancel()

    def _clean(self) -> None:
        self.doomed.boundary("effect")
        host = self.universe.host
        for path in host.ledger.names("file", f"{self.uid}/"):
            host.drop_file(path)
        host.give_back("directory", self.uid)
