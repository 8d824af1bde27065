# SPDX-License-Identifier: Apache-2.0
"""`journal`: is the log healthy, and what is in it?

journal [stat] [--json]            size, head, streams; names the directory
journal verify [--json]            read everything; exit 5 where it is damaged, 6 where the chain is broken
journal tail [-f] [-n N] [-o json] the last records
journal get SEQ                    one record
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kata_fsm.errors import EXIT_CHAIN, EXIT_DAMAGED, NotFoundError
from kata_fsm.replay.arguments import count, parser, put

if TYPE_CHECKING:
    from journal import Finding, Journal, Record, Stat
    from kata_fsm.cli.context import Context

TAIL_RECORDS = 20
FOLLOW_POLL_S = 0.25
FINDINGS_SHOWN = 100
STAT_SCHEMA = "kata-fsm.journal.stat/1"
VERIFY_SCHEMA = "kata-fsm.journal.verify/1"

_CHAIN_FINDINGS = frozenset({"missing", "reordered", "chain", "head"})
"""What an intact record cannot show by itself: something is wrong between records. The rest is damage of one."""


def run(context: Context, argv: list[str]) -> int:
    """Print what the command line asks for."""
    verb = argv[0] if argv and argv[0] in _VERBS else "stat"
    return _VERBS[verb](argv[1:] if argv and argv[0] == verb else argv)


# --- stat -------------------------------------------------------------------------------------------------------------


def _stat(argv: list[str]) -> int:
    options = parser("journal", "What the journal holds. Also: journal verify, journal tail, journal get.")
    options.add_argument("--json", action="store_true", help="one JSON object")
    given = options.parse_args(argv)
    from kata_fsm.replay.jsonout import dumps
    from kata_fsm.replay.reading import open_journal

    with open_journal(given.journal) as journal:
        stat = journal.stat()
    if given.json:
        import msgspec

        put([dumps({"schema": STAT_SCHEMA, **msgspec.to_builtins(stat)}, indent=2)])
    else:
        put(_stat_lines(stat))
    return 0


def _stat_lines(stat: Stat) -> Iterator[str]:
    yield f"path      {stat.path}"
    yield f"records   {stat.records} in {stat.streams} streams, {stat.projections} projections"
    yield f"head      seq {stat.head.seq}, sha256:{stat.head.digest}"
    yield f"size      {_size(stat.used_bytes)} used, file of {_size(stat.file_bytes)}, map of {_size(stat.map_bytes)}"
    yield f"format    {stat.format}"
    yield f"readers   {stat.readers}"


def _size(count_bytes: int) -> str:
    size = float(count_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


# --- verify -----------------------------------------------------------------------------------------------------------


def _verify(argv: list[str]) -> int:
    options = parser("journal verify", "Check the file, every record, the hash chain, the index and the head.")
    options.add_argument("--json", action="store_true", help="one JSON object")
    given = options.parse_args(argv)
    from kata_fsm.replay.jsonout import dumps
    from journal import verify_path
    from kata_fsm.replay.reading import map_errors, open_journal
    from kata_fsm.world import journal_dir

    with map_errors():
        findings = list(verify_path(given.journal or journal_dir()))
    head = None
    if not findings:  # a damaged head cannot be asked for, nor is a damaged file given to the engine
        with open_journal(given.journal) as journal:
            head = journal.head()
    if given.json:
        import msgspec

        verdict = {"schema": VERIFY_SCHEMA, "ok": not findings, "head": head, "findings": findings}
        put([dumps(msgspec.to_builtins(verdict), indent=2)])
    elif head is None:
        put(_finding_lines(findings))
    else:
        put([f"ok: {head.seq} records, chain intact, head sha256:{head.digest}"])
    return verify_code(findings)


def verify_code(findings: list[Finding]) -> int:
    """0 when nothing is wrong, 6 when only what links records is, 5 when a record itself cannot be trusted."""
    if not findings:
        return 0
    return EXIT_CHAIN if all(finding.kind in _CHAIN_FINDINGS for finding in findings) else EXIT_DAMAGED


def _finding_lines(findings: list[Finding]) -> Iterator[str]:
    from kata_fsm.replay.escape import harmless

    for finding in findings[:FINDINGS_SHOWN]:
        yield harmless(f"{finding.kind:<10} seq {finding.seq}: {finding.detail}")
    if len(findings) > FINDINGS_SHOWN:
        yield f"… and {len(findings) - FINDINGS_SHOWN} more"
    yield f"{len(findings)} findings: this journal is not what was written"


# --- tail, get --------------------------------------------------------------------------------------------------------


def _tail(argv: list[str]) -> int:
    options = parser("journal tail", "The last records.")
    options.add_argument("-f", "--follow", action="store_true", help="go on printing as records are appended")
    options.add_argument("-n", "--lines", type=count, default=TAIL_RECORDS, metavar="N", help="how many (default 20)")
    options.add_argument("-o", "--format", choices=("text", "json"), default="text")
    options.add_argument("--utc", action="store_true", help="times in UTC")
    given = options.parse_args(argv)
    from kata_fsm.replay.reading import open_journal

    with open_journal(given.journal) as journal:
        at = max(0, journal.head().seq - given.lines)
        while True:
            for record in journal.read(at + 1):
                put([record_json(record) if given.format == "json" else record_line(record, utc=given.utc)])
                at = record.seq
            if not given.follow:
                return 0
            sys.stdout.flush()
            time.sleep(FOLLOW_POLL_S)


def _get(argv: list[str]) -> int:
    options = parser("journal get", "One record as JSON, with its digest.")
    options.add_argument("seq", type=count, metavar="SEQ")
    given = options.parse_args(argv)
    from kata_fsm.replay.reading import open_journal

    with open_journal(given.journal) as journal:
        record = _required(journal, given.seq)
    put([record_json(record, indent=2)])
    return 0


def _required(journal: Journal, seq: int) -> Record:
    record = journal.get(seq)
    if record is None:
        raise NotFoundError(f"there is no record `{seq}`", hint=f"the last one is `{journal.head().seq}`")
    return record


def record_json(record: Record, indent: int | None = None) -> str:
    """A record as stored, with its digest and its wall time in words."""
    from kata_fsm.replay.jsonout import dumps
    from kata_fsm.replay.moments import iso_utc

    names = [name for name in record.__struct_fields__ if name != "body"]
    fields = {name: getattr(record, name) for name in names}
    return dumps({"time": iso_utc(record.wall_ns), **fields, "body": record.data}, indent=indent)


def record_line(record: Record, *, utc: bool) -> str:
    """A record in one line."""
    from kata_fsm.replay.escape import harmless
    from kata_fsm.replay.moments import clock_time
    from kata_fsm.replay.words import brief, who

    told = "  ".join(part for part in (who(record.actor), brief(record.data)) if part)
    when = clock_time(record.wall_ns, utc=utc)
    return harmless(f"{record.seq:>6}  {when}  {record.stream}  {record.kind:<8} {record.type}  {told}".rstrip())


_VERBS = {"stat": _stat, "verify": _verify, "tail": _tail, "get": _get}
