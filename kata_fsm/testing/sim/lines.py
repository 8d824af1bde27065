# SPDX-License-Identifier: Apache-2.0
"""A connection to a supervisor's socket, in memory: both ends have the methods of `kata_fsm.supervisor.channel.Channel`."""

from __future__ import annotations

from collections import deque
from typing import Any

import trio

from kata_fsm.control import encode
from kata_fsm.effects.fake.faults import Doomed


class Line:
    """One end. `doomed` is the process that holds it, if that may be killed."""

    def __init__(self, doomed: Doomed | None = None) -> None:
        self._doomed = doomed
        self._inbox: deque[dict[str, Any]] = deque()
        self._woken = trio.Event()
        self.gone = False
        self.peer: Line = self

    @classmethod
    def pair(cls, doomed: Doomed) -> tuple[Line, Line]:
        """(the supervisor's end, the other one)."""
        server, client = cls(doomed), cls()
        server.peer, client.peer = client, server
        return server, client

    def close(self) -> None:
        """Hang up."""
        for end in (self, self.peer):
            end.gone = True
            end._wake()

    def _wake(self) -> None:
        self._woken.set()
        self._woken = trio.Event()

    def take_fds(self) -> list[int]:
        """None: what a shim hands over is in the simulated world, too."""
        return []

    async def send(self, message: dict[str, Any]) -> bool:
        """Send a message; whether somebody was there to get it."""
        if self._doomed is not None:
            self._doomed.check()
        encode(message)  # as strict as the real one
        await trio.lowlevel.checkpoint()
        if self.gone:
            return False
        self.peer._inbox.append(message)
        self.peer._wake()
        return True

    async def receive(self) -> dict[str, Any] | None:
        """The next message; None when the other end hung up."""
        await trio.lowlevel.checkpoint()
        while not self._inbox:
            if self.gone:
                return None
            await self._woken.wait()
        return self._inbox.popleft()
