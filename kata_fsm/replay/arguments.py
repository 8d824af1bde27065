# SPDX-License-Identifier: Apache-2.0
"""Command lines of the verbs that read the journal: argparse, with our way of refusing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import NoReturn

from kata_fsm.errors import EXIT_USAGE, UsageError


class Parser(argparse.ArgumentParser):
    """Wrong usage raises `UsageError` with exit code 2: no engine calls these verbs, so they keep our own table."""

    def error(self, message: str) -> NoReturn:
        error = UsageError(f"{self.prog}: {message}", hint=f"see `{self.prog} --help`")
        error.exit_code = EXIT_USAGE
        raise error


def parser(prog: str, description: str) -> Parser:
    """A parser that has `--journal`."""
    made = Parser(prog=f"kata-fsm {prog}", description=description, allow_abbrev=False)
    made.add_argument(
        "--journal", metavar="DIR", help="read this journal directory (a copy will do) instead of the host's"
    )
    return made


def count(text: str) -> int:
    """A number of lines, at least 0."""
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def put(lines: Iterable[str]) -> None:
    """Lines to standard output; what its encoding cannot say is escaped."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    for line in lines:
        sys.stdout.write(line + "\n")
