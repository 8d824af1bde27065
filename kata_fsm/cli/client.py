# SPDX-License-Identifier: Apache-2.0
"""Handing one command to a sandbox's supervisor, starting one where none is."""

from __future__ import annotations

import hashlib
import os
import sys
from typing import Any

from kata_fsm import spawn
from kata_fsm.cli.context import Context
from kata_fsm.cli.lookup import Found
from kata_fsm.control import Connection, raise_error
from kata_fsm.errors import SupervisorGone
from kata_fsm.limits import VERB_REPLY_S
from kata_fsm.world import Paths


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
        "argv_sha256": hashlib.sha256(words).hexdigest(),
    }


def _loginuid() -> int | None:
    try:
        with open("/proc/self/loginuid", encoding="ascii") as file:
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


def ask(context: Context, found: Found, op: str, **arguments: Any) -> dict[str, Any]:
    """One command about one container, and its reply. Raises `RemoteError` with the supervisor's own error."""
    message = {"op": op, "actor": actor(context), "container": found.key, **arguments}
    with connect(found.sandbox, found.stream) as connection:
        connection.send(message)
        return raise_error(connection.receive())
