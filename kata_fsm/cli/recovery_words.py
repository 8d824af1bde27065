# SPDX-License-Identifier: Apache-2.0
"""What `recover` prints: believed, observed, steps; orphans; what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from kata_fsm.replay.escape import harmless
from kata_fsm.replay.jsonout import dumps

if TYPE_CHECKING:
    from kata_fsm.cli.orphans import Removal
    from kata_fsm.cli.recovering import Outcome
    from kata_fsm.survey.orphans import Orphan
    from kata_fsm.survey.plan import Plan
    from kata_fsm.survey.surveying import Survey

SCHEMA = "kata-fsm.recover/1"
TRACES_SHOWN = 3  # of each kind


def lines(
    found: Survey,
    plans: list[Plan],
    orphans: list[Orphan],
    outcomes: list[Outcome],
    removals: list[Removal],
    *,
    applied: bool,
) -> Iterator[str]:
    """Everything, for people. A guest or a bundle may have named things: a terminal is not obeyed."""
    if found.missing:
        yield "there is no journal: nothing is known of any sandbox"
    by_stream = {outcome.stream: outcome for outcome in outcomes}
    removed = {removal.orphan.uid: removal for removal in removals}
    for plan in plans:
        yield from map(harmless, _plan_lines(plan))
        if plan.stream in by_stream:
            yield from map(harmless, outcome_lines(plan, by_stream[plan.stream]))
    for orphan in orphans:
        yield from map(harmless, _orphan_lines(orphan))
        if orphan.uid in removed:
            yield from map(harmless, removal_lines(removed[orphan.uid]))
    yield _sum(found, plans, orphans, removals, applied=applied)


def _plan_lines(plan: Plan) -> Iterator[str]:
    yield f"{plan.sandbox or plan.stream}  ({plan.uid}, {plan.kind})"
    yield f"  believed  {plan.believed}"
    yield f"  observed  {plan.observed}"
    yield f"  steps     {' → '.join([*plan.steps, *([plan.ends] if plan.ends else [])])}"


def outcome_lines(plan: Plan, outcome: Outcome) -> Iterator[str]:
    """What came of one sandbox."""
    for line in outcome.said:
        yield f"  {line}"
    if outcome.ok:
        yield f"  done      sandbox `{plan.sandbox}` is `{outcome.state}`"
    else:
        yield f"  failed    {outcome.error}" + (f" ({outcome.hint})" if outcome.hint else "")


def _orphan_lines(orphan: Orphan) -> Iterator[str]:
    yield f"orphan {orphan.uid}" + (f" ({orphan.name})" if orphan.name else "") + f": {orphan.why}"
    kinds: dict[str, list[str]] = {}
    for trace in orphan.traces:
        kinds.setdefault(trace.kind, []).append(trace.describe())
    for told in kinds.values():  # a container has a cgroup in each of a dozen hierarchies: --json has them all
        yield from (f"  {text}" for text in told[:TRACES_SHOWN])
        if len(told) > TRACES_SHOWN:
            yield f"  … and {len(told) - TRACES_SHOWN} more"


def removal_lines(removal: Removal) -> Iterator[str]:
    """What came of one orphan."""
    for left in removal.left:
        yield f"  stays     {left.what}: {left.why} ({left.hint})"
    if not removal.left:
        yield f"  removed   all of orphan {removal.orphan.uid}"
    if removal.unrecorded:
        yield f"  warning   the journal does not tell of it: {removal.unrecorded}"


def _sum(found: Survey, plans: list[Plan], orphans: list[Orphan], removals: list[Removal], *, applied: bool) -> str:
    if not plans and not orphans:
        return f"{_many(len(found.plans), 'sandbox', 'sandboxes')} looked at: nothing to do"
    steps = sum(len(plan.steps) for plan in plans)
    parts = [_many(len(plans), "sandbox", "sandboxes"), _many(steps, "step"), _many(len(orphans), "orphan")]
    told = ", ".join(parts) + "."
    keeps = bool(orphans) and len(removals) < len(orphans)
    how = " Orphans are removed by `--apply --orphans kill`, or one by one by `recover remove UID`." if keeps else ""
    return told + ("" if applied else " Nothing was changed. Run with --apply.") + how


def _many(number: int, one: str, more: str = "") -> str:
    return f"{number} {one if number == 1 else more or one + 's'}"


def document(
    found: Survey, plans: list[Plan], orphans: list[Orphan], outcomes: list[Outcome], removals: list[Removal]
) -> str:
    """Everything, for programs."""
    plain: Any = msgspec.to_builtins
    done = {outcome.stream: plain(outcome) for outcome in outcomes}
    removed = {removal.orphan.uid: plain(removal.left) for removal in removals}
    return dumps(
        {
            "schema": SCHEMA,
            "journal": not found.missing,
            "looked_at": len(found.plans),
            "sandboxes": [{**plain(plan), "outcome": done.get(plan.stream)} for plan in plans],
            "orphans": [
                {**plain(orphan), "removed": orphan.uid in removed, "left": removed.get(orphan.uid)}
                for orphan in orphans
            ],
        },
        indent=2,
    )
