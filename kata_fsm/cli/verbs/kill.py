# SPDX-License-Identifier: Apache-2.0
"""`kill ID [SIGNAL]`: send a signal to a container's process, or with --all to all of its processes."""

from __future__ import annotations

from kata_fsm.cli import ask, client, lookup
from kata_fsm.cli.arguments import Parser
from kata_fsm.cli.context import Context
from kata_fsm.errors import IllegalTransition
from kata_fsm.oci.signals import number_of


def run(context: Context, argv: list[str]) -> int:
    """Send it. A container whose process has ended is an error that engines know by its words, unless --all is given."""
    from kata_fsm.machines.vocab import Kill

    parser = Parser("kill", "send a signal to a container")
    parser.add_argument("--all", "-a", action="store_true", help="to every process of the container")
    parser.container()
    parser.add_argument(
        "signal", metavar="SIGNAL", nargs="?", default="SIGTERM", help="name or number (default: SIGTERM)"
    )
    options = parser.parse_args(argv)
    context.container = options.id  # which a line about a signal that is none belongs to, too
    number = number_of(options.signal)
    found = lookup.require(context, options.id)
    try:
        ask.refuse_illegal(found, Kill(found.key, number, options.all))
    except IllegalTransition:
        if options.all:
            return 0  # containerd sends `kill --all` to containers that have just ended: nobody is left to signal
        raise
    if number:
        client.ask(context, found, "kill", signal=number, all=options.all)
    return 0
