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

import os
import socket
import sys
from typing import TYPE_CHECKING, Any

import trio

from journal import JournalError
from kata_fsm.effects import process as host
from kata_fsm.effects.agent.bulk import Bulk
from kata_fsm.effects.agent.client import AGENT, AgentCallError
from kata_fsm.effects.process import Identity
from kata_fsm.errors import CallerError, EffectError
from kata_fsm.limits import (
    RETRY_S,
    STDIN_BYTES,
    STREAM_AHEAD_BYTES,
)
from kata_fsm.machines import Cause, agent, process
from kata_fsm.machines.pod import INIT, Pod
from kata_fsm.machines.vocab import AgentLost, Drained
from kata_fsm.supervisor.channel import Channel
from kata_fsm.supervisor.reading import AgentLied, Asked, StreamReader
from kata_fsm.supervisor.writing import write

if TYPE_CHECKING:
    from kata_fsm.effects.agent.link import Link
    from kata_fsm.effects.protocols import Processes
    from kata_fsm.runtime import Runtime

STDOUT, STDERR = 1, 2
_STREAM_NAMES = {STDOUT: "stdout", STDERR: "stderr"}


_OFFSET_MAX = (1 << 63) - 1
SIGNAL_MAX = 64  # SIGRTMAX


class Shim:
    """One attached shim: its connection and the descriptors it handed over."""

    def __init__(self, channel: Channel, hello: dict[str, Any], fds: list[int]) -> None:
        """Takes over `fds`: [stdout, stderr unless a terminal, stdin if any]. Raises `CallerError`; then they are closed."""
        self.channel = channel
        self.tty = bool(hello.get("tty"))
        streams = [STDOUT] if self.tty else [STDOUT, STDERR]
        try:
            self.delivered = _counts(hello.get("delivered"), streams)
            # Counted by the shim, which has both ends of its input's socket: it goes on sending while this is under way.
            self.consumed = _count(hello.get("stdin_taken", 0), "stdin_taken")
            if len(fds) - len(streams) not in (0, 1) or len(fds) != hello.get("fds"):
                raise CallerError(f"the shim announced `{hello.get('fds')}` descriptors, `{len(fds)}` came")
            self.stdin = _input_from(fds[len(streams)]) if len(fds) > len(streams) else None
        except CallerError:
            close_all(fds)
            raise
        self.outputs = {stream: trio.lowlevel.FdStream(fd) for stream, fd in zip(streams, fds, strict=False)}

    async def aclose(self) -> None:
        """Close what was handed over; the shim sees the end of its pipes."""
        for stream in self.outputs.values():
            await trio.aclose_forcefully(stream)
        if self.stdin is not None:
            self.stdin.close()
        self.channel.close()


def _count(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _OFFSET_MAX:
        raise CallerError(f"the shim's `{what}` is `{value!r:.50}`, a count of bytes is legal")
    return value


def _counts(value: object, streams: list[int]) -> dict[int, int]:
    told = value if isinstance(value, dict) else {}
    return {stream: _count(told.get(_STREAM_NAMES[stream], 0), _STREAM_NAMES[stream]) for stream in streams}


def _input_from(fd: int) -> trio.socket.SocketType:
    try:
        return trio.socket.from_stdlib_socket(socket.socket(fileno=fd))
    except OSError as error:
        raise CallerError(f"the shim's input is no socket: {error.strerror}") from error


class Session:
    """The stdio of `subject` (`container/process`), for as long as it is not closed."""

    def __init__(self, subject: str, runtime: Runtime, link: Link, *, processes: Processes = host) -> None:
        self.subject = subject
        self._processes = processes
        self.container, name = subject.rsplit("/", 1)
        self.exec_id = self.container if name == INIT else name
        self._runtime = runtime
        self._link = link
        self._shim: Shim | None = None
        self._attached = trio.Event()
        self._handed_over = {STDOUT: 0, STDERR: 0}

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
                    await self._processes.wait_exit(identity)
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
            counts = {_STREAM_NAMES[stream]: count for stream, count in self._handed_over.items()}
            await self._runtime.report(Drained(self.subject, counts))

    def _config(self) -> dict[str, Any]:
        config = self._runtime.pod.unit("process", self.subject).facts.get("config", {})
        return dict(config)

    def _has_ended(self, pod: Pod) -> bool:
        return pod.unit("process", self.subject).state in (process.EXITED, *process.OVER)

    async def _lost(self, lie: AgentLied) -> None:
        """An agent that lies once is believed nothing more: its sandbox ends, and only that."""
        await self._runtime.report(AgentLost(Cause("agent_lost", str(lie), {"process": self.subject})))

    async def _pump(self, stream: int) -> None:
        """Hand over one output to its end: everything before `offset` has gone into some shim's pipe."""
        shim = await self._await_shim()
        offset = shim.delivered[stream] if shim is not None else 0
        self._handed_over[stream] = offset  # to a former supervisor's shim: it counts
        reader = StreamReader(self._link, self.container, self.exec_id, stream, self._guest_is_gone)
        async with trio.open_nursery() as nursery:
            asked = reader.ask(nursery, offset)
            while True:
                await asked.begun.wait()
                much = asked.size >= STREAM_AHEAD_BYTES
                ahead = reader.ask(nursery, offset, asked.end - offset) if much else None
                await asked.come.wait()
                if asked.lie is not None:
                    await self._lost(asked.lie)
                if asked.lie is not None or (asked.over and not asked.is_ahead):
                    break
                if asked.size and not asked.over:
                    offset = await self._hand_over(stream, offset, asked.end, asked.content)
                    self._handed_over[stream] = offset
                if self._was_last(asked, offset):
                    break
                if ahead is not None and ahead.start != offset:  # another shim wants some again, or less has come
                    ahead.scope.cancel()
                    ahead = None
                asked = ahead or reader.ask(nursery, offset)
            nursery.cancel_scope.cancel()

    def _was_last(self, asked: Asked, offset: int) -> bool:
        """Whether everything up to the end has been handed over."""
        if asked.eof:
            return offset == asked.end
        # Empty though the process has ended: somebody else holds its output open; what the process wrote has all come.
        # One that was asked for ahead says nothing: there may have been no room for more.
        return not asked.size and not asked.is_ahead and self._has_ended(self._runtime.pod)

    async def _hand_over(self, stream: int, offset: int, end: int, data: bytes | Bulk) -> int:
        """Write what was read from `offset` to `end`; the offset of the next byte wanted."""
        shim = await self._await_shim()
        if shim is None:
            return end  # dropped
        if await self._write(shim, stream, data):
            return end
        # The shim went away in the middle: the next one says where it stopped.
        shim = await self._await_shim()
        return end if shim is None else shim.delivered.get(stream, offset)

    async def _write(self, shim: Shim, stream: int, data: bytes | Bulk) -> bool:
        target = shim.outputs.get(stream)
        if target is None:
            return True
        try:
            await (data.pour(target) if isinstance(data, Bulk) else target.send_all(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self.detach(shim)
            return False
        return True

    # --- input --------------------------------------------------------------------------------------------------------

    async def _feed_input(self) -> None:
        """Hand input to the guest until its end; begin again where the shim says when anything broke in between."""
        while not self._guest_is_gone():
            shim = await self._await_shim()
            try:
                if shim is None or shim.stdin is None:
                    done = await self._send_input(0, b"", eof=True)
                else:
                    done = await self._feed_from(shim, shim.stdin)
            except (OSError, trio.ClosedResourceError, EffectError):
                done = False  # between two connections, or between two shims
            except AgentLied as lie:
                await self._lost(lie)
                return
            if done:
                return
            await trio.sleep(RETRY_S)

    async def _feed_from(self, shim: Shim, source: trio.socket.SocketType) -> bool:
        while True:
            data = await source.recv(STDIN_BYTES, socket.MSG_PEEK)
            if not data:
                return await self._send_input(shim.consumed, b"", eof=True)
            if not await self._send_input(shim.consumed, data, eof=False):
                return True
            left = len(data)
            while left:
                taken = len(await source.recv(left))
                left -= taken
                shim.consumed += taken

    async def _send_input(self, offset: int, data: bytes, *, eof: bool) -> bool:
        """Hand bytes to the guest; False when the process takes no more. Raises `AgentLied`."""
        try:
            await write(self._link, self.container, self.exec_id, offset, data, eof=eof)
        except AgentCallError:
            return False
        return True

    # --- what the shim forwards ---------------------------------------------------------------------------------------

    async def signal(self, number: int) -> None:
        """A signal that somebody sent to the shim's pid."""
        from kata_fsm.effects.agent.handlers import signal_process

        body = {"process": self.subject, "signal": number}
        try:
            await signal_process(self._link, self.container, self.exec_id, number)
        except EffectError as error:
            await self._note("signal_lost", {**body, "error": error.message})
        else:
            await self._note("signal_forwarded", body)

    async def _note(self, type_: str, body: dict[str, Any]) -> None:
        try:
            await self._runtime.note("note", type_, body)
        except JournalError as error:  # it has happened all the same, and moves no machine
            print(f"supervisor: `{type_}` could not be noted: {error}", file=sys.stderr, flush=True)

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


def close_all(fds: list[int]) -> None:
    """Close descriptors that nobody will take."""
    for fd in fds:
        os.close(fd)
