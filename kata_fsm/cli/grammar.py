# SPDX-License-Identifier: Apache-2.0
"""Every verb with its options, as its own `--help` has them: what shell completion and the manual pages are made of.

Each verb is called for its help, and its parser is taken at the moment when it would read the command line. So there is no
second description of a command line that could differ. `state` and `list` have no parser (they may import none): their
usage line is read instead.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import msgspec

from kata_fsm.cli.context import Context
from kata_fsm.cli.main import VERBS, usage


class Option(msgspec.Struct, frozen=True):
    """One option. `metavar` is empty for a flag; `choices` are the legal values where these are few."""

    names: tuple[str, ...]
    metavar: str = ""
    help: str = ""
    choices: tuple[str, ...] = ()


class Verb(msgspec.Struct, frozen=True):
    """A verb, or a part of one (`journal verify`). `takes`: what its arguments are called; `choices` of the first one."""

    name: str
    help: str
    options: tuple[Option, ...] = ()
    takes: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    parts: tuple["Verb", ...] = ()  # noqa: UP037 - msgspec resolves it


class _Taken(BaseException):
    """A parser, on its way out of the verb that was about to use it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


@contextlib.contextmanager
def _taking() -> Iterator[None]:
    def take(self: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        raise _Taken(self)

    real = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = take  # type: ignore[method-assign]
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_args = real  # type: ignore[method-assign]


def _parser_of(verb: str, part: str = "") -> argparse.ArgumentParser | str:
    """Its parser, or what it prints for `--help` if it has none."""
    module = importlib.import_module(f"kata_fsm.cli.verbs.{verb}")
    context = Context()
    context.verb = verb
    said = io.StringIO()
    try:
        with _taking(), contextlib.redirect_stdout(said):
            module.run(context, [*([part] if part else []), "--help"])
    except _Taken as taken:
        return taken.parser
    return said.getvalue()


def _option(action: argparse.Action) -> Option:
    choices = tuple(str(one) for one in action.choices or ())
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    valued = action.nargs != 0
    return Option(
        names=tuple(sorted(action.option_strings, key=lambda name: (not name.startswith("--"), name))),
        metavar=("|".join(choices) or metavar) if valued else "",
        help=action.help or "",
        choices=choices,
    )


_HELP = Option(("--help", "-h"), help="print this")


def _verb(name: str, line: str, found: argparse.ArgumentParser | str) -> Verb:
    if isinstance(found, str):
        options = [
            Option((word,), value, choices=tuple(value.split("|")) if "|" in value else ())
            for word, value in re.findall(r"\[(--[\w-]+)(?: ([\w|]+))?\]", found)
        ]
        return Verb(name, line, (*options, _HELP), ("ID",) if found.rstrip().endswith(" ID") else ())
    options = []
    takes: list[str] = []
    choices: tuple[str, ...] = ()
    for action in found._actions:
        if action.help == argparse.SUPPRESS:
            continue
        if isinstance(action, argparse._HelpAction):
            options.append(_HELP)
        elif action.option_strings:
            options.append(_option(action))
        else:
            takes.append(action.metavar if isinstance(action.metavar, str) else action.dest.upper())
            if len(takes) == 1 and action.choices:
                choices = tuple(str(one) for one in action.choices)
    return Verb(name, line, tuple(options), tuple(takes), choices)


def _parts_of(verb: str) -> tuple[str, ...]:
    module = importlib.import_module(f"kata_fsm.cli.verbs.{verb}")
    table = getattr(module, {"journal": "PARTS", "network": "ACTIONS"}.get(verb, "_VERBS"), None)
    return tuple(table) if isinstance(table, dict) else ()


def verbs() -> tuple[Verb, ...]:
    """All of them, in the order of the help."""
    found = []
    for name, line in VERBS.items():
        names = _parts_of(name)
        parts = []
        for part in names:
            parser = _parser_of(name, part)
            about = parser.description or "" if isinstance(parser, argparse.ArgumentParser) else ""
            parts.append(_verb(part, about, parser))
        bare = _parser_of(name)
        if names and isinstance(bare, str):  # it prints a page: the first part is what it does when none is named
            bare = _parser_of(name, names[0])
        whole = _verb(name, line, bare)
        found.append(msgspec.structs.replace(whole, parts=tuple(parts)))
    return tuple(found)


def global_options() -> tuple[Option, ...]:
    """Those before the verb, read from the help's own lines."""
    found = []
    for line in usage().partition("GLOBAL OPTIONS:\n")[2].splitlines():
        names, _, about = line.strip().partition("  ")
        words = names.split(", ")
        first, _, value = words[0].partition(" ")
        choices = tuple(value.split("|")) if "|" in value else ()
        found.append(Option((first, *words[1:]), value, about.strip(), choices))
        if "also --kata-config" in about:
            found.append(Option(("--kata-config",), value, "the same"))
    return tuple(found)
