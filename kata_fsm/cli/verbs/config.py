# SPDX-License-Identifier: Apache-2.0
"""`config`: what is configured, and where each value came from.

config [show] [--origin] [--json]    every effective value; with --origin where it came from, and the keys without effect
config diff                          what is not the default
config schema                        the JSON Schema of a configuration file

`--annotation NAME=VALUE` (with show and diff) shows what a container that brings it would get, or which gate refuses it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from kata_fsm.cjson import dumps_indented
from kata_fsm.cli.arguments import Parser
from kata_fsm.cli.context import Context
from kata_fsm.errors import UsageError

PARTS = ("show", "diff", "schema")


def parser() -> Parser:
    """The command line."""
    made = Parser("config", "show the configuration in force, and where each value came from")
    made.add_argument("part", nargs="?", choices=PARTS, default="show", help="what to print (default: `show`)")
    made.add_argument("--origin", action="store_true", help="where each value came from, and the keys without effect")
    made.add_argument("--json", action="store_true", help="as JSON")
    made.add_argument(
        "--annotation", action="append", default=[], metavar="NAME=VALUE", help="as for a container that brings this"
    )
    return made


def run(context: Context, argv: list[str]) -> int:
    """Print what is asked for; warnings go to standard error."""
    given = parser().parse_args(argv)
    from kata_fsm.config import show
    from kata_fsm.config.load import load
    from kata_fsm.replay.escape import harmless

    if given.part == "schema":
        _put([dumps_indented(show.schema())])
        return 0
    settings = load(context.config, dict(_pair(text) for text in given.annotation), debug=context.debug)
    if given.json:
        _put([dumps_indented(show.as_data(settings))])
    elif given.part == "diff":
        _put(map(harmless, show.differences(settings)))
    else:
        _put(map(harmless, show.as_text(settings, origins=given.origin)))
    for warning in settings.warnings:
        sys.stderr.write(f"warning: {harmless(warning)}\n")
    return 0


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"config: --annotation: `{text}` is not NAME=VALUE")
    return name, value


def _put(lines: Iterable[str]) -> None:
    from kata_fsm.replay.arguments import put

    put(lines)
