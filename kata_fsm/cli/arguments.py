# SPDX-License-Identifier: Apache-2.0
"""argparse as the verbs other than the hot ones use it: one-line errors, exit code 1, no abbreviations."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any, NoReturn

from kata_fsm.cli.options import FLAG, LIST, NUMBER, VALUE, Option
from kata_fsm.errors import UsageError


class Parser(argparse.ArgumentParser):
    """A verb's parser: raises `UsageError` where argparse would print a usage and exit 2."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(prog=f"kata-fsm {verb}", description=description, allow_abbrev=False)
        self.verb = verb

    def error(self, message: str) -> NoReturn:
        """One line, with the verb's name."""
        raise UsageError(f"{self.verb}: {message}", hint=f"see `kata-fsm {self.verb} --help`")

    def container(self, **how: object) -> None:
        """Add the positional container id."""
        self.add_argument("id", metavar="ID", help="the container's id", **how)  # type: ignore[arg-type]


def add_creation_options(parser: Parser) -> None:
    """The options that `create` and `run` share."""
    parser.add_argument("--bundle", "-b", default=".", metavar="DIR", help="the bundle directory (default: here)")
    parser.add_argument("--console-socket", metavar="SOCKET", help="where to send the terminal's master end")
    parser.add_argument("--console", metavar="PTY", help="a terminal of the caller's to use as the container's")
    parser.add_argument("--pid-file", "-p", metavar="FILE", help="write the process's pid there, last")
    parser.add_argument("--preserve-fds", type=int, default=0, metavar="N", help="keep N further descriptors open")
    parser.add_argument("--no-pivot", action="store_true", help="accepted: the guest's file systems are its own")
    parser.add_argument("--no-new-keyring", action="store_true", help="accepted: the guest has keyrings of its own")


def parser_of(verb: str, description: str, options: Iterable[Option]) -> Parser:
    """The parser of `[OPTIONS] ID [CMD...]` for a table of options (see `options`)."""
    parser = Parser(verb, description)
    how: dict[str, dict[str, Any]] = {
        FLAG: {"action": "store_true"},
        VALUE: {},
        LIST: {"action": "append"},
        NUMBER: {"type": int},
    }
    for option in options:
        words = how[option.kind] if option.metavar is None else {**how[option.kind], "metavar": option.metavar}
        parser.add_argument(*option.names, dest=option.dest, default=option.default(), help=option.help, **words)
    parser.container()
    parser.add_argument("command", metavar="CMD", nargs=argparse.REMAINDER, help="the command and its arguments")
    return parser
