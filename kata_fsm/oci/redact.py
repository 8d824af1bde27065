# SPDX-License-Identifier: Apache-2.0
"""Command lines as they may be recorded: what was run stays readable, values that may be secrets do not. Pure."""

from __future__ import annotations

from collections.abc import Sequence

HIDDEN = "***"


def redacted(args: Sequence[str]) -> list[str]:
    """`["/bin/sh", "-c", "***"]` for any script: the command and the names of options stay, all else is hidden."""
    return [*args[:1], *(_word(word) for word in args[1:])]


def _word(word: str) -> str:
    if word in ("-", "--"):
        return word
    if word.startswith("--"):
        name, equals, _ = word.partition("=")
        return name + (equals + HIDDEN if equals else "")
    if word.startswith("-"):
        # `-psecret` is how some commands take a password.
        return word if len(word) == 2 else word[:2] + HIDDEN
    return HIDDEN
