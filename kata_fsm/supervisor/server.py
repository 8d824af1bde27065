# SPDX-License-Identifier: Apache-2.0
"""The supervisor's socket: verbs and shims come in here.

A verb's connection carries one request and its replies. A shim's stays open for the life of its process: it brings the
descriptors, forwards signals and window sizes, and is told the exit code.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import trio

from journal import JournalError
from kata_fsm.effects.process import identify
from kata_fsm.errors import CallerError, KataFsmError, WorldError
from kata_fsm.machines import process
from kata_fsm.machines.vocab import AttachShim, Facts
from kata_fsm.supervisor.channel import Channel
from kata_fsm.supervisor.session import Session, Shim, close_all
from kata_fsm.supervisor.verbs import VERBS

if TYPE_CHECKING:
    from kata_fsm.effects.agent.link import Link
    from kata_fsm.runtime import Runtime
    from kata_fsm.supervisor.watch import Watcher
    from kata_fsm.world import Paths


class Server:
    """Answers requests about one sandbox. `settle` is awaited before a reply, so that a reply is true when it is read."""

    def __init__(self, runtime: Runtime, link: Link, watcher: Watcher, paths: Paths, cleaned: trio.Event) -> None:
        self.runtime = runtime
        self.link = link
        self.watcher = watcher
        self.paths = paths
        self._cleaned = cleaned
        self.requests = 0  # being answered
        self.shims = 0  # attached and not yet told their exit code
        self.served = trio.Event()  # a first request has come

    def wire(self, config: dict[str, Any]) -> None:
        """Build the handlers for a sandbox that was created with `config`. Raises `UsageError` for wrong settings."""
        from kata_fsm.supervisor.wiring import Wiring
        from kata_fsm.world import WORLD

        wiring = Wiring(self.paths, WORLD, self.link, config)
        self.watcher.wiring = wiring
        self.runtime.handlers = wiring.handlers

    async def serve(self, listener: trio.socket.SocketType) -> None:
        """Accept for ever."""
        async with trio.open_nursery() as nursery:
            while True:
                client, _ = await listener.accept()
                nursery.start_soon(self._client, client)

    async def _client(self, client: trio.socket.SocketType) -> None:
        with Channel(client) as channel:
            request = await channel.receive()
            if request is None:
                return
            if request.get("op") == "attach":
                await self._shim(channel, request)
                return
            self.requests += 1
            self.served.set()
            try:
                await channel.send(await self._answer(channel, request))
            finally:
                self.requests -= 1

    async def _answer(self, channel: Channel, request: dict[str, Any]) -> Facts:
        verb = VERBS.get(str(request.get("op")))
        try:
            if verb is None:
                raise CallerError(f"there is no request `{request.get('op')}`")
            return await verb(self, channel, request)
        except KataFsmError as error:
            return {"error": error.to_wire()}
        except JournalError as error:
            return {"error": WorldError(error.message, hint=error.hint).to_wire()}
        except OSError as error:
            return {"error": WorldError(f"the host refused: {error}").to_wire()}
        finally:
            await self._tidied()

    async def _tidied(self) -> None:
        """When this request ended the sandbox, wait until the last traces are removed before saying so."""
        if self.runtime.pod.sandbox.state == "deleted":
            await self._cleaned.wait()

    # --- shims --------------------------------------------------------------------------------------------------------

    async def _shim(self, channel: Channel, hello: dict[str, Any]) -> None:
        subject = f"{hello.get('container')}/{hello.get('process')}"
        fds = channel.take_fds()
        unit = self.runtime.pod.processes.get(subject)
        if unit is not None and unit.state == process.CLOSED:
            close_all(fds)
            await channel.send({"exit": unit.facts.get("exit_code", 255)})
            return
        try:
            identity = identify(int(hello.get("pid") or 0))
            if identity is None or identity.start_ticks != hello.get("start_ticks"):
                raise CallerError(f"the shim `{hello.get('pid')}` is not the process it says it is")
            shim = Shim(channel, hello, fds)
        except (KataFsmError, OSError, ValueError) as error:
            close_all(fds)
            await channel.send({"error": CallerError(str(error)).to_wire()})
            return
        session = self.watcher.session(subject)
        self.shims += 1
        try:
            await session.attach(shim)
            await self.runtime.submit(AttachShim(subject, identity.to_dict()))
            await channel.send({"ok": True})
            await self._serve_shim(session, shim, hello)
        except KataFsmError as error:
            await channel.send({"error": error.to_wire()})
        finally:
            self.shims -= 1
            with trio.CancelScope(shield=True):
                await session.detach(shim)

    async def _serve_shim(self, session: Session, shim: Shim, hello: dict[str, Any]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_exit, session, nursery)
            size = hello.get("winsize")
            if isinstance(size, list) and len(size) == 2:
                nursery.start_soon(self._first_size, session, int(size[0]), int(size[1]))
            while (message := await shim.channel.receive()) is not None:
                with contextlib.suppress(TypeError, ValueError):
                    await self._forwarded(session, message)
            nursery.cancel_scope.cancel()

    async def _forwarded(self, session: Session, message: dict[str, Any]) -> None:
        match message.get("op"):
            case "signal":
                await session.signal(int(message["signal"]))
            case "winsize":
                await session.resize(int(message["rows"]), int(message["cols"]))

    async def _first_size(self, session: Session, rows: int, columns: int) -> None:
        running = (process.CREATED, process.RUNNING)
        pod = await self.runtime.until(
            lambda pod: pod.unit("process", session.subject).state in (*running, process.EXITED, process.CLOSED)
        )
        if pod.unit("process", session.subject).state in running:
            await session.resize(rows, columns)

    async def _tell_exit(self, session: Session, nursery: trio.Nursery) -> None:
        pod = await self.runtime.until(lambda pod: pod.unit("process", session.subject).state == process.CLOSED)
        await session.tell_exit(int(pod.unit("process", session.subject).facts.get("exit_code", 255)))
        # The shim drains its pipes and leaves; it hangs up when it does.
