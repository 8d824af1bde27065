# SPDX-License-Identifier: Apache-2.0
"""`exec ID CMD...` or `exec --process FILE ID`: run a further process in a running container.

Every option reaches the guest: user, additional groups, capabilities, environment, directory, no-new-privileges. Without
--process the container's own process is the pattern, as in runc.
"""

from __future__ import annotations

import argparse
import os
import signal
from typing import Any

from kata_fsm import cjson
from kata_fsm.cli import ask, lookup, shims
from kata_fsm.cli.arguments import Parser, add_exec_terminal_options
from kata_fsm.cli.context import Context
from kata_fsm.errors import UsageError
from kata_fsm.limits import SPEC_BYTES_MAX
from kata_fsm.world import WORLD


def _parser() -> Parser:
    parser = Parser("exec", "run a further process in a running container")
    add_exec_terminal_options(parser)
    parser.add_argument("--process", "-p", metavar="FILE", help="the OCI process, as JSON")
    parser.add_argument("--detach", "-d", action="store_true", help="leave when the process has started")
    parser.add_argument("--cwd", metavar="DIR", help="working directory")
    parser.add_argument("--env", "-e", action="append", default=[], metavar="NAME=VALUE", help="add to the environment")
    parser.add_argument("--user", "-u", metavar="UID[:GID]", help="run as this user and group")
    parser.add_argument("--additional-gids", "-g", action="append", default=[], metavar="GID", help="further groups")
    parser.add_argument("--cap", "-c", action="append", default=[], metavar="CAP", help="add a capability")
    parser.add_argument("--no-new-privs", action="store_true", help="set no-new-privileges")
    parser.add_argument("--process-label", metavar="LABEL", help="SELinux label")
    parser.add_argument("--apparmor", metavar="PROFILE", help="AppArmor profile")
    parser.add_argument("--cgroup", metavar="PATH", help="refused: cgroups are the guest's")
    parser.add_argument("--ignore-paused", action="store_true", help="refused: a paused container takes no process")
    parser.container()
    parser.add_argument("command", metavar="CMD", nargs=argparse.REMAINDER, help="the command and its arguments")
    return parser


def _refuse_options(options: argparse.Namespace) -> None:
    refused = {
        "--process-label": (options.process_label, "the guest has no SELinux"),
        "--apparmor": (options.apparmor, "the guest has no AppArmor"),
        "--cgroup": (options.cgroup, "the guest's cgroups are its own"),
        "--ignore-paused": (options.ignore_paused, "a paused container takes no process"),
    }
    if options.preserve_fds < 0:
        raise UsageError(f"--preserve-fds: `{options.preserve_fds}` is negative")
    for name, (value, why) in refused.items():
        if value:
            raise UsageError(f"exec: `{name}` cannot be honoured: {why}")


def run(context: Context, argv: list[str]) -> int:
    """Answers the process's exit code, or 0 when detached.

    Without a terminal the shim is started first: its interpreter comes up on one processor while ours imports and checks
    on another, which is an eighth of a short exec. With one, the supervisor asks for it, as in `create`.
    """
    from kata_fsm.cli import pidfile

    options = _parser().parse_args(argv)
    _refuse_options(options)
    found = lookup.require(context, options.id)
    _refuse_illegal(found)
    pidfile.prepare(options.pid_file)
    with_terminal = options.tty or options.console_socket or options.console or _file_wants_terminal(options.process)
    exec_process = _with_terminal if with_terminal else _without_terminal
    return exec_process(context, options, found)


def _refuse_illegal(found: lookup.Found) -> None:
    """The projection is the fold: it says `running` exactly where the tables allow an exec. Otherwise ask them why not."""
    if found.state != "running":
        from kata_fsm.machines.vocab import Exec

        ask.refuse_illegal(found, Exec(found.key, f"{found.key}/new", {}))


def _file_wants_terminal(path: str | None) -> bool:
    """Whether a process file asks for a terminal. One that cannot be read is judged, and refused, later."""
    if not path:
        return False
    try:
        with open(path, "rb") as file:
            return bool(cjson.loads_object(file.read(SPEC_BYTES_MAX)).get("terminal"))
    except (OSError, ValueError):
        return True


def _request(context: Context, options: argparse.Namespace, found: lookup.Found) -> dict[str, Any]:
    """The request to the supervisor, checked."""
    from kata_fsm.cli import client, log
    from kata_fsm.oci import process
    from kata_fsm.oci.redact import redacted

    document, warnings = process.from_options(options, process.pattern_of(found.bundle))
    for warning in warnings:
        log.warn(context, warning)
    return {
        "op": "exec",
        "actor": client.actor(context),
        "container": found.key,
        "process": document,
        "args_redacted": redacted(document["args"]),
    }


def _without_terminal(context: Context, options: argparse.Namespace, found: lookup.Found) -> int:
    home = found.home if isinstance(found.home, dict) else {}
    name = "x" + WORLD.random_bytes(4).hex()
    plan = shims.Plan(
        sandbox=found.sandbox,
        stream=found.stream,
        container=found.key,
        process=name,
        netns=home.get("netns"),
        cgroups=list(home.get("cgroups") or []),
        preserve_fds=options.preserve_fds,
        early=True,
    )
    shim_pid, warnings = shims.start(plan)
    try:
        pid = _ask_for(context, options, found, name, shim_pid, warnings)
    except BaseException:
        os.kill(shim_pid, signal.SIGKILL)
        os.waitpid(shim_pid, 0)
        raise
    return _finish(options, pid, shim_pid, tty=False)


def _ask_for(
    context: Context, options: argparse.Namespace, found: lookup.Found, name: str, shim_pid: int, warnings: list[str]
) -> int:
    from kata_fsm.cli import client, log
    from kata_fsm.cli.attending import await_reply
    from kata_fsm.control import raise_error

    for warning in warnings:
        log.warn(context, warning)
    message = {**_request(context, options, found), "exec_id": name}
    with client.connect(found.sandbox, found.stream) as connection:
        connection.send(message)
        pid = raise_error(await_reply(connection, shim_pid)).get("pid")
    return pid if isinstance(pid, int) and pid > 0 else shim_pid


def _with_terminal(context: Context, options: argparse.Namespace, found: lookup.Found) -> int:
    from kata_fsm.cli import client
    from kata_fsm.cli.creation import Terminal, attend, check_console

    message = _request(context, options, found)
    wanted = bool(message["process"].get("terminal"))
    given = bool(options.console_socket or options.console)
    check_console(terminal=wanted, given=given, attached=not options.detach and not given)
    with (
        Terminal(options.console_socket, options.console, None, wanted=wanted) as terminal,
        client.connect(found.sandbox, found.stream) as connection,
    ):
        connection.send(message)
        pid, shim_pid = attend(
            context,
            connection,
            lambda reply: shims.plan_from(
                reply,
                sandbox=found.sandbox,
                stream=found.stream,
                preserve_fds=options.preserve_fds,
                **terminal.stdio(),
            ),
        )
    return _finish(options, pid, shim_pid, tty=wanted and not given)


def _finish(options: argparse.Namespace, pid: int, shim_pid: int, *, tty: bool) -> int:
    from kata_fsm.cli import attached, pidfile

    pidfile.write(options.pid_file, pid)
    return 0 if options.detach else attached.wait(shim_pid, tty=tty)
