# SPDX-License-Identifier: Apache-2.0
"""`env`: versions, paths and settings, as TOML or JSON, in Kata's schema with a table of our own."""

from __future__ import annotations

import sys

from kata_fsm.cjson import dumps_indented
from kata_fsm.cli.arguments import Parser
from kata_fsm.cli.context import Context


def parser() -> Parser:
    """The command line."""
    made = Parser("env", "print versions, paths and settings, as TOML; runs no guest")
    made.add_argument("--json", action="store_true", help="as JSON")
    return made


def run(context: Context, argv: list[str]) -> int:
    """Print the document. Raises `UsageError` for a configuration that cannot be."""
    given = parser().parse_args(argv)
    from kata_fsm import OCI_VERSION
    from kata_fsm.check.env import collect
    from kata_fsm.cli.verbs.version import commit
    from kata_fsm.config.load import load

    document = collect(load(context.config, debug=context.debug), commit=commit(), oci=OCI_VERSION)
    if given.json:
        sys.stdout.write(dumps_indented(document) + "\n")
        return 0
    import tomli_w

    sys.stdout.write(tomli_w.dumps(document))
    return 0
