# SPDX-License-Identifier: Apache-2.0
"""`recover`: what is left over, and what will be done about it.

recover [SUBJECT | --all]          believed, observed, steps of every sandbox that needs it, and orphans; changes nothing
recover --apply [--reason TEXT]    do it; orphans are only removed with `--orphans kill`
recover --check                    say nothing; exit 9 when something is pending
recover resolve SUBJECT --to failed --reason TEXT      force one sandbox to its end
recover remove UID|PID --reason TEXT                   remove one orphan
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kata_fsm.errors import (
    EXIT_FAILED,
    EXIT_PENDING,
    EXIT_READ_ONLY,
    CallerError,
    NotFoundError,
    UsageError,
    WorldError,
)
from kata_fsm.replay.arguments import Parser, put

if TYPE_CHECKING:
    from kata_fsm.cli.context import Context
    from kata_fsm.cli.orphans import Removal
    from kata_fsm.cli.recovering import Outcome
    from kata_fsm.survey.orphans import Orphan
    from kata_fsm.survey.plan import Plan
    from kata_fsm.survey.surveying import Survey

REASON = "recover --apply"
ONLY = ("leaks", "stuck", "unknown")
ONLY_HELP = "leaks: orphans; stuck: failed clean-ups; unknown: sandboxes that nobody supervises. May be repeated"


def run(context: Context, argv: list[str]) -> int:
    """Plan, or do what the command line asks for."""
    verb = argv[0] if argv and argv[0] in _VERBS else ""
    return _VERBS[verb](context, argv[1:]) if verb else _recover(context, argv)


def _options(argv: list[str]) -> argparse.Namespace:
    about = "Say what is left over and what would be done about it. Also: recover resolve, recover remove."
    options = Parser(prog="kata-fsm recover", description=about, allow_abbrev=False)
    add = options.add_argument
    add("subject", nargs="?", metavar="SUBJECT", help="a sandbox's or container's id, or a uid (default: all)")
    add("--all", action="store_true", help="every sandbox and orphan of this host, whatever its --root (the default)")
    add("--apply", action="store_true", help="do it")
    add("--check", action="store_true", help="print nothing; exit 9 when something is pending")
    add("--reason", default=REASON, metavar="TEXT", help="why; recorded")
    add(
        "--orphans", choices=("keep", "kill"), default="keep", help="kill: with --apply, remove orphans (default: keep)"
    )
    add("--only", action="append", choices=ONLY, default=[], help=ONLY_HELP)
    add("--json", action="store_true", help="one JSON object")
    given = options.parse_args(argv)
    if given.apply and given.check:
        options.error("--apply and --check exclude each other")
    if given.subject and given.all:
        options.error("SUBJECT and --all exclude each other")
    return given


def _recover(context: Context, argv: list[str]) -> int:
    given = _options(argv)
    found = _survey()
    plans, orphans = _chosen(found, given)
    if given.check:
        return EXIT_PENDING if plans or orphans else 0
    outcomes: list[Outcome] = []
    removals: list[Removal] = []
    if given.apply:
        from kata_fsm.cli import orphans as taking
        from kata_fsm.cli.recovering import recover_all

        outcomes = recover_all(context, plans, given.reason)
        removals = taking.take_away(context, orphans, given.reason) if given.orphans == "kill" else []
    from kata_fsm.cli.recovery_words import document, lines

    if given.json:
        put([document(found, plans, orphans, outcomes, removals)])
    else:
        put(lines(found, plans, orphans, outcomes, removals, applied=given.apply))
    failed = not all(outcome.ok for outcome in outcomes) or any(removal.left for removal in removals)
    return EXIT_FAILED if failed else 0


def _survey() -> Survey:
    from kata_fsm.replay.reading import map_errors
    from kata_fsm.survey.surveying import survey
    from kata_fsm.world import WORLD, journal_dir

    with map_errors():
        found = survey(WORLD, WORLD.host_id())
    if found.foreign:
        error = WorldError(
            f"journal `{journal_dir()}` belongs to `{found.foreign}`, and this is `{WORLD.host_id()}`",
            hint="it can be read and replayed here",
        )
        error.exit_code = EXIT_READ_ONLY
        raise error
    return found


def _chosen(found: Survey, given: argparse.Namespace) -> tuple[list[Plan], list[Orphan]]:
    """The plans with something to do and the orphans that are meant."""
    from kata_fsm.survey.plan import STUCK, UNKNOWN_KINDS

    plans, orphans = [plan for plan in found.plans if plan.pending], list(found.orphans)
    if given.subject:
        stream, uid = _meant(found, given.subject)
        plans = [plan for plan in plans if plan.stream == stream]
        orphans = [orphan for orphan in orphans if orphan.uid == uid]
    if given.only:
        wanted = (UNKNOWN_KINDS if "unknown" in given.only else frozenset()) | ({STUCK} & _named(given.only))
        plans = [plan for plan in plans if plan.kind in wanted]
        orphans = orphans if "leaks" in given.only else []
    return plans, orphans


def _named(only: list[str]) -> set[str]:
    from kata_fsm.survey.plan import STUCK

    return {STUCK} if "stuck" in only else set()


def _meant(found: Survey, subject: str) -> tuple[str, str]:
    """(stream, uid) of a subject: an orphan's uid, or whatever `replay` takes."""
    for orphan in found.orphans:
        if subject == orphan.uid:
            return "", orphan.uid
    if found.missing:
        raise NotFoundError(f"there is neither a journal nor an orphan `{subject}`")
    from kata_fsm.replay.reading import open_journal
    from kata_fsm.replay.subject import resolve, split_stream

    with open_journal() as journal:
        stream = resolve(journal, subject).stream
    return stream, split_stream(stream)[1]


# --- resolve, remove --------------------------------------------------------------------------------------------------


def _reasoned(prog: str, about: str) -> Parser:
    options = Parser(prog=f"kata-fsm {prog}", description=about, allow_abbrev=False)
    options.add_argument("subject", metavar="SUBJECT")
    options.add_argument("--reason", required=True, metavar="TEXT", help="why; recorded")
    return options


def _reason(text: str) -> str:
    if not text.strip():
        raise UsageError("--reason is empty: say why, it is recorded")
    return text


def _resolve(context: Context, argv: list[str]) -> int:
    options = _reasoned("recover resolve", "Force a sandbox to its end. What cannot be released is given up, and told.")
    options.add_argument("--to", required=True, choices=("failed",), help="the state that it ends in")
    given = options.parse_args(argv)
    reason = _reason(given.reason)
    found = _survey()
    stream, _ = _meant(found, given.subject)
    plan = next((plan for plan in found.plans if plan.stream == stream), None)
    if plan is None:
        raise CallerError(f"sandbox `{given.subject}` has been deleted: there is nothing to resolve")
    from kata_fsm.cli.recovering import resolve
    from kata_fsm.cli.recovery_words import outcome_lines

    outcome = resolve(context, plan, reason)
    put(outcome_lines(plan, outcome))
    return 0 if outcome.ok else EXIT_FAILED


def _remove(context: Context, argv: list[str]) -> int:
    options = _reasoned("recover remove", "Remove one orphan, named by its uid or by the pid of one of its processes.")
    given = options.parse_args(argv)
    reason = _reason(given.reason)
    found = _survey()
    orphan = next((each for each in found.orphans if given.subject in _names(each)), None)
    if orphan is None:
        raise NotFoundError(f"there is no orphan `{given.subject}`", hint="`kata-fsm recover` lists them")
    from kata_fsm.cli.orphans import take_away
    from kata_fsm.cli.recovery_words import removal_lines

    (removal,) = take_away(context, [orphan], reason)
    put(removal_lines(removal))
    return EXIT_FAILED if removal.left else 0


def _names(orphan: Orphan) -> set[str]:
    return {orphan.uid, *(str(trace.identity.pid) for trace in orphan.traces if trace.identity is not None)}


_VERBS = {"resolve": _resolve, "remove": _remove}
