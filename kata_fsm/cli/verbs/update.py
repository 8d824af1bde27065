# SPDX-License-Identifier: Apache-2.0
"""`update ID`: change a container's resources."""

from __future__ import annotations

import argparse

from kata_fsm.cli import ask, client, log, lookup
from kata_fsm.cli.arguments import Parser
from kata_fsm.cli.context import Context
from kata_fsm.oci import resources


def _parser() -> Parser:
    parser = Parser("update", "change a container's resources")
    parser.add_argument(
        "--resources", "-r", metavar="FILE", help="OCI resources as JSON (`-`: stdin); overrides the rest"
    )
    for name, help_ in resources.OPTIONS.items():
        parser.add_argument(f"--{name}", metavar="VALUE", help=help_)
    parser.container()
    return parser


def run(context: Context, argv: list[str]) -> int:
    """Apply them to a created or running container."""
    from kata_fsm.machines.vocab import Update

    options = _parser().parse_args(argv)
    wanted, warnings = _wanted(options)
    found = lookup.require(context, options.id)
    ask.refuse_illegal(found, Update(found.key, wanted))
    for warning in warnings:
        log.later(context, "warning", warning)
    client.ask(context, found, "update", resources=wanted)
    return 0


def _wanted(options: argparse.Namespace) -> tuple[dict[str, object], list[str]]:
    if options.resources:
        return resources.from_file(options.resources)
    given = {name: getattr(options, name.replace("-", "_")) for name in resources.OPTIONS}
    return resources.from_options({name: value for name, value in given.items() if value is not None})
