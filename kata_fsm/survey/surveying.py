# SPDX-License-Identifier: Apache-2.0
"""The whole survey: every sandbox that the journal has, and everything on the host that it does not account for."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from journal import Journal, JournalError, JournalMissing
from kata_fsm.cjson import loads_object
from kata_fsm.errors import KataFsmError
from kata_fsm.machines import Pod, sandbox
from kata_fsm.projections import stream_key
from kata_fsm.recovery import observe
from kata_fsm.snapshots import born, load
from kata_fsm.survey import orphans, traces
from kata_fsm.survey.orphans import Orphan
from kata_fsm.survey.plan import UNREADABLE, Plan, make
from kata_fsm.survey.sight import left_behind, look
from kata_fsm.survey.traces import Trace
from kata_fsm.world import World, journal_dir


class Survey(msgspec.Struct, frozen=True):
    """`plans` are of the sandboxes that were asked about, whether there is anything to do or not; `missing`: there is no
    journal at all."""

    plans: tuple[Plan, ...]
    orphans: tuple[Orphan, ...]
    missing: bool = False
    foreign: str = ""


def survey(world: World, owner: str = "") -> Survey:
    """Look at everything. Raises a journal error when there is a journal and it cannot be read: then nobody can say what
    belongs to whom. `owner` is this host: another's journal accounts for nothing here."""
    found = traces.by_uid(traces.everything())
    try:
        journal = Journal.open(journal_dir(), read_only=True)
    except JournalMissing:
        return Survey((), _orphans(found, {}), missing=True)
    with journal:
        whose = journal.owner()
        if owner and whose is not None and whose.owner != owner:
            return Survey((), (), foreign=whose.owner)
        plans, lives, kept = [], {}, dict(found)
        for stream in _streams(journal):
            uid = stream.rpartition("@")[2]
            mine = tuple(found.get(uid, ()))
            plan, state, left = _one(journal, world, stream, mine)
            if plan is not None:
                plans.append(plan)
            if state is not None:
                lives[uid] = state
                kept[uid] = left
    return Survey(tuple(plans), _orphans(kept, lives))


def _streams(journal: Journal) -> Iterator[str]:
    for info in sorted(journal.streams(), key=lambda info: info.first_seq):
        if "@" in info.stream:
            yield info.stream


def _state(journal: Journal, stream: str) -> str | None:
    """What the projection says, so that a long history costs nothing: sandboxes are deleted in the end."""
    value = journal.projection(stream_key(stream))
    try:
        return None if value is None else str(loads_object(value).get("state"))
    except ValueError:
        return None


def _one(
    journal: Journal, world: World, stream: str, mine: tuple[Trace, ...]
) -> tuple[Plan | None, str | None, list[Trace]]:
    """(its plan, its state if there is such a sandbox, which of its traces may not be there)."""
    if _state(journal, stream) == sandbox.DELETED:
        return None, sandbox.DELETED, _settled(Pod(), mine)
    name, _, uid = stream.rpartition("@")
    try:
        pod, _, last = load(journal, stream)
        if pod.sandbox.state == sandbox.ABSENT:
            return None, None, list(mine)
        sight = look(pod, world, born(journal, stream), last, mine)
        plan = make(stream, pod, sight, observe(pod, world, last))
    except (JournalError, KataFsmError, msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        steps = ("nothing: `kata-fsm journal verify` says what is damaged",)
        plan = Plan(stream, name, uid, UNREADABLE, "unknown", f"cannot be read: {error}", "", steps)
        return plan, "unknown", []
    if pod.sandbox.state in sandbox.LIVE or plan.pending:
        return plan, pod.sandbox.state, []
    return plan, pod.sandbox.state, left_behind(pod, mine)


def _settled(pod: Pod, mine: tuple[Trace, ...]) -> list[Trace]:
    """Of a deleted sandbox nothing may be there; a supervisor that is just leaving takes the last of it away."""
    if any(trace.kind == "supervisor" for trace in mine):
        return []
    pod.sandbox.state = sandbox.DELETED
    return left_behind(pod, mine)


def _orphans(found: dict[str, list[Trace]], lives: dict[str, str]) -> tuple[Orphan, ...]:
    made = (orphans.orphan_of(uid, list(items), lives) for uid, items in sorted(found.items()) if items)
    return tuple(orphan for orphan in made if orphan is not None)
