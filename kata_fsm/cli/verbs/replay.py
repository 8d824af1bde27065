# SPDX-License-Identifier: Apache-2.0
"""`replay`: what happened to a sandbox, and would today's machines agree? Reads records; contacts nobody.

replay [show] [SUBJECT]            the story, verdict first
replay list [--failed]             one line per sandbox
replay state [SUBJECT] --at AT     the folded state at a position
replay check [SUBJECT | --all]     decide every recorded step again; exit 4 where the answer differs
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kata_fsm.errors import EXIT_DAMAGED, EXIT_DIVERGENCE, EXIT_FAILED
from kata_fsm.replay.arguments import count, parser, put

if TYPE_CHECKING:
    from journal import Record, RecordSource
    from kata_fsm.cli.context import Context
    from kata_fsm.replay.story import Story

SUBJECT_HELP = (
    "a sandbox's or container's id, a uid, a unique beginning of one, `latest` (default), `latest:failed`, a bundle's "
    "file or the name of an imported one"
)
AT_HELP = "`128` (seq), `r7`, `head~3`, `state:running`, `cause:vm_killed`, or a time (default: head)"
MACHINES = ("sandbox", "vm", "agent", "network", "share", "container", "process")


def run(context: Context, argv: list[str]) -> int:
    """Print what the command line asks for."""
    verb = argv[0] if argv and argv[0] in _VERBS else "show"
    return _VERBS[verb](argv[1:] if argv and argv[0] == verb else argv)


# --- show -------------------------------------------------------------------------------------------------------------


def _show_options(argv: list[str]) -> argparse.Namespace:
    options = parser("replay", "Tell the story of a sandbox. Also: replay list, replay state, replay check.")
    add = options.add_argument
    add("subject", nargs="?", default="latest", metavar="SUBJECT", help=SUBJECT_HELP)
    add("-o", "--format", choices=("text", "json", "jsonl"), default="text", help="jsonl: one object per record")
    add("--full", action="store_true", help="everything that each record holds, such as the whole argv of QEMU")
    add("--clock", choices=("delta", "wall", "monotonic", "boot"), default="delta", help="delta: since the row before")
    add("--utc", action="store_true", help="times in UTC")
    add("-n", "--lines", type=count, metavar="N", help="only the last N records")
    add(
        "--machine", action="append", choices=MACHINES, default=[], help="only records of this machine; may be repeated"
    )
    add("--no-effects", action="store_true", help="without intents and outcomes")
    return options.parse_args(argv)


def _show(argv: list[str]) -> int:
    options = _show_options(argv)
    from kata_fsm.replay import jsonout, text
    from kata_fsm.replay.reading import open_subject

    with open_subject(options.journal, options.subject) as (journal, subject):
        _, story = _load(journal, subject)
        is_ours = options.journal is None and subject == options.subject
    view = text.View(
        options.clock, options.utc, options.full, not options.no_effects, frozenset(options.machine), options.lines,
        _standing(story, copied=not is_ours),
    )  # fmt: skip
    match options.format:
        case "json":
            put([jsonout.document(story, view)])
        case "jsonl":
            put(jsonout.lines(story, view))
        case _:
            put(text.render(story, view))
    if story.damage:
        return EXIT_DAMAGED
    return EXIT_DIVERGENCE if story.divergences else 0


def _load(journal: RecordSource, subject: str) -> tuple[list[Record], Story]:
    """The records and the story of the stream that is meant."""
    from kata_fsm.errors import DamagedData
    from kata_fsm.replay.reading import read_what_can_be
    from kata_fsm.replay.story import tell
    from kata_fsm.replay.subject import resolve

    meant = resolve(journal, subject)
    records, damage = read_what_can_be(journal, meant.stream)
    if not records:
        hint = "`kata-fsm journal verify` names what is damaged"
        raise DamagedData(f"nothing of `{meant.stream}` can be read: {damage}", hint=hint)
    if meant.earlier:
        count_earlier = len(meant.earlier)
        sys.stderr.write(
            f"note: the id was used {count_earlier} times before; `replay list` has the uids to name them by\n"
        )
    return records, tell(records, meant.stream, damage=damage)


def _standing(story: Story, *, copied: bool) -> str:
    from kata_fsm.replay.liveness import how_it_stands
    from kata_fsm.replay.subject import is_live, split_stream

    if story.damage or not is_live(story.pod):
        return ""
    return how_it_stands(split_stream(story.stream)[1], story.last.boot_id, copied=copied)


# --- list -------------------------------------------------------------------------------------------------------------


def _stories(journal: RecordSource) -> Iterator[Story]:
    """Every sandbox's story, oldest first."""
    from kata_fsm.replay.reading import read_what_can_be
    from kata_fsm.replay.story import tell
    from kata_fsm.replay.subject import born_order

    for info in born_order(journal):
        records, damage = read_what_can_be(journal, info.stream)
        if records:
            yield tell(records, info.stream, damage=damage)


def _list(argv: list[str]) -> int:
    options = parser("replay list", "One line per sandbox, oldest first.")
    options.add_argument("-o", "--format", choices=("text", "jsonl"), default="text")
    options.add_argument("--utc", action="store_true", help="times in UTC")
    options.add_argument("--failed", action="store_true", help="only sandboxes that failed")
    options.add_argument("-n", "--lines", type=count, metavar="N", help="only the last N sandboxes")
    given = options.parse_args(argv)
    from kata_fsm.replay import listing
    from kata_fsm.replay.reading import open_journal
    from kata_fsm.replay.verdict import judge

    with open_journal(given.journal) as journal:
        stories = [story for story in _stories(journal) if not given.failed or judge(story).word == "FAILED"]
    if given.lines is not None:
        stories = stories[max(0, len(stories) - given.lines) :]
    put(listing.json_lines(stories) if given.format == "jsonl" else listing.render(stories, utc=given.utc))
    return 0 if stories else EXIT_FAILED


# --- state ------------------------------------------------------------------------------------------------------------


def _state(argv: list[str]) -> int:
    options = parser("replay state", "The state of a sandbox's machines after a record.")
    options.add_argument("subject", nargs="?", default="latest", metavar="SUBJECT", help=SUBJECT_HELP)
    options.add_argument("--at", default="head", metavar="AT", help=AT_HELP)
    options.add_argument("-o", "--format", choices=("text", "json"), default="text")
    options.add_argument("--utc", action="store_true", help="times in UTC")
    given = options.parse_args(argv)
    from kata_fsm.replay import jsonout, snapshot
    from kata_fsm.replay.position import locate
    from kata_fsm.replay.reading import open_subject
    from kata_fsm.world import WORLD

    with open_subject(given.journal, given.subject) as (journal, subject):
        records, story = _load(journal, subject)
    then = snapshot.until(records, locate(story, given.at, WORLD.wall_ns()), story.stream)
    if given.format == "json":
        put([jsonout.dumps(snapshot.document(then), indent=2)])
    else:
        put(snapshot.render(then, utc=given.utc))
    return 0


# --- check ------------------------------------------------------------------------------------------------------------


def _check(argv: list[str]) -> int:
    options = parser("replay check", "Decide every recorded step again, and compare.")
    options.add_argument("subject", nargs="?", default="latest", metavar="SUBJECT", help=SUBJECT_HELP)
    options.add_argument("--all", action="store_true", help="every sandbox in the journal")
    given = options.parse_args(argv)
    from kata_fsm.replay.reading import open_subject

    with open_subject(given.journal, given.subject) as (journal, subject):
        streams = _streams_to_check(journal, subject, every=given.all)
        results = [_check_one(journal, stream) for stream in streams]
    return EXIT_DIVERGENCE if EXIT_DIVERGENCE in results else max(results, default=0)


def _streams_to_check(journal: RecordSource, subject: str, *, every: bool) -> list[str]:
    from kata_fsm.replay.subject import born_order, resolve

    if every:
        return [info.stream for info in born_order(journal)]
    return [resolve(journal, subject).stream]


def _check_one(journal: RecordSource, stream: str) -> int:
    from kata_fsm.replay.checking import compare
    from kata_fsm.replay.escape import harmless
    from kata_fsm.replay.reading import read_what_can_be
    from kata_fsm.replay.story import tell

    records, damage = read_what_can_be(journal, stream)
    found = compare(records, tell(records, stream))
    for divergence in found:
        put(map(harmless, [*divergence.message(), f"hint: {divergence.hint}"]))
    if damage:
        put([harmless(f"{stream}: damaged after {len(records)} records: {damage}")])
    elif not found:
        put([harmless(f"{stream}: {len(records)} records agree with this build")])
    return EXIT_DIVERGENCE if found else EXIT_DAMAGED if damage else 0


_VERBS = {"show": _show, "list": _list, "state": _state, "check": _check}
