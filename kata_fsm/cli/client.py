# SPDX-License-Identifier: Apache-2.0
"""Handing one command to a sandbox's supervisor, starting one where none is."""

from __future__ import annotations

import os
import select
import sys

from kata_fsm import spawn
from kata_fsm.cli import log
from kata_fsm.cli.context import Context
from kata_fsm.cli.lookup import Found
from kata_fsm.control import Connection, raise_error
from kata_fsm.errors import SupervisorGone, SupervisorUnread
from kata_fsm.limits import PROCESS_KILL_WAIT_S, SUPERVISOR_SILENT_S, VERB_REPLY_S
from kata_fsm.oci.names import sha256_hex
from kata_fsm.world import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    Answer = TypeVar("Answer")

_ATTEMPTS = 3


def actor(context: Context) -> dict[str, Any]:
    """Who asks, for the record: the user, and the process that called us (an engine, a shell).

    The arguments are recorded as a digest: `exec` and `run` may carry secrets in theirs.
    """
    parent = os.getppid()
    words = "\0".join(sys.argv).encode("utf-8", "surrogateescape")
    return {
        "uid": os.getuid(),
        "loginuid": _loginuid(),
        "pid": parent,
        "comm": _comm(parent),
        "cli_pid": os.getpid(),
        "verb": context.verb,
        "argv_sha256": sha256_hex(words),
    }


def _loginuid() -> int | None:
    try:
        with open("/proc/self/loginuid", "rb") as file:
            number = int(file.read())
    except (OSError, ValueError):
        return None
    return None if number == 0xFFFFFFFF else number  # (uid_t) -1: nobody logged in


def _comm(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def connect_running(stream: str) -> Connection:
    """A connection to a supervisor that has just said that it is ready."""
    return Connection(Paths(spawn.uid_of(stream)).supervisor_sock, timeout_s=VERB_REPLY_S)


def connect(sandbox: str, stream: str) -> Connection:
    """A connection to the sandbox's supervisor, which is started first when there is none."""
    paths = Paths(spawn.uid_of(stream))
    try:
        return Connection(paths.supervisor_sock, timeout_s=VERB_REPLY_S)
    except SupervisorGone:
        spawn.start_supervisor(sandbox, stream, resume=True)
    return Connection(paths.supervisor_sock, timeout_s=VERB_REPLY_S)


def asking(sandbox: str, stream: str, attempt: Callable[[Connection], Answer]) -> Answer:
    """`attempt` with a connection to the sandbox's supervisor, and with the next one's if that ended without having read
    what it was asked."""
    for _ in range(_ATTEMPTS - 1):
        with connect(sandbox, stream) as connection:
            try:
                return attempt(connection)
            except SupervisorUnread:
                continue
    with connect(sandbox, stream) as connection:
        return attempt(connection)


def end_silent(stream: str) -> None:
    """End a supervisor that does not answer (stopped, or stuck in the kernel), so that another can take its place.

    It may be killed at any instant without harm: that is what its journal is for.
    """
    path = Paths(spawn.uid_of(stream)).supervisor_sock
    try:
        probe = Connection(path, timeout_s=SUPERVISOR_SILENT_S)
    except SupervisorGone:
        return
    with probe:
        try:
            probe.send({"op": "ping"})
            probe.receive()
        except SupervisorGone:
            _kill(probe.peer_pid(), stream)


def _kill(pid: int, stream: str) -> None:
    """SIGKILL the supervisor of `stream` if `pid` is it, and wait until it is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        import signal

        from kata_fsm.argv import argv_of

        if stream not in argv_of(pid):
            return
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.poll(int(PROCESS_KILL_WAIT_S * 1000))
    except OSError:
        pass  # it has just ended
    finally:
        os.close(pidfd)


def ask(context: Context, found: Found, op: str, **arguments: Any) -> dict[str, Any]:
    """One command about one container, and its reply. Raises `RemoteError` with the supervisor's own error."""
    return ask_for(context, found.sandbox, found.stream, found.key, op, **arguments)


def ask_for(context: Context, sandbox: str, stream: str, key: str, op: str, **arguments: Any) -> dict[str, Any]:
    """The same, for a container of which only the names are known."""
    message = {"op": op, "actor": actor(context), "container": key, **arguments}
    context.stream, context.seq = stream, 0

    def attempt(connection: Connection) -> dict[str, Any]:
        connection.send(message)
        context.asked = True
        return raise_error(log.heard(context, connection.receive()))

    return asking(sandbox, stream, attempt)
