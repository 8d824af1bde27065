# SPDX-License-Identifier: Apache-2.0
"""`create ID`: make a container; its process waits to be started."""

from __future__ import annotations

from kata_fsm.cli import pidfile
from kata_fsm.cli.arguments import Parser, add_creation_options
from kata_fsm.cli.context import Context
from kata_fsm.cli.creation import create, request_from
from kata_fsm.cli.verbs.delete import clean_up
from kata_fsm.errors import KataFsmError


def run(context: Context, argv: list[str]) -> int:
    """Create, and write the pid file last: engines take its appearance for the end."""
    parser = Parser("create", "create a container from a bundle")
    add_creation_options(parser)
    parser.container()
    options = parser.parse_args(argv)
    request = request_from(options, attached=False)
    pidfile.prepare(options.pid_file)
    created = create(context, request)
    try:
        pidfile.write(options.pid_file, created.pid)
    except KataFsmError:
        clean_up(context, options.id)  # a container whose pid nobody was told is one that nobody asked for
        raise
    return 0
