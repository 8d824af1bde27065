# SPDX-License-Identifier: Apache-2.0
"""`journal verify` and `journal reindex`: is the log what was written, and are its projections what it folds to?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from kata_fsm.errors import EXIT_CHAIN, EXIT_DAMAGED, EXIT_GAP
from kata_fsm.replay.arguments import count, parser, put

if TYPE_CHECKING:
    from journal import Finding, Head

FINDINGS_SHOWN = 100
FINDINGS_MAX = 10_000
VERIFY_SCHEMA = "kata-fsm.journal.verify/1"

_CHAIN_FINDINGS = frozenset({"missing", "reordered", "chain", "head", "checkpoint"})
"""What an intact record cannot show by itself: something is wrong between records. The rest is damage of one."""


def verify(argv: list[str]) -> int:
    """Read everything; 5 where it is damaged, 6 where the chain is broken, 7 where a gap is not accounted for."""
    options = parser("journal verify", "Check every record, the chain, indexes, projections, gaps and checkpoints.")
    options.add_argument("--json", action="store_true", help="one JSON object")
    options.add_argument("--from", dest="first", type=count, default=1, metavar="SEQ", help="only records from here on")
    options.add_argument("--to", dest="last", type=count, metavar="SEQ", help="only records up to here")
    options.add_argument(
        "--pubkey", action="append", default=[], metavar="FILE", help="who must have signed checkpoints"
    )
    options.add_argument("--quick", action="store_true", help="without folding every sandbox for its projections")
    given = options.parse_args(argv)
    from kata_fsm.world import journal_dir

    path = given.journal or journal_dir()
    if os.path.isfile(path):
        return _bundle(path, given.json)
    findings = find(path, given.first, given.last, given.pubkey, quick=given.quick)
    head, told = (None, None) if findings else _standing(path)
    if given.json:
        _put_json(findings, head, told)
    elif head is None or told is None:
        put(finding_lines(findings))
    else:
        put(_good_lines(head, told))
    return code(findings)


def find(
    path: str, first: int = 1, last: int | None = None, key_files: list[str] | None = None, *, quick: bool = False
) -> list[Finding]:
    """What is wrong with the journal in the directory `path`, at most `FINDINGS_MAX` of it.

    Projections and snapshots are only compared when everything else is sound. Raises as `open_host_journal`.
    """
    from journal import keys, verify_path
    from kata_fsm.replay.reading import map_errors, open_host_journal
    from kata_fsm.snapshots import PodProjector

    with map_errors():
        public_keys = frozenset(keys.read_public(path) for path in key_files or [])
        findings = list(islice(verify_path(path, first, last, public_keys), FINDINGS_MAX))
    if findings or quick or first > 1 or last is not None:
        return findings
    with open_host_journal(path) as journal:
        return list(islice(journal.verify_folds(PodProjector()), FINDINGS_MAX))


def code(findings: list[Finding]) -> int:
    """0 when nothing is wrong; else 5 for damage of a record or an index, 6 for the chain, 7 for gaps: the worst."""
    kinds = {finding.kind for finding in findings}
    if not kinds:
        return 0
    if kinds <= {"gap"}:
        return EXIT_GAP
    return EXIT_CHAIN if kinds <= _CHAIN_FINDINGS | {"gap"} else EXIT_DAMAGED


def _standing(path: str) -> tuple[Head, dict[str, Any]]:
    """The head of a sound journal, and what accounts for records that are not there any more."""
    from kata_fsm.replay.reading import open_host_journal

    with open_host_journal(path) as journal:
        gaps = journal.gaps()
        checkpoint = journal.last_checkpoint()
        system = journal.read_stream("journal") if gaps else ()
        return journal.head(), {
            "records": journal.stat().records,
            "gaps": [{"first": gap.first, "last": gap.last} for gap in gaps],
            "tombstones": [record.seq for record in system if record.kind == "tombstone"],
            "checkpoint": None if checkpoint is None else checkpoint.seq,
        }


def _good_lines(head: Head, told: dict[str, Any]) -> Iterator[str]:
    yield f"ok: {told['records']} records, chain intact, head sha256:{head.digest}"
    if told["gaps"]:
        gone = sum(gap["last"] - gap["first"] + 1 for gap in told["gaps"])
        shown = ", ".join(f"{gap['first']}..{gap['last']}" for gap in told["gaps"][:5])
        more = f" and {len(told['gaps']) - 5} more" if len(told["gaps"]) > 5 else ""
        by = ", ".join(map(str, told["tombstones"][-5:]))
        yield f"pruned: {gone} records in {len(told['gaps'])} gaps ({shown}{more}), accounted for by tombstones {by}"


def _put_json(findings: list[Finding], head: Head | None, told: dict[str, Any] | None) -> None:
    import msgspec

    from kata_fsm.replay.jsonout import dumps

    verdict = {"schema": VERIFY_SCHEMA, "ok": not findings, "head": head, "findings": findings, **(told or {})}
    put([dumps(msgspec.to_builtins(verdict), indent=2)])


def finding_lines(findings: list[Finding]) -> Iterator[str]:
    """A line each, as far as anybody will read."""
    from kata_fsm.replay.escape import harmless

    for finding in findings[:FINDINGS_SHOWN]:
        yield harmless(f"{finding.kind:<10} seq {finding.seq}: {finding.detail}")
    if len(findings) > FINDINGS_SHOWN:
        yield f"… and {len(findings) - FINDINGS_SHOWN} more"
    yield f"{len(findings)} findings: this journal is not what was written"


def _bundle(path: str, as_json: bool) -> int:
    """A bundle is checked, every byte of it, when it is opened."""
    from journal import Bundle
    from kata_fsm.replay.reading import map_errors

    with map_errors():
        source = Bundle.open(path)
    told = {"records": len(source.stored), "gaps": [], "tombstones": [], "checkpoint": None}
    if as_json:
        _put_json([], source.head(), told)
    else:
        put([f"ok: {len(source.stored)} records of {len(source.header.streams)} streams, sha256:{source.sha256}"])
    return 0


def reindex(argv: list[str]) -> int:
    """Write projections anew that are not what the records fold to."""
    options = parser("journal reindex", "Write anew every projection that is not what the records fold to.")
    given = options.parse_args(argv)
    from kata_fsm.cli.journal.opening import open_for_writing
    from kata_fsm.snapshots import PodProjector

    with open_for_writing(given.journal) as journal:
        changed = journal.reindex(PodProjector())
    put([f"{changed} projections were not what the records fold to" + (", and are now" if changed else "")])
    return 0
