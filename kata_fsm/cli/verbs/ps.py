# SPDX-License-Identifier: Apache-2.0
"""`ps ID [ps options]`: a container's processes.

As a table: what `ps` says inside the guest. As JSON: the host pids that stand for the container's processes, because that
is what engines look up in the host's process table; pids of the guest would name strangers there.
"""

from __future__ import annotations

import sys
from typing import Any

from kata_fsm.cjson import dumps
from kata_fsm.cli import client, lookup
from kata_fsm.cli.arguments import Parser
from kata_fsm.cli.context import Context
from kata_fsm.errors import CallerError, UsageError


def run(context: Context, argv: list[str]) -> int:
    """Print them."""
    import argparse

    parser = Parser("ps", "show the processes of a container")
    parser.add_argument("--format", "-f", default="table", metavar="table|json", help="output format (default: table)")
    parser.container()
    parser.add_argument("arguments", metavar="PS-OPTION", nargs=argparse.REMAINDER, help="for ps (default: -ef)")
    options = parser.parse_args(argv)
    if options.format not in ("table", "json"):
        raise UsageError(f"invalid format option: `{options.format}` is none of `table`, `json`")
    found = lookup.require(context, options.id)
    if found.status not in ("running", "paused"):
        raise CallerError(f"Container {found.id} is not running", hint=f"it is `{found.status}`")
    reply = client.ask(context, found, "ps", args=options.arguments or ["-ef"])
    sys.stdout.write(as_json(reply) if options.format == "json" else str(reply.get("text", "")))
    return 0


def as_json(reply: dict[str, Any]) -> str:
    """The host pids, as one JSON list."""
    pids = reply.get("pids")
    return dumps([pid for pid in pids if isinstance(pid, int)] if isinstance(pids, list) else []) + "\n"
