# SPDX-License-Identifier: Apache-2.0
"""`resume ID`: thaw a paused container."""

from __future__ import annotations

from kata_fsm.cli import ask, client, lookup
from kata_fsm.cli.arguments import Parser
from kata_fsm.cli.context import Context


def run(context: Context, argv: list[str]) -> int:
    """Resume one container."""
    from kata_fsm.machines.vocab import Resume

    parser = Parser("resume", "resume a paused container")
    parser.container()
    found = lookup.require(context, parser.parse_args(argv).id)
    ask.refuse_illegal(found, Resume(found.key))
    client.ask(context, found, "resume")
    return 0
