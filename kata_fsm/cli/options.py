# SPDX-License-Identifier: Apache-2.0
"""A verb's options as a table, read without argparse where nothing is odd about the command line.

Importing argparse takes as long as Python's own start. So a verb that is in a hurry lists its options here: `read` takes
the plain forms that programs use, and leaves every other command line (a mistake, `--help`, `-abc`) to argparse, which is
told of the same table and has the words for it. Hot path: imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FLAG, VALUE, LIST, NUMBER = "flag", "value", "list", "number"
_DIGITS_MAX = 9


class Option:
    """One option. `names`: the one that it is known by first. `kind`: given or not, the last value or None, all values, the
    last number or 0."""

    __slots__ = ("dest", "help", "kind", "metavar", "names")

    def __init__(self, names: str, kind: str, help: str, metavar: str | None = None) -> None:
        self.names = names.split()
        self.dest = self.names[0].lstrip("-").replace("-", "_")
        self.kind = kind
        self.help = help
        self.metavar = metavar

    def default(self) -> object:
        """What it is when it is not given."""
        return {FLAG: False, VALUE: None, LIST: [], NUMBER: 0}[self.kind]


class Values:
    """What was given: an attribute for each option, `id`, and `command`, the words after that."""

    id: str
    command: list[str]

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Any option's."""


def read(options: tuple[Option, ...], argv: list[str]) -> Values | None:
    """`[OPTIONS] ID [COMMAND...]`, or None when it takes more than this to understand it."""
    found = Values()
    known = {name: option for option in options for name in option.names}
    for option in options:
        setattr(found, option.dest, option.default())
    words = iter(argv)
    for word in words:
        if not word.startswith("-"):
            found.id, found.command = word, list(words)
            return None if found.command[:1] == ["--"] else found
        name, equals, value = word.partition("=")
        chosen = known.get(name)
        if chosen is None or (equals and (chosen.kind == FLAG or not name.startswith("--"))):
            return None
        if chosen.kind != FLAG and not equals:
            value = next(words, "-")
            if value.startswith("-"):
                return None
        if not _take(found, chosen, value):
            return None
    return None


def _take(found: Values, option: Option, value: str) -> bool:
    if option.kind == LIST:
        getattr(found, option.dest).append(value)
    elif option.kind == NUMBER:
        if not (value.isascii() and value.isdigit() and len(value) <= _DIGITS_MAX):
            return False
        setattr(found, option.dest, int(value))
    else:
        setattr(found, option.dest, value if option.kind == VALUE else True)
    return True


def parse(verb: str, description: str, options: tuple[Option, ...], argv: list[str]) -> Values:
    """The same, of any command line. Raises `UsageError`; `--help` prints it and raises `SystemExit`."""
    found = read(options, argv)
    if found is None:
        from kata_fsm.cli.arguments import parser_of

        found = parser_of(verb, description, options).parse_args(argv, namespace=Values())
    return found
