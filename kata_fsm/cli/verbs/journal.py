# SPDX-License-Identifier: Apache-2.0
"""`journal`: is the log healthy, what is in it, keep it small, take it elsewhere.

journal [stat] [--json]                        counts, sizes, head, owner; names the directory
journal list [FIELD=VALUE ...]                 records: -f -n -r -S -U -b -o text|verbose|json --subject ID
journal tail                                   the last ones, with the same options
journal get SEQ [--raw]                        one record
journal verify [--from A --to B] [--pubkey K]  read everything; exit 5 damaged, 6 chain broken, 7 unaccounted gap
journal reindex                                write projections anew that are not what the records fold to
journal checkpoint [--sign KEY]                state the head
journal prune --keep 30d --max-size 256M       remove deleted sandboxes, oldest first; --dry-run
journal export [SUBJECT | --all] -O FILE       into a bundle; journal import FILE [--as NAME], journal forget NAME
journal salvage DIR -O FILE                    what can be read of a damaged journal, into a bundle
journal adopt --reason TEXT                    go on writing a journal that another host owns

Each part is a module of its own, imported when it is asked for.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kata_fsm.cli.context import Context

PARTS: dict[str, tuple[str, str, bool]] = {
    "stat": ("stat", "run", False),
    "list": ("records", "list_", False),
    "tail": ("records", "tail", False),
    "get": ("records", "get", False),
    "verify": ("judging", "verify", False),
    "reindex": ("judging", "reindex", False),
    "checkpoint": ("keeping", "checkpoint", True),
    "prune": ("keeping", "prune", True),
    "adopt": ("keeping", "adopt", True),
    "export": ("carrying", "export", True),
    "import": ("carrying", "import_", True),
    "forget": ("carrying", "forget", True),
    "salvage": ("carrying", "salvage", True),
}
"""Part -> its module, its function, and whether that wants the context (to record who asked)."""


def run(context: Context, argv: list[str]) -> int:
    """Do what the command line asks for."""
    if argv[:1] in (["--help"], ["-h"]):
        sys.stdout.write((__doc__ or "") + "\n")
        return 0
    named = bool(argv) and argv[0] in PARTS
    module, function, wants_context = PARTS[argv[0] if named else "stat"]
    rest = argv[1:] if named else argv
    part = getattr(import_module(f"kata_fsm.cli.journal.{module}"), function)
    code: int = part(context, rest) if wants_context else part(rest)
    return code
