# SPDX-License-Identifier: Apache-2.0
"""`exec ID CMD...` or `exec --process FILE ID`: run a further process in a running container.

Every option reaches the guest: user, additional groups, capabilities, environment, directory, no-new-privileges. Without
--process the container's own process is the pattern, as in runc.
"""

from __future__ import annotations

import argparse

from kata_fsm.cli import ask, attached, client, log, lookup, pidfile, shims
from kata_fsm.cli.arguments import Parser, add_exec_terminal_options
from kata_fsm.cli.context import Context
from kata_fsm.cli.creation import Terminal, attend, check_console
from kata_fsm.errors import UsageError
from kata_fsm.oci import process
from kata_fsm.oci.redact import redacted


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
    """Answers the process's exit code, or 0 when detached."""
    from kata_fsm.machines.vocab import Exec

    options = _parser().parse_args(argv)
    _refuse_options(options)
    found = lookup.require(context, options.id)
    ask.refuse_illegal(found, Exec(found.key, f"{found.key}/new", {}))
    pidfile.prepare(options.pid_file)
    document, warnings = process.from_options(options, process.pattern_of(found.bundle))
    for warning in warnings:
        log.warn(context, warning)
    wants_terminal = bool(document.get("terminal"))
    given = bool(options.console_socket or options.console)
    check_console(terminal=wants_terminal, given=given, attached=not options.detach and not given)
    message: dict[str, object] = {
        "op": "exec",
        "actor": client.actor(context),
        "container": found.key,
        "process": document,
        "args_redacted": redacted(document["args"]),
    }
    with (
        Terminal(options.console_socket, options.console, None, wanted=wants_terminal) as terminal,
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
    pidfile.write(options.pid_file, pid)
    return 0 if options.detach else attached.wait(shim_pid, tty=wants_terminal and not given)
