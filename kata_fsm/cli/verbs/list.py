# SPDX-License-Identifier: Apache-2.0
"""`list`: the containers under `--root`, as a table, as JSON, or as ids.

Containers whose sandbox lives without a supervisor are recovered first, unless `--no-recover` is given; where that fails
a warning says so and the row shows what was last known.
"""

import sys

from kata_fsm import cjson
from kata_fsm.cli import lookup
from kata_fsm.cli.context import Context
from kata_fsm.errors import KataFsmError, UsageError

USAGE = "usage: kata-fsm list [--format table|json] [--quiet] [--no-recover]\n"
COLUMNS = ("id", "pid", "status", "bundle", "created", "owner")
FORMATS = ("table", "json")


class Options:
    """What the command line says."""

    def __init__(self, argv: list[str]) -> None:
        self.format = "table"
        self.quiet = False
        self.recover = True
        self.help = False
        words = iter(argv)
        for word in words:
            name, equals, value = word.partition("=")
            if name in ("-f", "--format", "-format"):
                self.format = value if equals else next(words, "")
                if self.format not in FORMATS:
                    raise UsageError(f"invalid format option: `{self.format}` is none of `table`, `json`")
            elif word in ("-q", "--quiet", "-quiet"):
                self.quiet = True
            elif word == "--no-recover":
                self.recover = False
            elif word in ("-h", "--help"):
                self.help = True
            else:
                raise UsageError(f"list: unexpected argument `{word}`", hint=USAGE.strip())


def _recover_orphans(context: Context, found: list[lookup.Found]) -> bool:
    """Whether any sandbox was recovered, so that the rows must be read again."""
    tried = set()
    for item in found:
        if item.stream in tried or not item.orphaned:
            continue
        tried.add(item.stream)
        try:
            lookup.recover(item)
        except KataFsmError as error:
            from kata_fsm.cli.log import say

            say(f"WARNING: sandbox `{item.sandbox}` could not be recovered: {error}")
    return bool(tried)


def table(rows: list[list[str]]) -> str:
    """Rows as runc's tabwriter lays them out: columns of at least 12, three blanks between, the last one unpadded."""
    widths = [max(12, max(len(row[at]) for row in rows) + 3) for at in range(len(rows[0]) - 1)]
    lines = ["".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + row[-1] for row in rows]
    return "\n".join(lines) + "\n"


def run(context: Context, argv: list[str]) -> int:
    """Print the list."""
    options = Options(argv)
    if options.help:
        sys.stdout.write(USAGE)
        return 0
    found = lookup.find_all(context)
    if options.recover and _recover_orphans(context, found):
        found = lookup.find_all(context)
    if options.quiet:
        sys.stdout.write("".join(item.id + "\n" for item in found))
    elif options.format == "json":
        # An empty list is `null`: a nil slice of Go, which clients have come to know.
        sys.stdout.write(cjson.dumps([item.row for item in found] or None) + "\n")
    else:
        fields = [item.row if isinstance(item.row, dict) else {} for item in found]
        body = [[str(row.get(column, "")) for column in COLUMNS] for row in fields]
        sys.stdout.write(table([[column.upper() for column in COLUMNS], *body]))
    return 0
