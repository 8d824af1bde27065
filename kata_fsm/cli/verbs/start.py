# SPDX-License-Identifier: Apache-2.0
"""`start ID...`: let created containers' processes run."""

from __future__ import annotations

from kata_fsm.cli import ask, client, log, lookup
from kata_fsm.cli.arguments import Parser
from kata_fsm.cli.context import Context


def run(context: Context, argv: list[str]) -> int:
    """Start each container, in order; the first that cannot be started ends it."""
    parser = Parser("start", "start created containers")
    parser.container(nargs="+")
    for container_id in parser.parse_args(argv).id:
        start(context, container_id)
    return 0


def start(context: Context, container_id: str) -> None:
    """Start one container."""
    from kata_fsm.machines.vocab import Start

    found = lookup.require(context, container_id)
    ask.refuse_illegal(found, Start(found.key))
    log.warn_all(context, client.ask(context, found, "start"))
