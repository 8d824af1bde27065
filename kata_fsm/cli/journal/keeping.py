# SPDX-License-Identifier: Apache-2.0
"""`journal checkpoint`, `prune` and `adopt`: stating the head, keeping the journal small, taking one over."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kata_fsm.cli.journal.opening import asked_by, open_for_writing, stamp
from kata_fsm.cli.journal.stat import size
from kata_fsm.replay.arguments import parser, put

if TYPE_CHECKING:
    from journal import Journal, StreamInfo
    from journal.prune import Cut
    from kata_fsm.cli.context import Context

_SPANS_S = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_SIZES = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

BATCH_STREAMS = 100
"""Streams that one transaction removes: it holds the writer lock for some 0.1 ms a record."""


def checkpoint(context: Context, argv: list[str]) -> int:
    """State the head, signed if a key is given."""
    options = parser("journal checkpoint", "Append a record that states the head: what anybody may compare with later.")
    options.add_argument("--sign", metavar="KEY", help="a private Ed25519 key (PEM, mode 0600) to sign it with")
    options.add_argument("--json", action="store_true", help="one JSON object")
    given = options.parse_args(argv)
    from journal import keys
    from kata_fsm.cli.journal.records import record_json
    from kata_fsm.replay.reading import map_errors

    with map_errors():
        signer = keys.PrivateKey(given.sign) if given.sign else None
    with open_for_writing(given.journal) as journal:
        record = journal.checkpoint(stamp=stamp(), signer=signer)
    told = record.data
    signed = "not signed" if signer is None else f"signed with {signer.public.hex()}"
    put(
        [record_json(record, indent=2)]
        if given.json
        else [f"checkpoint {record.seq}: head seq {told['seq']}, sha256:{told['digest']}, {signed}"]
    )
    return 0


def adopt(context: Context, argv: list[str]) -> int:
    """Take over a journal that another host owns."""
    options = parser("journal adopt", "Make this host the owner of a journal that another one wrote.")
    options.add_argument("--reason", required=True, metavar="TEXT", help="why; it is recorded")
    given = options.parse_args(argv)
    from kata_fsm.errors import WorldError
    from kata_fsm.world import WORLD

    owner = WORLD.host_id()
    if not owner:
        raise WorldError("this host cannot be told from others", hint="give it an /etc/machine-id")
    with open_for_writing(given.journal, foreign=True) as journal:
        record = journal.adopt(owner, stamp=stamp(), reason=given.reason)
    put([f"record {record.seq}: the journal belongs to this host, `{owner}`"])
    return 0


def prune(context: Context, argv: list[str]) -> int:
    """Remove the records of sandboxes that were deleted long enough ago, or until the journal is small enough."""
    given = _prune_options(argv)
    from kata_fsm.world import WORLD

    with open_for_writing(given.journal) as journal:
        before = journal.stat()
        cutoff = None if given.keep is None else WORLD.wall_ns() - given.keep * 1_000_000_000
        reason = {"keep_s": given.keep, "max_bytes": given.max_size, "by": asked_by(context)}
        removed = list(_prune(journal, given, cutoff, reason))
        after = journal.stat()
    if given.json:
        from kata_fsm.replay.jsonout import dumps

        fields = {"schema": "kata-fsm.journal.prune/1", "dry_run": given.dry_run, "removed": removed,
                  "live_bytes": {"before": before.live_bytes, "after": after.live_bytes}}  # fmt: skip
        put([dumps(fields, indent=2)])
        return 0
    put(_told(removed, given, before.live_bytes, after.live_bytes))
    return 0


def _prune_options(argv: list[str]) -> argparse.Namespace:
    options = parser("journal prune", "Remove whole sandboxes that were deleted; a tombstone accounts for each.")
    options.add_argument(
        "--keep", type=_seconds, metavar="SPAN", help="remove those that ended longer ago than this: `30d`, `12h`"
    )
    options.add_argument(
        "--max-size", type=_bytes, metavar="SIZE", help="remove the oldest until no more than this is in use: `256M`"
    )
    options.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    options.add_argument("--json", action="store_true", help="one JSON object")
    given = options.parse_args(argv)
    if given.keep is None and given.max_size is None:
        options.error("give --keep, --max-size or both")
    return given


def _prune(
    journal: Journal, given: argparse.Namespace, cutoff: int | None, reason: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Remove; yield what went: all that is old enough, and more, oldest first, while too much is in use."""
    live = journal.stat().live_bytes
    batch: list[Cut] = []
    told: list[dict[str, Any]] = []

    def flush() -> None:
        nonlocal live
        if batch and not given.dry_run:
            journal.prune(batch, stamp=stamp(), reason=reason, roll_before_ns=cutoff)
            live = journal.stat().live_bytes
        batch.clear()

    for info in _oldest_first(journal):
        last = journal.get(info.last_seq)
        is_old = cutoff is not None and last is not None and last.wall_ns < cutoff
        if not is_old:
            flush()
            if given.max_size is None or live <= given.max_size:
                break
        cut = _cut(journal, info)
        if cut is None:
            continue
        taken = sum(len(each.value) for each in journal.stored([info.stream]))
        batch.append(cut)
        told.append({"stream": info.stream, "records": info.rev, "bytes": taken})
        if given.dry_run:
            live -= taken
        if len(batch) >= BATCH_STREAMS:
            flush()
    flush()
    yield from told


def _oldest_first(journal: Journal) -> list[StreamInfo]:
    return sorted(journal.streams(), key=lambda info: info.last_seq)


def _cut(journal: Journal, info: StreamInfo) -> Cut | None:
    """What to remove of a sandbox; None when it is not over: only a deleted one is, or one that never came to be."""
    from journal.prune import Cut
    from kata_fsm.machines import sandbox
    from kata_fsm.projections import stream_key
    from kata_fsm.snapshots import load

    loaded = load(journal, info.stream)
    if loaded.pod.sandbox.state not in (sandbox.DELETED, sandbox.ABSENT) or loaded.rev != info.rev:
        return None
    return Cut(info.stream, info.rev, (stream_key(info.stream),))


def _told(removed: list[dict[str, Any]], given: argparse.Namespace, before: int, after: int) -> Iterator[str]:
    from kata_fsm.replay.escape import harmless

    verb = "would remove" if given.dry_run else "removed"
    for each in removed:
        yield harmless(f"{verb} {each['stream']}: {each['records']} records, {size(each['bytes'])}")
    records = sum(each["records"] for each in removed)
    yield f"{verb} {len(removed)} sandboxes, {records} records; {size(before)} were in use, now {size(after)}"
    if given.max_size is not None and after > given.max_size and not given.dry_run:
        yield f"still more than {size(given.max_size)}: the rest is of sandboxes that are not deleted"


def _seconds(text: str) -> int:
    found = re.fullmatch(r"(\d{1,9})(s|min|h|d|w)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"`{text}` is no span of time: write `30d`, `12h`, `90min`")
    return int(found[1]) * _SPANS_S[found[2]]


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d{1,12})([BKMG]?)(?:i?B)?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"`{text}` is no size: write `256M`, `1G`")
    return int(found[1]) * _SIZES[found[2]]
