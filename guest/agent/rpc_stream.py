# SPDX-License-Identifier: Apache-2.0
"""The streams of a process, or of a connection: by offset (ours), and the Kata agent's own calls on top of the same rings.

ReadStdout and ReadStderr acknowledge what they hand out. A host should use one kind of call or the other for one stream.
"""

from __future__ import annotations

from time import monotonic

from kata_wire.envelope import OUT_OF_RANGE

from .errors import RpcError, invalid, precondition

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from .agent import Agent
    from .loop import Wait
    from .processes import Process
    from .rpc_connection import Connection
    from .streams import Input, Output

    Message = dict[str, Any]
    Steps = Generator[Wait, bool, Message]

_STDOUT, _STDERR = 1, 2
_READ_BYTES_MAX = 3 << 20  # an answer is at most 4 MiB; the ring holds less anyway


def read_stream(agent: Agent, request: Message) -> Message | Steps:
    """Asking for offset N acknowledges every byte before N; the answer begins `skip` bytes after it.

    Waits for `timeout_ms` at most when there is nothing. An answer without data that is not the end says: ask again, and
    acknowledge what you have, there may be no room for more.
    """
    process = _find(agent, request)
    number = request.get("stream", 0)
    if number not in (_STDOUT, _STDERR):
        raise invalid(f"`stream` is `{number}`, legal are `1` (stdout) and `2` (stderr)")
    offset = request.get("offset", 0)
    output = process.outputs.get(number)
    if output is None:  # a terminal has one stream
        return {"offset": offset, "eof": True}
    output.acknowledge(offset)
    output.demand()
    start = offset + request.get("skip", 0)
    if start > output.end:
        raise RpcError(OUT_OF_RANGE, f"`skip` leads to `{start}`, and the stream has come to `{output.end}`")
    limit = min(request.get("len", 0) or _READ_BYTES_MAX, _READ_BYTES_MAX)
    timeout_s = request.get("timeout_ms", 0) / 1000
    if not timeout_s or not output.must_wait(start):
        return _slice(output, start, limit)
    return _wait_and_slice(output, start, limit, timeout_s)


def _wait_and_slice(output: Output, start: int, limit: int, timeout_s: float) -> Steps:
    deadline = monotonic() + timeout_s
    while output.must_wait(start):
        left_s = deadline - monotonic()
        if left_s <= 0:
            break
        yield output.changed.wait(left_s)
    if start < output.acknowledged:
        raise RpcError(OUT_OF_RANGE, f"the bytes from `{start}` were acknowledged by another call meanwhile")
    return _slice(output, start, limit)


def _slice(output: Output, start: int, limit: int) -> Message:
    data = output.peek(limit, start - output.acknowledged)
    at_end = output.at_eof and start + len(data) == output.end
    if at_end and output.broken and not data:
        raise precondition(output.broken)
    return {"offset": start, "eof": at_end and not output.broken, "data": data}


def write_stream(agent: Agent, request: Message) -> Steps:
    """Input at an offset. Waits until at least one byte was accepted; the answer says which byte is wanted next."""
    process = _find(agent, request)
    stdin = _input(process)
    data = request.get("data", b"")
    offset = request.get("offset", 0)
    end = offset + len(data)
    accepted = stdin.write(offset, data)
    while accepted < end and accepted == offset:
        yield stdin.changed.wait()
        accepted = stdin.write(offset, data)
    if request.get("eof") and accepted >= end:
        stdin.finish()
    return {"offset": accepted}


def write_stdin(agent: Agent, request: Message) -> Steps:
    """The Kata agent's: waits until at least one byte was accepted."""
    stdin = _input(_find(agent, request))
    data = request.get("data", b"")
    start = stdin.accepted
    while data and stdin.write(stdin.accepted, data) == start:
        yield stdin.changed.wait()
        start = stdin.accepted
    return {"len": stdin.accepted - start}


def close_stdin(agent: Agent, request: Message) -> Message:
    """No more input."""
    _input(_find(agent, request)).finish()
    return {}


def read_stdout(agent: Agent, request: Message) -> Steps:
    """The Kata agent's: waits for data; OUT_OF_RANGE "eof" at the end."""
    return _read(agent, request, _STDOUT)


def read_stderr(agent: Agent, request: Message) -> Steps:
    """As read_stdout."""
    return _read(agent, request, _STDERR)


def _read(agent: Agent, request: Message, number: int) -> Steps:
    output = _find(agent, request).outputs.get(number)
    limit = min(request.get("len", 0) or _READ_BYTES_MAX, _READ_BYTES_MAX)
    if output is not None and output.end == output.acknowledged:
        output.demand()
    while output is not None and output.end == output.acknowledged and not output.at_eof:
        yield output.changed.wait()
    data = bytes(output.peek(limit)) if output is not None else b""
    if output is None or not data:
        raise RpcError(OUT_OF_RANGE, "eof")
    output.acknowledge(output.acknowledged + len(data))
    return {"data": data}


def _find(agent: Agent, request: Message) -> Process | Connection:
    container_id, exec_id = request.get("container_id", ""), request.get("exec_id", "")
    if not container_id and exec_id in agent.connections:
        return agent.connections[exec_id]
    return agent.process(container_id, exec_id)


def _input(process: Process | Connection) -> Input:
    if process.stdin is None:
        raise precondition(f"{process.name} has no standard input")
    return process.stdin
