# SPDX-License-Identifier: Apache-2.0
"""A supervisor's insides on a scripted host: real runtime, journal, socket, link, watches and sessions.

What runs on the host is scripted (`Stage`), the guest is an `AgentPeer`, and shims and verbs are peers that speak to the
real socket with real pipes. `House.crash` is what SIGKILL does to a supervisor; another one may then be opened in its
place, with the same journal, guest and shims.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import trio

from journal import Journal
from kata_fsm import control
from kata_fsm.effects.agent import handlers as guest
from kata_fsm.effects.agent.link import Link
from kata_fsm.effects.process import identify
from kata_fsm.machines import Cause, container
from kata_fsm.recovery import recover
from kata_fsm.runtime import Runtime
from kata_fsm.supervisor.main import _listen
from kata_fsm.supervisor.server import Server
from kata_fsm.supervisor.watch import Watcher
from kata_fsm.world import WORLD, Paths
from tests.support.stage import BOX, LIMIT_S, ROOT, STREAM, UID, Stage, state

Message = dict[str, Any]
SPEC: Message = {"ociVersion": "1.1.0", "process": {"args": ["true"], "cwd": "/"}, "root": {"path": "rootfs"}}


class Wiring:
    """The two watches over host processes, which wait until the test says how it ended; and a host that takes any limit."""

    def __init__(self) -> None:
        self.vm_end: tuple[trio.Event, list[Cause]] = (trio.Event(), [])
        self.share_end: tuple[trio.Event, list[Cause]] = (trio.Event(), [])
        self.door: Any = None  # what makes one, or fails to

        self.news: Any = None  # what makes some, or fails to
        self.found: Any = None  # what the namespace has

    async def network_news(self, held: str) -> Any:
        return self.news(held) if self.news is not None else None

    async def network_found(self, known: Any) -> Any:
        return self.found(known)

    async def doorway(self, held: str) -> Any:
        return self.door(held) if self.door is not None else None

    async def limit(self) -> list[str]:
        return []

    async def vm_ended(self, _: Any) -> Cause:
        await self.vm_end[0].wait()
        return self.vm_end[1][0]

    async def share_ended(self, _: Any) -> Cause:
        await self.share_end[0].wait()
        return self.share_end[1][0]

    def kill_vm(self, cause: Cause) -> None:
        self.vm_end[1].append(cause)
        self.vm_end[0].set()

    def kill_share(self, cause: Cause) -> None:
        self.share_end[1].append(cause)
        self.share_end[0].set()


class House:
    """One supervisor. Made by `opened`."""

    def __init__(self, paths: Paths, journal: Journal, stage: Stage, nursery: trio.Nursery) -> None:
        self.paths = paths
        self.journal = journal
        self.stage = stage
        self.wiring = Wiring()
        self.cleaned = trio.Event()
        self._nursery = nursery
        self.link = Link(paths, WORLD, nursery)
        self.runtime = Runtime(journal, STREAM, WORLD, stage.handlers, nursery)
        self.watcher = Watcher(self.runtime, self.link, nursery)
        self.runtime.on_step = self.watcher.reconcile
        self.watcher.wiring = self.wiring  # type: ignore[assignment]
        self.server = Server(self.runtime, self.link, self.watcher, paths, self.cleaned)
        self.runtime.handlers = {**stage.handlers, **self._guest_handlers()}

    def _guest_handlers(self) -> dict[str, Any]:
        made = {
            "agent.connect": guest.AgentConnect,
            "agent.configure": guest.AgentConfigure,
            "agent.disconnect": guest.AgentDisconnect,
            "container.create": guest.ContainerCreate,
            "container.start": guest.ContainerStart,
            "container.pause": guest.ContainerPause,
            "container.resume": guest.ContainerResume,
            "container.kill": guest.ContainerKill,
            "container.remove": guest.ContainerRemove,
            "process.exec": guest.ProcessExec,
        }
        return {kind: handler(self.link, WORLD) for kind, handler in made.items()}

    async def start(self) -> None:
        listener = _listen(self.paths.supervisor_sock)
        self._nursery.start_soon(self.server.serve, listener)
        if self.runtime.rev:
            await recover(self.runtime)
            self.watcher.reconcile(self.runtime.pod)
        self.server.taken_over.set()

    def crash(self) -> None:
        """End all of it here and now."""
        self._nursery.cancel_scope.cancel()

    # --- its clients --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        """A client of its socket."""
        client = Client(await trio.open_unix_socket(self.paths.supervisor_sock))
        try:
            yield client
        finally:
            await client.aclose()

    async def ask(self, op: str, **arguments: Any) -> Message:
        """One request, and its reply."""
        async with self.connected() as client:
            await client.send({"op": op, **arguments})
            reply = await client.receive()
            assert reply is not None, "the supervisor hung up"
            return reply

    async def create(self, shim: ShimPeer | None = None, **changes: Any) -> ShimPeer:
        """A sandbox with its container, created and not started."""
        shim = shim or ShimPeer(self.paths)
        async with self.connected() as client:
            await client.send(create_request(**changes))
            need = await client.receive()
            assert need is not None
            assert need.get("need") == "shim", need
            assert (await shim.attach()) == {"ok": True}
            reply = await client.receive()
        assert reply is not None
        assert reply.pop("seq") >= 1, reply
        assert reply == {"ok": True, "pid": os.getpid()}, reply
        return shim

    async def run(self, shim: ShimPeer | None = None) -> ShimPeer:
        """A sandbox with its container, running."""
        shim = await self.create(shim)
        assert await self.ask("start", container=BOX) == {"ok": True}
        return shim

    async def exec(self, tty: bool = False) -> ShimPeer:
        """A further process in the running container."""
        async with self.connected() as client:
            await client.send(exec_request(tty))
            need = await client.receive()
            assert need is not None
            shim = ShimPeer(self.paths, process=need["process"], tty=tty)
            await shim.attach()
            reply = await client.receive()
            assert reply is not None
            assert reply.get("ok"), reply
        return shim

    async def until(self, machine: str, wanted: str, subject: str = "") -> None:
        """Wait for a machine's state."""
        with trio.fail_after(LIMIT_S):
            await self.runtime.until(state(machine, wanted, subject))


def create_request(name: str = BOX, *, sandbox: bool = True, **changes: Any) -> Message:
    """As `kata-fsm create` sends it."""
    made = {"id": BOX, "uid": UID, "root": ROOT, "hypervisor": {}, "hostname": BOX}
    config = {"id": name, "bundle": "/b", "rootfs": "/b/rootfs", "terminal": False, "guest_spec": SPEC, **changes}
    return {"op": "create", "actor": {"uid": 0}, "sandbox": made if sandbox else None, "container": config}


def exec_request(tty: bool = False, **process: Any) -> Message:
    """As `kata-fsm exec` sends it."""
    wanted = {"args": ["sh"], "cwd": "/", "terminal": tty, **process}
    return {"op": "exec", "actor": {"uid": 0}, "container": BOX, "process": wanted, "args_redacted": ["sh"]}


@asynccontextmanager
async def opened(paths: Paths, journal: Journal, stage: Stage) -> AsyncIterator[House]:
    """A supervisor that has recovered. It is killed at the end."""
    async with trio.open_nursery() as nursery:
        house = House(paths, journal, stage, nursery)
        with trio.fail_after(LIMIT_S):
            await house.start()
        yield house
        house.crash()


class Client:
    """One connection to a supervisor's socket, from the other side."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._decoder = control.Decoder()

    async def send(self, message: Message, fds: list[int] | None = None) -> None:
        data = control.encode(message)
        sock = self.stream.socket
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(fd.to_bytes(4, "little") for fd in fds or []))]
        sent = await sock.sendmsg([data], ancillary if fds else [])
        if sent < len(data):
            await self.stream.send_all(data[sent:])

    async def receive(self, limit_s: float = LIMIT_S) -> Message | None:
        """The next message; None at the end."""
        with trio.fail_after(limit_s):
            while (message := self._decoder.next()) is None:
                try:
                    data = await self.stream.receive_some()
                except trio.BrokenResourceError:
                    return None
                if not data:
                    return None
                self._decoder.feed(data)
        return message

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.stream)


class ShimPeer:
    """A shim in the test's hands. What it received is kept over all its attachments, as the caller would see it."""

    alive: ClassVar[list[ShimPeer]] = []

    def __init__(self, paths: Paths, *, process: str = "init", tty: bool = False, pid: int = 0) -> None:
        self.paths = paths
        self.process = process
        self.container = BOX
        self.tty = tty
        self.pid = pid or os.getpid()
        self.names = ["stdout"] if tty else ["stdout", "stderr"]
        self.received = {name: bytearray() for name in self.names}
        self._pipes: dict[str, trio.lowlevel.FdStream] = {}
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.sent = 0
        self.client: Client | None = None
        self.alive.append(self)

    @property
    def taken(self) -> int:
        """Bytes of input that some supervisor has taken out of the socket."""
        import array
        import fcntl
        import termios

        unread = array.array("i", [0])
        fcntl.ioctl(self.far.fileno(), termios.FIONREAD, unread)
        return self.sent - unread[0]

    def hello(self, **changes: Any) -> Message:
        identity = identify(self.pid)
        return {
            "op": "attach",
            "container": self.container,
            "process": self.process,
            "pid": self.pid,
            "start_ticks": identity.start_ticks if identity is not None else 0,
            "delivered": {name: len(data) for name, data in self.received.items()},
            "stdin_sent": self.sent,
            "stdin_taken": self.taken,
            "tty": self.tty,
            "winsize": None,
            "fds": len(self.names) + 1,
            **changes,
        }

    async def attach(self, *, outputs_only: bool = False, **changes: Any) -> Message | None:
        """Offer fresh pipes; the supervisor's answer."""
        writers = []
        for name in self.names:
            reader, writer = os.pipe()
            self._pipes[name] = trio.lowlevel.FdStream(reader)
            writers.append(writer)
        if self.client is not None:
            await self.client.aclose()
        self.client = Client(await trio.open_unix_socket(self.paths.supervisor_sock))
        fds = writers if outputs_only else [*writers, self.far.fileno()]
        try:
            await self.client.send(self.hello(**{"fds": len(fds), **changes}), fds)
        finally:
            for writer in writers:
                os.close(writer)
        return await self.client.receive()

    async def read(self, name: str = "stdout", most: int = 1 << 16) -> bytes:
        """Deliver some output to the caller; empty at the pipe's end."""
        with trio.fail_after(LIMIT_S):
            data = bytes(await self._pipes[name].receive_some(most))
        self.received[name] += data
        return data

    async def read_until(self, count: int, name: str = "stdout") -> bytes:
        """Deliver output until that many bytes have been delivered in all."""
        while len(self.received[name]) < count:
            assert await self.read(name), f"`{name}` ended after {len(self.received[name])} of {count} bytes"
        return bytes(self.received[name])

    async def drain(self) -> None:
        """Deliver what is left in every pipe, to its end."""
        for name in self.names:
            while await self.read(name):
                pass
            await self._pipes[name].aclose()

    async def write(self, data: bytes) -> None:
        """Input from the caller."""
        view = memoryview(data)
        with trio.fail_after(LIMIT_S):
            while view:
                try:
                    sent = self.near.send(view)
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self.near)
                    continue
                self.sent += sent  # counted as a real shim does: nobody can look in between
                view = view[sent:]

    def finish_input(self) -> None:
        """The caller closed its end."""
        self.near.shutdown(socket.SHUT_WR)

    async def detach(self) -> None:
        """Hang up, and deliver what the old pipes still hold."""
        assert self.client is not None
        await self.client.aclose()
        await self.drain()

    async def exit_code(self) -> int:
        """Wait to be told, delivering output meanwhile; then leave."""
        assert self.client is not None
        with trio.fail_after(LIMIT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.drain)
                message = await self.client.receive()
        assert message is not None, "the supervisor hung up"
        assert "exit" in message, message
        await self.aclose()
        return int(message["exit"])

    async def aclose(self) -> None:
        """Die."""
        if self in self.alive:
            self.alive.remove(self)
        if self.client is not None:
            await self.client.aclose()
        for pipe in self._pipes.values():
            await trio.aclose_forcefully(pipe)
        self.near.close()
        self.far.close()


def running(pod: Any) -> bool:
    """Whether the container runs."""
    return bool(pod.unit("container", BOX).state == container.RUNNING)


Condition = Callable[[], bool]


async def wait_for(condition: Condition, what: str) -> None:
    """Wait for something that announces itself to nobody, with a limit."""
    with trio.move_on_after(LIMIT_S):
        while not condition():
            await trio.sleep(0.002)
        return
    raise AssertionError(f"not within {LIMIT_S:g} s: {what}")
