# SPDX-License-Identifier: Apache-2.0
"""`audit`: who did what, and what became of it.

audit [list] [--since T] [--subject ID]          one sentence per event; the last 24 hours by default
audit export --format jsonl [-O FILE]            one JSON object per event; everything by default
audit head [-O FILE]                             the journal's head, to keep where its writers cannot reach
audit verify [--since-head FILE] [--pubkey K]    was nothing changed, and has the log only grown since?
audit schema                                     the JSON Schema of an event
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from kata_fsm.errors import EXIT_DAMAGED
from kata_fsm.replay.arguments import Parser, parser, put

if TYPE_CHECKING:
    from journal import RecordSource
    from kata_fsm.audit.export import Picked
    from kata_fsm.cli.context import Context

SENTENCES_SINCE = "-24h"


def run(context: Context, argv: list[str]) -> int:
    """Print or write what the command line asks for."""
    verb = argv[0] if argv and argv[0] in _VERBS else "list"
    return _VERBS[verb](argv[1:] if argv and argv[0] == verb else argv)


def _add_selection(options: Parser, since: str | None) -> None:
    add = options.add_argument
    add(
        "-S",
        "--since",
        default=since,
        metavar="T",
        help="`2026-11-23 11:00`, `11:00`, `-10min`, `yesterday`, `@SECONDS`",
    )
    add("-U", "--until", metavar="T", help="events before this time")
    add("--subject", metavar="ID", help="only this sandbox, named as for `kata-fsm replay`; of an id, every life")
    add("--action", metavar="A,...", help="only these actions (`kata-fsm audit schema` lists them)")
    add("--outcome", choices=("allowed", "failed", "pending", "observed"))


def _pick(given: argparse.Namespace) -> Picked:
    from kata_fsm.audit.export import Wanted, pick
    from kata_fsm.replay.moments import parse_instant
    from kata_fsm.replay.reading import open_journal
    from kata_fsm.world import WORLD

    now = WORLD.wall_ns()
    with open_journal(given.journal) as journal:
        wanted = Wanted(
            _streams(journal, given.subject),
            parse_instant(given.since, now) if given.since else None,
            parse_instant(given.until, now) if given.until else None,
            _actions(given.action),
            given.outcome,
        )
        return pick(journal, wanted)


def _streams(journal: RecordSource, subject: str | None) -> frozenset[str] | None:
    """The streams that are meant: of an id, every life it ever had."""
    from kata_fsm.replay.subject import resolve, split_stream

    if subject is None:
        return None
    meant = resolve(journal, subject)
    earlier = meant.earlier if split_stream(meant.stream)[0] == subject else ()
    return frozenset((meant.stream, *earlier))


def _actions(text: str | None) -> frozenset[str]:
    from kata_fsm.audit.schema import ACTIONS
    from kata_fsm.errors import EXIT_USAGE, UsageError

    asked = frozenset(text.split(",")) if text else frozenset()
    if unknown := sorted(asked - set(ACTIONS)):
        error = UsageError(f"there is no action `{unknown[0]}`", hint="actions are " + ", ".join(ACTIONS))
        error.exit_code = EXIT_USAGE
        raise error
    return asked


def _code(picked: Picked) -> int:
    from kata_fsm.replay.escape import harmless

    for line in picked.damage:
        sys.stderr.write(harmless(f"damaged: {line}; events after that are missing") + "\n")
    return EXIT_DAMAGED if picked.damage else 0


def _list(argv: list[str]) -> int:
    options = parser("audit", "Who did what. Also: audit export, audit schema.")
    _add_selection(options, SENTENCES_SINCE)
    picked = _pick(options.parse_args(argv))
    from kata_fsm.audit.sentences import sentence

    put(map(sentence, picked.events))
    return _code(picked)


def _export(argv: list[str]) -> int:
    options = parser("audit export", "Normalised events for a log collector.")
    options.add_argument("--format", choices=("jsonl",), default="jsonl", help="jsonl: one JSON object per line")
    options.add_argument(
        "-O", "--output", default="-", metavar="FILE", help="where to, `-` (default) is standard output"
    )
    _add_selection(options, None)
    given = options.parse_args(argv)
    picked = _pick(given)
    from kata_fsm.audit.export import json_lines, write_file

    if given.output == "-":
        put(json_lines(picked.events))
    else:
        write_file(given.output, json_lines(picked.events))
    return _code(picked)


def _head(argv: list[str]) -> int:
    options = parser("audit head", "The journal's head: keep it elsewhere, and `audit verify --since-head` compares.")
    options.add_argument(
        "-O", "--output", default="-", metavar="FILE", help="where to, `-` (default) is standard output"
    )
    given = options.parse_args(argv)
    from kata_fsm.audit.export import write_file
    from kata_fsm.audit.heads import text_of
    from kata_fsm.replay.reading import open_host_journal
    from kata_fsm.world import WORLD

    with open_host_journal(given.journal) as journal:
        text = text_of(journal, WORLD.wall_ns())
    if given.output == "-":
        put([text])
    else:
        write_file(given.output, [text])
    return 0


def _verify(argv: list[str]) -> int:
    options = parser("audit verify", "Was nothing changed, and has the log only grown since a head that was kept?")
    options.add_argument("--since-head", metavar="FILE", help="what `audit head` once wrote")
    options.add_argument(
        "--pubkey", action="append", default=[], metavar="FILE", help="who must have signed checkpoints"
    )
    given = options.parse_args(argv)
    from kata_fsm.audit.heads import check_growth
    from kata_fsm.cli.journal.judging import code, find, finding_lines
    from kata_fsm.replay.reading import open_host_journal
    from kata_fsm.world import journal_dir

    findings = find(given.journal or journal_dir(), key_files=given.pubkey)
    if findings:
        put(finding_lines(findings))
        return code(findings)
    with open_host_journal(given.journal) as journal:
        put([check_growth(journal, given.since_head)])
    return 0


def _schema(argv: list[str]) -> int:
    parser("audit schema", "The JSON Schema of an event.").parse_args(argv)
    from kata_fsm.audit.schema import json_schema
    from kata_fsm.replay.jsonout import dumps

    put([dumps(json_schema(), indent=2)])
    return 0


_VERBS = {"list": _list, "export": _export, "head": _head, "verify": _verify, "schema": _schema}
