# SPDX-License-Identifier: Apache-2.0
"""An agent in memory, on a real unix socket: it speaks the wire with the guest's own codec, and lies when told to.

Like QEMU's serial port it serves one connection at a time: who connects while another is connected waits. Calls are
answered side by side. `script[METHOD]` replaces what a call does: an async function of the request, which may wait,
answer a message (a dict), raise `Refused`, answer `Raw` bytes in place of an encoded message, or send what it likes with
`peer.send` and answer None. Processes (`peer.process(...)`) hold their streams by offset, as strictly as the real agent:
a byte that was acknowledged is gone, one that was never sent cannot be asked for.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from kata_wire import envelope, methods, ttrpc
from kata_wire.errors import FrameError
from kata_wire.session import AgentSession, is_hello

Message = dict[str, Any]
Answer = Callable[[Message], Awaitable["Message | Raw | None"]]


class Refused(Exception):
    """A call answered with a status."""

    def __init__(self, code: int, text: str = "refused") -> None:
        super().__init__(text)
        self.code = code


class Raw(bytes):
    """Sent as the encoded response message, whatever it is."""


class Process:
    """One process's streams, and how it ended."""

    def __init__(self) -> None:
        self.output = {1: bytearray(), 2: bytearray()}
        self.acknowledged = {1: 0, 2: 0}
        self.input = bytearray()
        self.input_eof = False
        self.room = 1 << 40  # of input, before backpressure
        self.at_eof = False
        self.exit: Message | None = None
        self.changed = trio.Event()

    def change(self) -> None:
        """Wake whoever waits for this process."""
        self.changed.set()
        self.changed = trio.Event()

    def write(self, data: bytes, stream: int = 1) -> None:
        self.output[stream] += data
        self.change()

    def finish(self, **how: Any) -> None:
        """It exits, and nobody else holds its streams."""
        self.exit = {"exited": True, **(how or {"code": 0})}
        self.at_eof = True
        self.change()

    def take(self, count: int) -> None:
        """Make room for that much more input."""
        self.room += count
        self.change()


class AgentPeer:
    """The agent behind the socket at `path`. `run` must be running."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.script: dict[str, Answer] = {}
        self.calls: list[tuple[str, Message]] = []
        self.processes: dict[tuple[str, str], Process] = {}
        self.containers: dict[str, str] = {}
        self.connections = 0
        self.hellos = 0
        self.deaf = False  # reads nothing at all
        self.mute = False  # echoes no hello
        self.gate: trio.Event | None = None  # nothing is read until it is set
        self.chunk = 1 << 20  # bytes per write to the socket
        self.cut_after: int | None = None  # close the connection after so many more bytes of answers
        self._stream: trio.SocketStream | None = None
        self._lock = trio.Lock()
        self.served = trio.Event()

    def process(self, container: str, exec_id: str = "") -> Process:
        """That process, made at first use."""
        return self.processes.setdefault((container, exec_id or container), Process())

    def called(self, method: str) -> list[Message]:
        """The requests of every call of `method`."""
        return [request for name, request in self.calls if name == method]

    # --- the transport ------------------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        await listener.bind(self.path)
        listener.listen(8)
        task_status.started()
        try:
            while True:
                sock, _ = await listener.accept()
                self.connections += 1
                self._stream = trio.SocketStream(sock)
                await self._serve(self._stream)
        finally:
            listener.close()

    async def cut(self) -> None:
        """Break the connection."""
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)

    async def _serve(self, stream: trio.SocketStream) -> None:
        session = AgentSession()
        try:
            async with trio.open_nursery() as nursery:
                while not self.deaf:
                    if self.gate is not None:
                        await self.gate.wait()
                    data = await stream.receive_some(1 << 20)
                    if not data:
                        break
                    session.feed(data)
                    while (frame := session.next()) is not None:
                        if is_hello(frame):
                            self.hellos += 1
                            if not self.mute:
                                await self.send(session.echo(frame))
                        else:
                            nursery.start_soon(self._answer, frame)
                self.served.set()
                if self.deaf:
                    await trio.sleep_forever()
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError, FrameError):
            pass
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    async def send(self, data: bytes) -> None:
        """Send bytes as they are, in pieces of `chunk`; perhaps not all of them (`cut_after`)."""
        async with self._lock:
            stream = self._stream
            assert stream is not None
            while data:
                piece = data[: self.chunk]
                if self.cut_after is not None:
                    piece = piece[: self.cut_after]
                    self.cut_after -= len(piece)
                if piece:
                    await stream.send_all(piece)
                data = data[len(piece) :]
                if self.cut_after == 0:
                    self.cut_after = None
                    await trio.aclose_forcefully(stream)
                    return

    async def send_frame(self, stream_id: int, kind: int = ttrpc.RESPONSE, payload: bytes = b"") -> None:
        await self.send(ttrpc.encode(stream_id, kind, 0, payload))

    async def _answer(self, frame: ttrpc.Frame) -> None:
        request = envelope.parse_request(frame.payload)
        names = methods.find(request.service, request.method)
        assert names is not None, request.method
        from kata_wire import table

        message = {**table.decode(names[0], bytes(request.payload)), "stream_id": frame.stream_id}
        self.calls.append((request.method, message))
        handler = self.script.get(request.method) or getattr(self, request.method, None)
        try:
            answer = {} if handler is None else await handler(message)
        except Refused as error:
            parts = envelope.error_parts(frame.stream_id, error.code, str(error))
        else:
            if answer is None:
                return
            if isinstance(answer, Raw):
                payload = table.encode("ttrpc.Response", {"payload": bytes(answer)})
                parts = [ttrpc.header(frame.stream_id, ttrpc.RESPONSE, 0, len(payload)), payload]
            else:
                parts = envelope.response_parts(frame.stream_id, names[1], answer)
        try:
            await self.send(b"".join(parts))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the caller is gone

    # --- what the calls do unless they are scripted ---------------------------------------------------------------------

    async def Check(self, _: Message) -> Message:
        return {"status": 1}

    async def Version(self, _: Message) -> Message:
        return {"grpc_version": "0.0.1", "agent_version": "peer"}

    async def CreateContainer(self, request: Message) -> Message:
        self.containers[request["container_id"]] = "created"
        self.process(request["container_id"])
        return {}

    async def StartContainer(self, request: Message) -> Message:
        self.containers[request["container_id"]] = "running"
        return {}

    async def ExecProcess(self, request: Message) -> Message:
        self.process(request["container_id"], request["exec_id"])
        return {}

    async def QueryState(self, _: Message) -> Message:
        containers = [
            {
                "container_id": name,
                "state": state,
                "processes": [{"exec_id": e, "state": "running"} for c, e in self.processes if c == name],
            }
            for name, state in self.containers.items()
        ]
        return {"containers": containers}

    def _find(self, request: Message) -> Process:
        key = (request.get("container_id", ""), request.get("exec_id", ""))
        if key not in self.processes:
            raise Refused(envelope.NOT_FOUND, f"no process `{key}`")
        return self.processes[key]

    async def WaitProcess2(self, request: Message) -> Message:
        process = self._find(request)
        while process.exit is None:
            await process.changed.wait()
        return process.exit

    async def ReadStream(self, request: Message) -> Message:
        process, number, offset = self._find(request), request.get("stream", 0), request.get("offset", 0)
        output = process.output[number]
        if not process.acknowledged[number] <= offset <= len(output):
            legal = f"{process.acknowledged[number]} to {len(output)}"
            raise Refused(envelope.OUT_OF_RANGE, f"offset {offset} is not in {legal}")
        process.acknowledged[number] = offset
        start = offset + request.get("skip", 0)
        if start > len(output):
            raise Refused(envelope.OUT_OF_RANGE, f"there is nothing at {start}")
        with trio.move_on_after(request.get("timeout_ms", 0) / 1000):
            while len(output) == start and not process.at_eof:
                await process.changed.wait()
        data = bytes(output[start : start + request.get("len", 0)])
        # In the order of the agent's own: the data come last.
        return {"offset": start, "eof": process.at_eof and start + len(data) == len(output), "data": data}

    async def WriteStream(self, request: Message) -> Message:
        process = self._find(request)
        offset, data = request.get("offset", 0), request.get("data", b"")
        if offset > len(process.input):
            raise Refused(envelope.OUT_OF_RANGE, f"offset {offset} leaves a gap after {len(process.input)}")
        fresh = data[len(process.input) - offset :]
        if fresh and process.input_eof:
            raise Refused(envelope.FAILED_PRECONDITION, "standard input was closed before")
        while fresh and len(process.input) >= process.room:
            await process.changed.wait()
            fresh = data[len(process.input) - offset :]
        process.input += fresh[: max(0, process.room - len(process.input))]
        if request.get("eof") and len(process.input) >= offset + len(data):
            process.input_eof = True
        process.change()
        return {"offset": len(process.input)}
