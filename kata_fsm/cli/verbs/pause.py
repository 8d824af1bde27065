# SPDX-License-Identifier: Apache-2.0
"""`pause ID`: freeze a running container."""

from __future__ import annotations

from kata_fsm.cli import ask, client, lookup
from kata_fsm.cli.arguments import Parser
from kata_fsm.cli.context import Context


def run(context: Context, argv: list[str]) -> int:
    """Pause one container."""
    from kata_fsm.machines.vocab import Pause

    parser = Parser("pause", "pause a running container")
    parser.container()
    found = lookup.require(context, parser.parse_args(argv).id)
    ask.refuse_illegal(found, Pause(found.key))
    client.ask(context, found, "pause")
    return 0
