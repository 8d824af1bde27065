# SPDX-License-Identifier: Apache-2.0
"""Frames to calls to answers.

Each request becomes a task, so calls run side by side and answers come in any order. Whatever is wrong with a request ends
in a status on its own stream: no frame, however bad, ends the connection or the agent.
"""

from __future__ import annotations

from kata_wire import envelope, methods, table, ttrpc
from kata_wire.errors import WireError

from .connection import Connection
from .errors import RpcError
from .methods import HANDLERS, ONLY_WAITING, PRELOAD
from .report import say, say_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .agent import Agent
    from .loop import Task

_CALLS_MAX = 1024  # under way on one connection
_PRELOAD_DELAY_S = 0.002  # after the first answer; time for it to leave


class _Call:
    """One request under way."""

    __slots__ = ("connection", "generation", "method", "only_waiting", "response", "stream_id", "task", "timer")

    def __init__(self, connection: Connection, stream_id: int, method: str, response: str) -> None:
        self.connection = connection
        self.generation = connection.generation
        self.stream_id = stream_id
        self.method = method
        self.response = response
        self.only_waiting = method in ONLY_WAITING
        self.task: Task | None = None


class Server:
    """Serves any number of connections."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._calls: dict[Connection, set[_Call]] = {}
        self._functions: dict[tuple[str, str], Callable[[Agent, dict[str, Any]], Any]] = {}
        self._preloaded = False

    def serve(self, fd: int, *, serial: bool) -> Connection:
        """Take over a transport's descriptor."""
        return Connection(
            self._agent.loop,
            fd,
            serial=serial,
            on_frame=self._on_frame,
            on_bad_frame=self._fail,
            on_reset=self._on_reset,
        )

    def _on_frame(self, connection: Connection, frame: ttrpc.Frame) -> None:
        try:
            self._begin(connection, frame)
        except RpcError as error:
            self._fail_with(connection, frame.stream_id, error.code, error.message)
        except WireError as error:
            self._fail(connection, frame.stream_id, str(error))
        except Exception as error:
            say_error("request", error)
            self._fail_with(connection, frame.stream_id, envelope.INTERNAL, f"{type(error).__name__}: {error}")

    def _begin(self, connection: Connection, frame: ttrpc.Frame) -> None:
        """Decode the request and start its task. Raises RpcError and WireError."""
        if frame.type != ttrpc.REQUEST:
            raise WireError(f"frame of type `{frame.type:#x}`: this service takes requests, type `0x1`, alone")
        calls = self._calls.setdefault(connection, set())
        if len(calls) >= _CALLS_MAX:
            raise RpcError(envelope.RESOURCE_EXHAUSTED, f"`{len(calls)}` calls are under way, legal are `{_CALLS_MAX}`")
        request = envelope.parse_request(frame.payload)
        function = self._find(request.service, request.method)
        messages = methods.find(request.service, request.method)
        if function is None or messages is None:
            raise RpcError(envelope.UNIMPLEMENTED, f"`{request.service}/{request.method}` is not implemented")
        value = table.decode(messages[0], request.payload)
        call = _Call(connection, frame.stream_id, request.method, messages[1])
        if self._agent.settings.log_calls:
            say(f"call {call.stream_id}: {call.method}")
        self._agent.caller = connection
        result = function(self._agent, value)
        if isinstance(result, dict):
            self._answer(call, result, None)
            return
        calls.add(call)
        task = self._agent.loop.start(result, lambda value, error: self._answer(call, value, error))
        if not task.finished:
            call.task = task
            if request.timeout_ns > 0 and call.only_waiting:
                self._agent.loop.call_later(request.timeout_ns / 1e9, lambda: self._expire(call))

    def _find(self, service: str, method: str) -> Callable[[Agent, dict[str, Any]], Any] | None:
        function = self._functions.get((service, method))
        if function is None:
            place = HANDLERS.get(service, {}).get(method)
            if place is not None:
                function = self._functions[service, method] = getattr(_load(place[0]), place[1])
        return function

    def _answer(self, call: _Call, value: dict[str, Any] | None, error: Exception | None) -> None:
        connection = call.connection
        self._calls[connection].discard(call)
        if self._agent.settings.log_calls:
            say(f"answer {call.stream_id}: {call.method}: " + ("ok" if error is None else str(error)))
        if call.generation != connection.generation:
            return  # nobody remembers having asked
        if error is None:
            try:
                connection.send(*envelope.response_parts(call.stream_id, call.response, value or {}))
            except WireError as unfit:
                error = unfit
        if isinstance(error, RpcError):
            self._fail_with(connection, call.stream_id, error.code, error.message)
        elif error is not None:
            say_error(call.response, error)
            self._fail_with(connection, call.stream_id, envelope.INTERNAL, f"{type(error).__name__}: {error}")
        if not self._preloaded:
            self._preloaded = True
            self._agent.loop.call_later(_PRELOAD_DELAY_S, _preload)

    def _expire(self, call: _Call) -> None:
        if call.task is not None and not call.task.finished:
            call.task.cancel()
            self._answer(call, None, RpcError(envelope.DEADLINE_EXCEEDED, "the call's time is up"))

    def _fail(self, connection: Connection, stream_id: int, message: str) -> None:
        self._fail_with(connection, stream_id, envelope.INVALID_ARGUMENT, message)

    def _fail_with(self, connection: Connection, stream_id: int, code: int, message: str) -> None:
        connection.send(*envelope.error_parts(stream_id, code, message))

    def _on_reset(self, connection: Connection) -> None:
        """The session is over: what only waits ends, the rest goes on and its answers are dropped."""
        for call in list(self._calls.get(connection, ())):
            if call.only_waiting and call.task is not None:
                call.task.cancel()
                self._calls[connection].discard(call)
        self._agent.session_over(connection)


def _load(module: str) -> Any:
    """A sibling module. `importlib.import_module` would be one import more."""
    return __import__(f"{__package__}.{module}", fromlist=("_",))


def _preload() -> None:
    for module in PRELOAD:
        _load(module)
