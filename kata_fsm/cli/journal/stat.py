# SPDX-License-Identifier: Apache-2.0
"""`journal stat`: how large it is, how far it goes, whose it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kata_fsm.replay.arguments import parser, put

if TYPE_CHECKING:
    from journal import Journal

STAT_SCHEMA = "kata-fsm.journal.stat/1"


def run(argv: list[str]) -> int:
    """Print the figures."""
    options = parser("journal stat", "What the journal holds: counts, sizes, head, owner, the last checkpoint.")
    options.add_argument("--json", action="store_true", help="one JSON object")
    given = options.parse_args(argv)
    from kata_fsm.replay.jsonout import dumps
    from kata_fsm.replay.reading import open_host_journal

    with open_host_journal(given.journal) as journal:
        figures = _figures(journal)
    put([dumps({"schema": STAT_SCHEMA, **figures}, indent=2)] if given.json else _lines(figures))
    return 0


def _figures(journal: Journal) -> dict[str, Any]:
    import msgspec

    from kata_fsm.replay.moments import iso_utc

    figures: dict[str, Any] = msgspec.to_builtins(journal.stat())
    checkpoint = journal.last_checkpoint()
    oldest = next(journal.read(), None)
    return {
        **figures,
        "oldest": None if oldest is None else {"seq": oldest.seq, "time": iso_utc(oldest.wall_ns)},
        "checkpoint": None
        if checkpoint is None
        else {
            "seq": checkpoint.seq,
            "time": iso_utc(checkpoint.wall_ns),
            "signed": checkpoint.data.get("signature") is not None,
        },
        "imports": journal.imports(),
    }


def _lines(of: dict[str, Any]) -> Iterator[str]:
    used, live = size(of["used_bytes"]), size(of["live_bytes"])
    yield f"path        {of['path']}"
    yield f"records     {of['records']} in {of['streams']} streams, {of['pruned']} pruned"
    yield f"beside      {of['projections']} projections, {of['snapshots']} snapshots"
    yield f"head        seq {of['head']['seq']}, sha256:{of['head']['digest']}"
    yield f"identity    {of['identity'] or 'none so far'}"
    yield f"owner       {of['owner'] or 'nobody'}"
    if of["oldest"]:
        yield f"oldest      seq {of['oldest']['seq']}, {of['oldest']['time']}"
    if of["checkpoint"]:
        signed = "signed" if of["checkpoint"]["signed"] else "not signed"
        yield f"checkpoint  seq {of['checkpoint']['seq']}, {of['checkpoint']['time']}, {signed}"
    else:
        yield "checkpoint  none"
    yield f"size        {live} in use, {used} used so far, file of {size(of['file_bytes'])}, map of {size(of['map_bytes'])}"
    yield f"format      {of['format']}, {'durable' if of['sync'] else 'not durable'}"
    yield f"readers     {of['readers']}"
    if of["imports"]:
        yield f"imports     {', '.join(of['imports'])}"


def size(count_bytes: int) -> str:
    """`512 B`, `3.4 MiB`."""
    number = float(count_bytes)
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
