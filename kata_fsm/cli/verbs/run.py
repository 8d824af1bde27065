# SPDX-License-Identifier: Apache-2.0
"""`run ID`: create and start; attached unless --detach: stdio, signals and the exit code are the workload's."""

from __future__ import annotations

from kata_fsm.cli import attached, pidfile
from kata_fsm.cli.arguments import Parser, add_creation_options
from kata_fsm.cli.context import Context
from kata_fsm.cli.creation import Created, create, request_from
from kata_fsm.cli.verbs.delete import clean_up
from kata_fsm.cli.verbs.start import start


def run(context: Context, argv: list[str]) -> int:
    """Answers the workload's exit code, or 0 when detached."""
    parser = Parser("run", "create and start a container")
    add_creation_options(parser)
    parser.add_argument("--detach", "-d", action="store_true", help="leave when the process has started")
    parser.add_argument("--keep", action="store_true", help="do not delete the container when its process has ended")
    parser.add_argument("--no-subreaper", action="store_true", help="accepted: it has no meaning here")
    parser.container()
    options = parser.parse_args(argv)
    request = request_from(options, attached=not options.detach)
    pidfile.prepare(options.pid_file)
    created = create(context, request)
    try:
        if not options.detach:
            attached.forward_signals(created.shim_pid)
        start(context, options.id)
        pidfile.write(options.pid_file, created.pid)
    except BaseException:
        clean_up(context, options.id)
        raise
    return 0 if options.detach else _attend(context, options.id, created, keep=options.keep)


def _attend(context: Context, container_id: str, created: Created, *, keep: bool) -> int:
    code = attached.wait(created.shim_pid, tty=created.terminal)
    if not keep:
        clean_up(context, container_id)
    return code
