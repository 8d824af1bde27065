# SPDX-License-Identifier: Apache-2.0
"""The stdio of one process: between its shim's descriptors and the agent's streams.

Output is pulled from the agent by offset and written into the shim's pipes; asking for the next offset acknowledges what
was written. The shim counts what it has delivered, so a new supervisor goes on at exactly that byte, and the agent still
holds everything after it. Input is peeked at, sent with its offset, and taken from the socket only when the agent has
it. A byte is thus never lost and never doubled, whichever of the three is killed in between.

A shim that is dead cannot be handed anything: its process's output is read and dropped, so that the workload is not
blocked by a reader that will never come back.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import termios
from typing import TYPE_CHECKING, Any

import trio

from kata_fsm.effects.agent.client import AGENT, EXTENSION, AgentCallError
from kata_fsm.effects.process import Identity, wait_exit
from kata_fsm.errors import EffectError
from kata_fsm.limits import AGENT_CALL_TIMEOUT_S, RETRY_S, STDIN_BYTES, STREAM_POLL_S, STREAM_READ_BYTES
from kata_fsm.machines import agent, process
from kata_fsm.machines.pod import INIT, Pod
from kata_fsm.machines.vocab import Drained
from kata_fsm.supervisor.channel import Channel

if TYPE_CHECKING:
    from kata_fsm.effects.agent.link import Link
    from kata_fsm.runtime import Runtime

STDOUT, STDERR = 1, 2
_STREAM_NAMES = {STDOUT: "stdout", STDERR: "stderr"}


class Shim:
    """One attached shim: its connection and the descriptors it handed over."""

    def __init__(self, channel: Channel, hello: dict[str, Any], fds: list[int]) -> None:
        self.channel = channel
        self.tty = bool(hello.get("tty"))
        self.delivered: dict[str, int] = dict(hello.get("delivered") or {})
        outputs = [STDOUT] if self.tty else [STDOUT, STDERR]
        self.outputs = {stream: trio.lowlevel.FdStream(fd) for stream, fd in zip(outputs, fds, strict=False)}
        rest = fds[len(self.outputs) :]
        self.stdin = trio.socket.from_stdlib_socket(socket.socket(fileno=rest[0])) if rest else None
        # Bytes of input that the guest has: what the shim sent before it attached, less what still waits here. It sends
        # no more until it is told that it is attached.
        unread = _unread(self.stdin) if self.stdin is not None else 0
        self.consumed = int(hello.get("stdin_sent") or 0) - unread

    async def aclose(self) -> None:
        """Close what was handed over; the shim sees the end of its pipes."""
        for stream in self.outputs.values():
            await trio.aclose_forcefully(stream)
        if self.stdin is not None:
            self.stdin.close()
        self.channel.close()


class Session:
    """The stdio of `subject` (`container/process`), for as long as it is not closed."""

    def __init__(self, subject: str, runtime: Runtime, link: Link) -> None:
        self.subject = subject
        self.container, name = subject.rsplit("/", 1)
        self.exec_id = self.container if name == INIT else name
        self._runtime = runtime
        self._link = link
        self._shim: Shim | None = None
        self._attached = trio.Event()
        self._counts = {"stdout": 0, "stderr": 0}

    # --- the shim -----------------------------------------------------------------------------------------------------

    async def attach(self, shim: Shim) -> None:
        """Take a shim's descriptors; an earlier shim's are closed."""
        old, self._shim = self._shim, shim
        self._attached.set()
        if old is not None:
            await old.aclose()

    async def detach(self, shim: Shim) -> None:
        """The shim hung up."""
        if self._shim is shim:
            self._shim = None
            self._attached = trio.Event()
        await shim.aclose()

    async def tell_exit(self, code: int) -> None:
        """Close the pipes (the shim drains them) and tell the exit code."""
        shim = self._shim
        if shim is not None:
            for stream in shim.outputs.values():
                await trio.aclose_forcefully(stream)
            await shim.channel.send({"exit": code})

    def _shim_identity(self) -> Identity | None:
        return Identity.from_dict(self._runtime.pod.unit("process", self.subject).facts.get("shim", {}))

    async def _await_shim(self) -> Shim | None:
        """The attached shim; None when the one that the journal names is dead and no other has come."""
        if self._shim is not None:
            return self._shim
        identity = self._shim_identity()
        async with trio.open_nursery() as nursery:

            async def attached() -> None:
                await self._attached.wait()
                nursery.cancel_scope.cancel()

            async def dead() -> None:
                if identity is not None:
                    await wait_exit(identity)
                nursery.cancel_scope.cancel()

            nursery.start_soon(attached)
            nursery.start_soon(dead)
        return self._shim

    # --- the pumps ----------------------------------------------------------------------------------------------------

    def _state(self) -> str:
        return self._runtime.pod.unit("process", self.subject).state

    def _guest_is_gone(self) -> bool:
        return self._runtime.pod.agent.state in agent.OVER

    async def run(self) -> None:
        """Pump until all output has been handed over, then report it drained."""
        async with trio.open_nursery() as nursery:
            shim = await self._await_shim()
            tty = shim.tty if shim is not None else bool(self._config().get("terminal"))
            nursery.start_soon(self._feed_input)
            async with trio.open_nursery() as outputs:
                outputs.start_soon(self._pump, STDOUT)
                if not tty:
                    outputs.start_soon(self._pump, STDERR)
            await self._runtime.until(self._has_ended)
            nursery.cancel_scope.cancel()
        if self._state() == process.EXITED:
            await self._runtime.submit(Drained(self.subject, dict(self._counts)))

    def _config(self) -> dict[str, Any]:
        config = self._runtime.pod.unit("process", self.subject).facts.get("config", {})
        return dict(config)

    def _has_ended(self, pod: Pod) -> bool:
        return pod.unit("process", self.subject).state in (process.EXITED, process.CLOSED)

    async def _pump(self, stream: int) -> None:
        name = _STREAM_NAMES[stream]
        shim = await self._await_shim()
        offset = int(shim.delivered.get(name, 0)) if shim is not None else 0
        while True:
            reply = await self._read(stream, offset)
            if reply is None:
                return
            if reply.data:
                shim = await self._await_shim()
                if shim is not None and not await self._write(shim, stream, reply.data):
                    # The shim went away in the middle: the next one says where it stopped.
                    shim = await self._await_shim()
                    offset = int(shim.delivered.get(name, offset)) if shim is not None else offset + len(reply.data)
                    continue
                offset = reply.offset + len(reply.data)
                self._counts[name] = offset
            if reply.eof or (not reply.data and self._has_ended(self._runtime.pod)):
                return

    async def _write(self, shim: Shim, stream: int, data: bytes) -> bool:
        target = shim.outputs.get(stream)
        if target is None:
            return True
        try:
            await target.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self.detach(shim)
            return False
        return True

    async def _read(self, stream: int, offset: int) -> Any | None:
        """The next output from `offset` on; None when there will be none."""
        from kata_wire import messages

        request = messages.extension.ReadStreamRequest(
            container_id=self.container,
            exec_id=self.exec_id,
            stream=stream,  # type: ignore[arg-type]
            offset=offset,
            len=STREAM_READ_BYTES,
            timeout_ms=int(STREAM_POLL_S * 1000),
        )
        while not self._guest_is_gone():
            try:
                return await self._link.call(EXTENSION, "ReadStream", request, timeout_s=AGENT_CALL_TIMEOUT_S)
            except AgentCallError:
                return None  # the agent no longer knows the process
            except EffectError:
                await trio.sleep(RETRY_S)  # between two connections; whether the agent is lost is decided elsewhere
        return None

    # --- input --------------------------------------------------------------------------------------------------------

    async def _feed_input(self) -> None:
        """Hand input to the guest until its end; begin again where the shim says when anything broke in between."""
        while not self._guest_is_gone():
            shim = await self._await_shim()
            try:
                done = await self._send_input(0, b"", eof=True) if shim is None else await self._feed_from(shim)
            except (OSError, trio.ClosedResourceError, EffectError):
                done = False  # between two connections, or between two shims
            if done:
                return
            await trio.sleep(RETRY_S)

    async def _feed_from(self, shim: Shim) -> bool:
        if shim.stdin is None:
            return await self._send_input(0, b"", eof=True)
        while True:
            data = await shim.stdin.recv(STDIN_BYTES, socket.MSG_PEEK)
            if not data:
                return await self._send_input(shim.consumed, b"", eof=True)
            if not await self._send_input(shim.consumed, data, eof=False):
                return True
            left = len(data)
            while left:
                taken = len(await shim.stdin.recv(left))
                left -= taken
                shim.consumed += taken

    async def _send_input(self, offset: int, data: bytes, *, eof: bool) -> bool:
        """Hand bytes to the guest; False when the process takes no more."""
        from kata_wire import messages

        end = offset + len(data)
        while True:
            request = messages.extension.WriteStreamRequest(
                container_id=self.container, exec_id=self.exec_id, offset=offset, data=data, eof=eof
            )
            try:
                reply = await self._link.call(EXTENSION, "WriteStream", request, timeout_s=None)
            except AgentCallError:
                return False
            if reply.offset >= end:
                return True
            data = data[reply.offset - offset :] if reply.offset > offset else data
            offset = max(offset, reply.offset)

    # --- what the shim forwards ---------------------------------------------------------------------------------------

    async def signal(self, number: int) -> None:
        """A signal that somebody sent to the shim's pid."""
        from kata_fsm.effects.agent.handlers import signal_process

        try:
            await signal_process(self._link, self.container, self.exec_id, number)
        except EffectError as error:
            await self._runtime.note(
                "note", "signal_lost", {"process": self.subject, "signal": number, "error": error.message}
            )
            return
        await self._runtime.note("note", "signal_forwarded", {"process": self.subject, "signal": number})

    async def resize(self, rows: int, columns: int) -> None:
        """The terminal's size changed."""
        from kata_wire import messages

        request = messages.agent.TtyWinResizeRequest(
            container_id=self.container, exec_id=self.exec_id, row=rows, column=columns
        )
        try:
            await self._link.call(AGENT, "TtyWinResize", request)
        except EffectError:
            pass  # a size that could not be set costs looks, not correctness


def _unread(sock: trio.socket.SocketType) -> int:
    """Bytes that wait to be read (FIONREAD)."""
    found = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, found)
    return int(found[0])


def close_all(fds: list[int]) -> None:
    """Close descriptors that nobody will take."""
    for fd in fds:
        os.close(fd)
