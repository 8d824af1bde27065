# SPDX-License-Identifier: Apache-2.0
"""`logs`: the supervisor's, agent's, console's and hypervisor's lines of one sandbox, in the order of time."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kata_fsm.replay.arguments import Parser, count, parser

if TYPE_CHECKING:
    from kata_fsm.cli.context import Context
    from kata_fsm.cli.gathering import Line

FOLLOW_S = 0.25
SOURCES = ("supervisor", "agent", "console", "hypervisor", "virtiofsd")


def options() -> Parser:
    """The command line."""
    made = parser("logs", "Print the lines of one sandbox, from everywhere, in the order of time.")
    made.add_argument("subject", nargs="?", default="latest", metavar="ID", help="a sandbox or container, by id or uid")
    made.add_argument(
        "-f", "--follow", action="store_true", help="go on with what is added, until the sandbox is deleted"
    )
    made.add_argument("-n", "--lines", type=count, metavar="N", help="begin with the last N lines")
    made.add_argument("--source", action="append", choices=SOURCES, default=[], help="only from here; may be repeated")
    made.add_argument("--json", action="store_true", help="one JSON object a line")
    made.add_argument("--utc", action="store_true", help="times in UTC")
    return made


def run(context: Context, argv: list[str]) -> int:
    """Print what there is; with -f what comes. A `~` before a time says that it is the latest that it can be."""
    given = options().parse_args(argv)
    try:
        for lines in _batches(given):
            wanted = [line for line in lines if not given.source or line.source in given.source]
            for line in wanted:
                sys.stdout.write(_shown(line, given) + "\n")
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    return 0


def _shown(line: Line, given: argparse.Namespace) -> str:
    from kata_fsm.cli.gathering import printed
    from kata_fsm.replay.moments import date_time, iso_utc

    if given.json:
        from kata_fsm import cjson

        fields = {
            "time": iso_utc(line.wall_ns),
            "source": line.source,
            "text": printed(line),
            "approximate": line.about,
        }
        return cjson.dumps({**fields, "seq": line.seq} if line.seq else fields)
    when = date_time(line.wall_ns, utc=given.utc)
    when = f"{when.rstrip('Z')}.{line.wall_ns // 1_000_000 % 1000:03d}{'Z' if when.endswith('Z') else ''}"
    mark = "~" if line.about else " "
    seq = f" [{line.seq}]" if line.seq else ""
    return f"{mark}{when} {line.source}{seq}: {printed(line)}"


def _batches(given: argparse.Namespace) -> Iterator[list[Line]]:
    """What there is; then, if it is followed, what came since, until the sandbox is deleted."""
    from kata_fsm.cli.gathering import boot_ns, files_of, in_order, of_records
    from kata_fsm.replay.reading import open_host_journal, read_what_can_be
    from kata_fsm.replay.story import tell
    from kata_fsm.replay.subject import resolve, split_stream

    with open_host_journal(given.journal) as journal:
        stream = resolve(journal, given.subject).stream
        # A copied journal has no files beside it: those of this host belong to other sandboxes.
        files = files_of(split_stream(stream)[1]) if given.journal is None else []
        told, first = 0, True
        while True:
            records, _ = read_what_can_be(journal, stream)
            rows = tell(records, stream).rows if records else []
            started = boot_ns(records)
            lines = in_order([*of_records(rows[told:]), *(line for file in files for line in file.news(started))])
            told = len(rows)
            if first and given.lines is not None:
                lines = lines[-given.lines :] if given.lines else []
            first = False
            yield lines
            if not given.follow or (rows and rows[-1].machine == "sandbox" and rows[-1].dest == "deleted"):
                return
            while journal.rev(stream) == (records[-1].rev if records else 0) and not any(
                file.grown() for file in files
            ):
                time.sleep(FOLLOW_S)
