# SPDX-License-Identifier: Apache-2.0
"""A shim in the simulated world: the host pid of one process, which outlives any supervisor.

It takes output (into `received`), hangs on to its supervisor, starts another when that is gone, and ends with the exit
code that it is told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from kata_fsm.effects.fake.clock import nap
from kata_fsm.effects.fake.faults import Doomed
from kata_fsm.effects.process import Exit, Identity
from kata_fsm.limits import SHIM_RECONNECT_S

if TYPE_CHECKING:
    from kata_fsm.supervisor.channel import Channel
    from kata_fsm.testing.sim.lines import Line
    from kata_fsm.testing.sim.universe import Universe

_NAMES = {1: "stdout", 2: "stderr"}
_RECONNECT_S = 0.5
_RESTART_EVERY_S = 5.0


class SimShim:
    """One shim. `code` is what it ended with, None while it runs or when it was killed."""

    def __init__(self, universe: Universe, stream: str, container: str, process: str) -> None:
        self._universe = universe
        self.stream = stream
        self.container = container
        self.process = process
        self.received = {1: b"", 2: b""}
        self.code: int | None = None
        self.told = False
        self.killed = False
        self._over = False
        self._uid = stream.rpartition("@")[2]
        self.identity: Identity = universe.host.spawn("shim", self._uid, None)

    @property
    def subject(self) -> str:
        """`container/process`."""
        return f"{self.container}/{self.process}"

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._universe.host.alive(self.identity)

    async def run(self, *, early: bool = False) -> None:
        """Until it is told its exit code, gives up, or is killed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._die_with_its_process, nursery.cancel_scope)
            self.code = await self._attend(early)
            self.told, self._over = self.code is not None, True
            self._universe.host.end(self.identity, Exit(code=255 if self.code is None else self.code))
            nursery.cancel_scope.cancel()

    async def _die_with_its_process(self, scope: trio.CancelScope) -> None:
        await self._universe.host.wait_exit(self.identity)
        self.killed = not self._over
        scope.cancel()

    async def _attend(self, early: bool) -> int | None:
        gone_since, restart_at = trio.current_time(), 0.0
        served_once = False
        while trio.current_time() - gone_since < SHIM_RECONNECT_S:
            life = self._universe.lives.get(self.stream)
            line = None if life is None else life.connect()
            if self._universe.calm:
                gone_since = trio.current_time()  # it is kept from starting one
            if line is None:
                if life is None and not self._universe.calm and trio.current_time() >= restart_at:
                    if not served_once and not self._universe.host.ledger.has("directory", self._uid):
                        return None  # the sandbox was taken down before we came to be
                    restart_at = trio.current_time() + _RESTART_EVERY_S
                    self._universe.supervise(self.stream)
                await nap(_RECONNECT_S)
                continue
            try:
                code, served = await self._serve(line, early)
            finally:
                line.close()
            if code is not None:
                return code
            if served:
                served_once, gone_since = True, trio.current_time()
            await nap(_RECONNECT_S)
        return None

    async def _serve(self, line: Line, early: bool) -> tuple[int | None, bool]:
        hello: dict[str, Any] = {
            "op": "attach",
            "container": self.container,
            "process": self.process,
            "pid": self.identity.pid,
            "start_ticks": self.identity.start_ticks,
            "delivered": {_NAMES[number]: len(data) for number, data in self.received.items()},
            "early": early,
        }
        served = False
        await line.send(hello)
        while (message := await line.receive()) is not None:
            if "exit" in message:
                return int(message["exit"]), True
            if "error" in message:
                return 255, False
            served = True
        return None, served


class _Pipe:
    """One output, from a supervisor into a shim."""

    def __init__(self, shim: SimShim, number: int, doomed: Doomed) -> None:
        self._shim = shim
        self._number = number
        self._doomed = doomed
        self._closed = False

    async def send_all(self, data: bytes) -> None:
        self._doomed.check()
        if self._closed:
            raise trio.ClosedResourceError
        if not self._shim.alive:
            raise trio.BrokenResourceError
        self._shim.received[self._number] += data
        self._doomed.faults.changes += 1
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._closed = True
        await trio.lowlevel.checkpoint()


class ShimEnd:
    """What a supervisor has of an attached shim: in the place of `kata_fsm.supervisor.session.Shim`."""

    def __init__(self, channel: Channel, hello: dict[str, Any], shim: SimShim, doomed: Doomed) -> None:
        self.channel = channel
        self.tty = False
        self.stdin = None
        self.consumed = 0
        self.delivered = {number: int(hello["delivered"][name]) for number, name in _NAMES.items()}
        self.outputs = {number: _Pipe(shim, number, doomed) for number in _NAMES}

    async def aclose(self) -> None:
        """Hang up."""
        for pipe in self.outputs.values():
            await pipe.aclose()
        self.channel.close()
