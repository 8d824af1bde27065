# SPDX-License-Identifier: Apache-2.0
"""`events ID`: a container's resource use, one JSON line per sample; with --stats a single one."""

from __future__ import annotations

import os
import select
import sys
from typing import Any

from kata_fsm.cjson import dumps
from kata_fsm.cli import client, lookup
from kata_fsm.cli.arguments import Parser
from kata_fsm.cli.context import Context
from kata_fsm.cli.durations import seconds_of
from kata_fsm.errors import CallerError, UsageError
from kata_fsm.oci.stats import event_of


def run(context: Context, argv: list[str]) -> int:
    """Print samples until the container ends."""
    parser = Parser("events", "print a container's resource use")
    parser.add_argument("--interval", default="5s", metavar="DURATION", help="time between samples (default: 5s)")
    parser.add_argument("--stats", action="store_true", help="print one sample and leave")
    parser.container()
    options = parser.parse_args(argv)
    interval_s = seconds_of(options.interval)
    if interval_s <= 0:
        raise UsageError("duration interval must be greater than 0")
    found = lookup.require(context, options.id)
    if found.status not in ("running", "paused"):
        raise CallerError(f"container with id {found.id} is not running", hint=f"it is `{found.status}`")
    _sample(context, found)
    while not options.stats and _alive_after(context, found, interval_s):
        _sample(context, found)
    return 0


def _sample(context: Context, found: lookup.Found) -> None:
    reply = client.ask(context, found, "stats")
    stats: Any = reply.get("stats")
    sys.stdout.write(dumps(event_of(found.id, stats if isinstance(stats, dict) else {})) + "\n")
    sys.stdout.flush()


def _alive_after(context: Context, found: lookup.Found, interval_s: float) -> bool:
    """Whether the container still runs after the interval; returns early when its shim ends."""
    pid = found.pid
    poller = select.poll()
    pidfd = -1
    try:
        if pid:
            pidfd = os.pidfd_open(pid)
            poller.register(pidfd, select.POLLIN)
        poller.poll(int(interval_s * 1000))
    except ProcessLookupError:
        return False
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    again = lookup.find(context, found.id)
    return again is not None and again.status in ("running", "paused")
