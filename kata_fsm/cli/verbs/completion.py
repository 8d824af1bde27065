# SPDX-License-Identifier: Apache-2.0
"""`completion SHELL`: print the shell's completion of this command, made from its own help."""

from __future__ import annotations

import sys

from kata_fsm.cli.arguments import Parser
from kata_fsm.cli.context import Context

SHELLS = ("bash", "zsh", "fish")


def parser() -> Parser:
    """The command line."""
    made = Parser("completion", "print shell completion: source <(kata-fsm completion bash)")
    made.add_argument("shell", metavar="SHELL", choices=SHELLS, help="`bash`, `zsh` or `fish`")
    return made


def run(context: Context, argv: list[str]) -> int:
    """Print it."""
    given = parser().parse_args(argv)
    from kata_fsm.cli import completion, grammar

    text: str = getattr(completion, given.shell)(grammar.verbs(), grammar.global_options())
    sys.stdout.write(text)
    return 0
