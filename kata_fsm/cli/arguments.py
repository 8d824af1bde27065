# SPDX-License-Identifier: Apache-2.0
"""argparse as the verbs other than the hot ones use it: one-line errors, exit code 1, no abbreviations."""

from __future__ import annotations

import argparse
from typing import NoReturn

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


def add_exec_terminal_options(parser: Parser) -> None:
    """The options about terminals and descriptors of `exec`."""
    parser.add_argument("--console-socket", metavar="SOCKET", help="where to send the terminal's master end")
    parser.add_argument("--console", metavar="PTY", help="a terminal of the caller's to use as the process's")
    parser.add_argument("--tty", "-t", action="store_true", help="give the process a terminal")
    parser.add_argument("--pid-file", metavar="FILE", help="write the process's pid there, last")
    parser.add_argument("--preserve-fds", type=int, default=0, metavar="N", help="keep N further descriptors open")
    parser.add_argument("--no-subreaper", action="store_true", help="accepted: it has no meaning here")
