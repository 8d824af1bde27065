# SPDX-License-Identifier: Apache-2.0
"""The supervisor's socket: verbs and shims come in here.

A verb's connection carries one request and its replies. A shim's stays open for the life of its process: it brings the
descriptors, forwards signals and window sizes, and is told the exit code.
"""

from __future__ import annotations

import select
import sys
import traceback
from typing import TYPE_CHECKING, Any

import trio

from journal import JournalError
from kata_fsm.effects import process as host
from kata_fsm.effects.process import Identity
from kata_fsm.errors import Bug, CallerError, IllegalTransition, KataFsmError, NotFoundError, WorldError
from kata_fsm.limits import RETRY_S, SHIM_ATTACH_S
from kata_fsm.machines import process
from kata_fsm.machines.pod import Pod, Unit
from kata_fsm.machines.vocab import EXIT_UNKNOWN, AttachShim, Facts
from kata_fsm.supervisor.channel import Channel
from kata_fsm.supervisor.kept import Kept
from kata_fsm.supervisor.requests import told_seq
from kata_fsm.supervisor.session import SIGNAL_MAX, Session, Shim, close_all
from kata_fsm.supervisor.verbs import VERBS

if TYPE_CHECKING:
    from kata_fsm.effects.agent.link import Link
    from kata_fsm.effects.protocols import Processes
    from kata_fsm.runtime import Runtime
    from kata_fsm.supervisor.watch import Watcher
    from kata_fsm.world import Paths


class Server:
    """Answers requests about one sandbox. `settle` is awaited before a reply, so that a reply is true when it is read."""

    def __init__(
        self,
        runtime: Runtime,
        link: Link,
        watcher: Watcher,
        paths: Paths,
        cleaned: trio.Event,
        *,
        processes: Processes = host,
    ) -> None:
        self.runtime = runtime
        self.processes = processes
        self.link = link
        self.watcher = watcher
        self.paths = paths
        watcher.rescan = self._rescan
        self._cleaned = cleaned
        self.clients = 0  # connected
        self.requests = 0  # being answered
        self.forced: set[Identity] = set()  # shims of containers whose deletion was forced
        self.shims = 0  # attached and not yet told their exit code
        self.network_changes = trio.Lock()  # one at a time: who comes while one is under way waits for it
        self.updates = trio.Lock()  # likewise: one that fails is taken back
        self.served = trio.Event()  # a first request has come
        self.taken_over = trio.Event()  # the world has been looked at: what is asked finds a pod that is true
        self._listener: trio.socket.SocketType | None = None
        self.config_notes: set[str] = set()  # digests of what was said of the configuration since the sandbox was made
        self._execs: dict[str, int] = {}  # the last name that was given out, by container

    def wire(self, config: dict[str, Any]) -> None:
        """Build the handlers for a sandbox that was created with `config`. Raises `UsageError` for wrong settings."""
        from kata_fsm.supervisor.limiting import disks_of, limits_of
        from kata_fsm.supervisor.wiring import Wiring
        from kata_fsm.world import WORLD

        runtime = self.runtime
        wiring = Wiring(
            self.paths, WORLD, self.link, config, lambda: limits_of(runtime.pod), lambda: disks_of(runtime.pod)
        )
        self.watcher.wiring = wiring
        self.runtime.handlers = wiring.handlers

    async def _rescan(self) -> None:
        """What is moved into the pod's network namespace has been seen."""
        from kata_fsm.supervisor import networking

        await networking.change(self, {"rescan": True})

    def keep(self, name: str, value: Facts) -> Kept:
        """Keep what only the guest needs until it has it."""
        return Kept(self.paths.base, f"{name}.{self.runtime.world.random_bytes(4).hex()}", value)

    def take_shim(self, channel: Channel, hello: dict[str, Any], fds: list[int]) -> Shim:
        """A shim that attaches, with what it hands over. Raises `CallerError`; then `fds` are closed."""
        return Shim(channel, hello, fds)

    def exec_name(self, container_id: str) -> str:
        """A name for a further process, given out once: several may be on their way in at the same time."""
        known = [subject.rpartition("/e")[2] for subject, _ in self.runtime.pod.processes_of(container_id)]
        last = max([int(number) for number in known if number.isdecimal()], default=0)
        number = self._execs[container_id] = max(last, self._execs.get(container_id, 0)) + 1
        return f"e{number}"

    @property
    def undecided(self) -> bool:
        """Whether somebody has connected who is not a shim and may be about to ask for something."""
        knocking = self._listener is not None and bool(select.select([self._listener], [], [], 0)[0])
        return knocking or self.clients > self.shims

    async def serve(self, listener: trio.socket.SocketType) -> None:
        """Accept for ever."""
        self._listener = listener
        with listener:
            async with trio.open_nursery() as nursery:
                while True:
                    try:
                        client, _ = await listener.accept()
                    except OSError as error:
                        # Out of descriptors, or the client is gone already: neither is a reason to leave the others.
                        print(f"supervisor: cannot accept a connection: {error}", file=sys.stderr, flush=True)
                        await trio.sleep(RETRY_S)
                        continue
                    nursery.start_soon(self._client, client)

    async def _client(self, client: trio.socket.SocketType) -> None:
        with Channel(client) as channel:
            await self.attend(channel)

    async def attend(self, channel: Channel) -> None:
        """Serve one client: a verb until it is answered, a shim until it hangs up."""
        self.clients += 1
        try:
            request = await channel.receive()
            if request is not None and request.get("op") == "attach":
                await self._shim(channel, request)
            elif request is not None:
                await self._verb(channel, request)
        finally:
            self.clients -= 1

    async def _verb(self, channel: Channel, request: dict[str, Any]) -> None:
        self.requests += 1
        self.served.set()
        try:
            reply = await self._answer(channel, request)
            await self._reply(channel, {**reply, **told_seq(request)})
        finally:
            self.requests -= 1

    async def _reply(self, channel: Channel, reply: Facts) -> None:
        try:
            await channel.send(reply)
        except (KataFsmError, TypeError, ValueError) as error:  # the guest may have filled it with what no frame holds
            await channel.send({"error": WorldError(f"the answer cannot be sent: {error}").to_wire()})

    async def _answer(self, channel: Channel, request: dict[str, Any]) -> Facts:
        op = str(request.get("op"))
        verb = VERBS.get(op)
        if op != "ping":  # whoever only wants to know that we live is told at once
            await self.taken_over.wait()
        try:
            if verb is None:
                raise CallerError(
                    f"there is no request `{request.get('op')!s:.50}`", hint=f"legal are {', '.join(VERBS)}"
                )
            return await verb(self, channel, request)
        except KataFsmError as error:
            return {"error": error.to_wire()}
        except JournalError as error:
            return {"error": WorldError(error.message, hint=error.hint).to_wire()}
        except OSError as error:
            return {"error": WorldError(f"the host refused: {error}").to_wire()}
        except Exception as error:  # whoever asked is told; the sandbox is none the worse for it
            traceback.print_exception(error)
            return {"error": Bug(f"the supervisor failed unexpectedly: {type(error).__name__}: {error}").to_wire()}
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
        if hello.get("early"):
            # The shim of an `exec` is started before the process is declared; it may well be here first.
            with trio.move_on_after(SHIM_ATTACH_S):
                await self.runtime.until(lambda pod: subject in pod.processes)
        try:
            if self._unit(subject).state == process.CLOSED:
                close_all(fds)
                await channel.send({"exit": _exit_code(self.runtime.pod, subject)})
                return
            identity = self._identify(subject, hello, fds)
            shim = self.take_shim(channel, hello, fds)
        except CallerError as error:
            await channel.send({"error": error.to_wire()})
            return
        session = self.watcher.session(subject)
        self.shims += 1
        try:
            await session.attach(shim)
            await self._attached(channel, subject, identity, early=bool(hello.get("early")))
            await self._serve_shim(session, shim, hello)
        except JournalError as error:
            # Hang up: it comes again. An error would end it, and with it whoever waits for the workload.
            print(f"supervisor: the shim of `{subject}` has to wait: {error}", file=sys.stderr, flush=True)
        finally:
            self.shims -= 1
            with trio.CancelScope(shield=True):
                await session.detach(shim)

    def _unit(self, subject: str) -> Unit:
        return self.runtime.pod.unit("process", subject)

    def _identify(self, subject: str, hello: dict[str, Any], fds: list[int]) -> Identity:
        """Who attaches. Raises `CallerError`, and `fds` are closed."""
        pid = hello.get("pid")
        identity = self.processes.identify(pid) if isinstance(pid, int) else None
        if identity is not None and identity.start_ticks == hello.get("start_ticks"):
            if subject in self.runtime.pod.processes:
                return identity
            close_all(fds)
            raise NotFoundError(f"process `{subject}` does not exist")
        close_all(fds)
        raise CallerError(f"the shim `{pid}` is not the process it says it is")

    async def _attached(self, channel: Channel, subject: str, identity: Identity, *, early: bool) -> None:
        try:
            # One that was named by whoever asked for the process is on record already when it comes.
            if not early or self._unit(subject).facts.get("shim") != identity.to_dict():
                await self.runtime.submit(AttachShim(subject, identity.to_dict()))
        except IllegalTransition:
            if self._unit(subject).state not in process.OVER:
                raise Bug(f"process `{subject}` is `{self._unit(subject).state}` and takes no shim") from None
            return  # it was closed meanwhile: the shim is told its exit code like any other
        await channel.send({"ok": True})

    async def _serve_shim(self, session: Session, shim: Shim, hello: dict[str, Any]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_exit, session)
            size = hello.get("winsize")
            if isinstance(size, list) and len(size) == 2:
                nursery.start_soon(self._first_size, session, *size)
            while (message := await shim.channel.receive()) is not None:
                await self._forwarded(session, message)
            nursery.cancel_scope.cancel()

    async def _forwarded(self, session: Session, message: dict[str, Any]) -> None:
        """What a shim passes on. Anything else is left alone."""
        match message:
            case {"op": "signal", "signal": int(number)} if 0 < number <= SIGNAL_MAX:
                await session.signal(number)
            case {"op": "winsize", "rows": rows, "cols": columns}:
                await self._resize(session, rows, columns)

    async def _resize(self, session: Session, rows: object, columns: object) -> None:
        if isinstance(rows, int) and isinstance(columns, int) and 0 <= rows <= 0xFFFF and 0 <= columns <= 0xFFFF:
            await session.resize(rows, columns)

    async def _first_size(self, session: Session, rows: object, columns: object) -> None:
        running = (process.CREATED, process.RUNNING)
        ended = (process.EXITED, *process.OVER)
        pod = await self.runtime.until(lambda pod: pod.unit("process", session.subject).state in (*running, *ended))
        if pod.unit("process", session.subject).state in running:
            await self._resize(session, rows, columns)

    async def _tell_exit(self, session: Session) -> None:
        # From the pod in which it was closed: a later one may have forgotten it.
        pod = await self.runtime.until(lambda pod: pod.unit("process", session.subject).state in process.OVER)
        await session.tell_exit(_exit_code(pod, session.subject))


def _exit_code(pod: Pod, subject: str) -> int:
    return int(pod.unit("process", subject).facts.get("exit_code", EXIT_UNKNOWN))
    # The shim drains its pipes and leaves; it hangs up when it does.
