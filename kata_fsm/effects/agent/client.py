# SPDX-License-Identifier: Apache-2.0
"""A ttrpc client over one connection to the agent.

Calls run side by side on the connection and are matched by stream id. Everything the guest sends is bounded by the codec
and parsed strictly; what cannot be parsed ends the connection, and so at most this sandbox. Requests are built and
replies read with the generated protobuf classes, imported while the guest boots.

One task writes. A frame half sent would garble all that follow, so none is cut off half way; but a guest that takes
nothing in must not hold up whoever waits for it. So callers queue their frames and wait for the answer only: one that
gives up before its frame was begun takes it back, and is as if it had never called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import trio

from kata_fsm.effects.agent import bulk
from kata_fsm.errors import EffectError, TimeoutExceeded
from kata_fsm.limits import AGENT_CALL_TIMEOUT_S
from kata_wire import envelope, methods, session, ttrpc
from kata_wire.errors import FrameError, WireError

if TYPE_CHECKING:
    from google.protobuf.message import Message

AGENT = "grpc.AgentService"
HEALTH = "grpc.Health"
EXTENSION = "katafsm.Extension"

_READ_BYTES = 64 << 10  # more is in the socket only while a large answer comes, which is better not read here
_NANO = 1_000_000_000

M = TypeVar("M", bound="Message")


def one_line(text: str) -> str:
    """Text of the guest's as it may be recorded and shown: bounded, printable, one line."""
    return "".join(char if char.isprintable() else " " for char in text[: envelope.MAX_ERROR_CHARS]).strip()


class AgentCallError(EffectError):
    """The agent answered with a status other than OK. `code` is the gRPC status code."""

    refused = True

    def __init__(self, method: str, code: int, text: str) -> None:
        told = one_line(text)
        super().__init__(method, told or f"the agent refused {method} with status {code}", evidence={"status": code})
        self.code = code


class AgentUnreachable(EffectError):
    """The connection ended, or never was."""

    def __init__(self, method: str, reason: str) -> None:
        super().__init__(method, f"no connection to the agent for {method}: {reason}")


class _Waiting:
    """One call whose answer has not come yet."""

    def __init__(self, into: bulk.Bulk | None) -> None:
        self.event = trio.Event()
        self.reply: envelope.Response | AgentCallError | None = None
        self.into = into


class AgentClient:
    """One connection. `run` must be running for calls to be answered; `closed` is set when it has ended."""

    def __init__(self, stream: trio.abc.Stream, nonce: bytes) -> None:
        self._stream = stream
        self._session = session.HostSession(nonce)
        self._scope = trio.CancelScope()
        self._next_id = 1
        self._unsent: dict[int, bytes] = {}  # frames that were not begun yet, by stream id, oldest first
        self._writer = trio.lowlevel.ParkingLot()
        self._waiting: dict[int, _Waiting] = {}
        self.established = trio.Event()
        self.closed = trio.Event()
        self.reason = ""

    async def run(self) -> None:
        """Write requests and read replies until the connection ends; then fail every call that waits."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    await self._read()
                    nursery.cancel_scope.cancel()
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as group:
            self.reason = self.reason or str(_first_of(group)) or "the connection broke"
        except* WireError as group:
            self.reason = f"the agent sent what is not ttrpc: {_first_of(group)}"
        finally:
            self.reason = self.reason or "the connection was closed"
            self.closed.set()
            for waiting in self._waiting.values():
                waiting.event.set()
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._stream)

    def close(self, reason: str) -> None:
        """End the connection: every call that waits, and every later one, is told `reason`."""
        self.reason = self.reason or reason
        self._scope.cancel()

    async def _write(self) -> None:
        """Open the session, again and again until the agent has echoed it (see `kata_wire.session`); then write."""
        while not self.established.is_set():
            await self._stream.send_all(self._session.hello())
            with trio.move_on_after(session.HELLO_RESEND_S):
                await self.established.wait()
        while True:
            while self._unsent:
                await self._stream.send_all(self._unsent.pop(next(iter(self._unsent))))
            await self._writer.park()

    async def _read(self) -> None:
        while True:
            data = await self._stream.receive_some(_READ_BYTES)
            if not data:
                return
            self._session.feed(data)
            if self._session.established and not self.established.is_set():
                self.established.set()
            self._dispatch()
            if isinstance(self._stream, trio.SocketStream):
                await self._take_large(self._stream.socket)

    async def _take_large(self, source: trio.socket.SocketType) -> None:
        """If a large answer has begun whose caller wants its data apart, take it up to its end."""
        found = self._session.begun(bulk.HEAD_BYTES_MAX)
        if found is None or found[1] < bulk.LARGE_BYTES or found[1] > ttrpc.MAX_PAYLOAD_BYTES:
            return
        frame, length = found
        waiting = self._waiting.get(frame.stream_id)
        if frame.type != ttrpc.RESPONSE or waiting is None or waiting.into is None or waiting.into.size:
            return
        apart = bulk.split(frame.payload, length)
        if apart is None:
            return
        head, at = apart
        came = self._session.release()
        if not await waiting.into.fill(came[at:], source, length - len(came)):
            raise trio.BrokenResourceError("the connection ended in the middle of an answer")
        self._answer(frame.stream_id, envelope.Response(envelope.OK, "", head))

    def _dispatch(self) -> None:
        while True:
            try:
                frame = self._session.next()
            except FrameError as error:
                self._answer(error.stream_id, AgentCallError("reply", envelope.RESOURCE_EXHAUSTED, str(error)))
                continue
            if frame is None:
                return
            if frame.type == ttrpc.RESPONSE:
                self._answer(frame.stream_id, envelope.parse_response(frame.payload))

    def _answer(self, stream_id: int, reply: envelope.Response | AgentCallError) -> None:
        waiting = self._waiting.get(stream_id)
        if waiting is not None and waiting.reply is None:
            waiting.reply = reply
            waiting.event.set()

    async def call(
        self,
        service: str,
        method: str,
        request: Message | None = None,
        *,
        timeout_s: float | None = AGENT_CALL_TIMEOUT_S,
        into: bulk.Bulk | None = None,
    ) -> Any:
        """Call `method` and answer its response message; the data of a large answer may be `into`, and are not in it then.

        Raises `AgentCallError` (the agent refused), `TimeoutExceeded` (no answer within `timeout_s` seconds; None waits
        for ever) or `AgentUnreachable`.
        """
        response = _response_class(service, method)
        stream_id = self._new_id(method)
        waiting = self._waiting[stream_id] = _Waiting(into)
        try:
            self._unsent[stream_id] = _frame(stream_id, service, method, request, timeout_s)
            self._writer.unpark()
            with trio.move_on_after(timeout_s if timeout_s is not None else float("inf")):
                await waiting.event.wait()
        finally:
            del self._waiting[stream_id]
            unsent = self._unsent.pop(stream_id, None)
        if waiting.reply is not None:
            return _parse(response, method, waiting.reply)
        if self.closed.is_set():
            raise AgentUnreachable(method, self.reason)
        how = "did not answer" if unsent is None else "was too busy to take in"
        raise TimeoutExceeded(method, f"the agent {how} {method} within {timeout_s:g} s")

    def _new_id(self, method: str) -> int:
        if self._next_id > ttrpc.MAX_STREAM_ID:
            self.close("its stream ids are used up")  # whoever calls next makes a new connection
        if self._scope.cancel_called or self.closed.is_set():
            raise AgentUnreachable(method, self.reason)
        stream_id = self._next_id
        self._next_id += 2
        return stream_id


def _parse(response: type[Message], method: str, reply: envelope.Response | AgentCallError) -> Message:
    from google.protobuf.message import DecodeError

    if isinstance(reply, AgentCallError):
        raise reply
    if reply.code != envelope.OK:
        raise AgentCallError(method, reply.code, reply.error)
    message = response()
    try:
        message.ParseFromString(bytes(reply.payload))
    except DecodeError as error:
        raise AgentCallError(
            method, envelope.INTERNAL, f"the agent's answer to {method} is malformed: {error}"
        ) from error
    return message


def _frame(stream_id: int, service: str, method: str, request: Message | None, timeout_s: float | None) -> bytes:
    """The whole frame of a call. Raises `AgentCallError` for one that is larger than a frame may be."""
    from kata_wire import messages

    head = messages.ttrpc.Request(
        service=service,
        method=method,
        payload=b"" if request is None else request.SerializeToString(),
        timeout_nano=0 if timeout_s is None else int(timeout_s * _NANO),
    )
    try:
        return ttrpc.encode(stream_id, ttrpc.REQUEST, 0, head.SerializeToString())
    except WireError as error:
        raise AgentCallError(method, envelope.RESOURCE_EXHAUSTED, f"{method} cannot be sent: {error}") from error


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first exception in a group of groups."""
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first


_classes: dict[tuple[str, str], type[Message]] = {}


def _response_class(service: str, method: str) -> type[Message]:
    known = _classes.get((service, method))
    if known is None:
        from kata_wire import messages

        names = methods.find(service, method)
        if names is None:
            raise EffectError(method, f"there is no call `{service}/{method}`")
        known = _classes[(service, method)] = messages.message_class(names[1])
    return known
