# SPDX-License-Identifier: Apache-2.0
"""A place in a story, as people write it.

`128` (seq), `r7` (rev), `head` (the last record), `head~3`, `state:running` (the first record after which the sandbox or a
container is in that state), `state:running#2`, `cause:vm_killed` (the first record that carries the cause), or an instant
(`@1795431727`, `11:02:07`, ISO 8601): the last record not after it.
"""

from __future__ import annotations

import re

from kata_fsm.errors import EXIT_USAGE, NotFoundError, UsageError
from kata_fsm.machines import container
from kata_fsm.replay.moments import parse_instant
from kata_fsm.replay.story import Row, Story


def locate(story: Story, at: str, now_ns: int) -> Row:
    """The row that `at` names. Raises `NotFoundError` if the story has none, `UsageError` if it is no position."""
    found = _locate(story, at.strip(), now_ns)
    if found is None:
        extent = f"seq {story.first.seq}..{story.last.seq}, r{story.first.rev}..r{story.last.rev}"
        raise NotFoundError(f"`{at}` is nowhere in the story of `{story.stream}`", hint=f"its records are {extent}")
    return found


def _locate(story: Story, at: str, now_ns: int) -> Row | None:
    rows = story.rows
    if re.fullmatch(r"\d{1,18}", at):
        return next((row for row in rows if row.seq == int(at)), None)
    if re.fullmatch(r"r\d{1,18}", at):
        return next((row for row in rows if row.rev == int(at[1:])), None)
    if head := re.fullmatch(r"head(?:~(\d{1,18}))?", at):
        back = int(head[1] or 0)
        return rows[-1 - back] if back < len(rows) else None
    if state := re.fullmatch(r"state:([a-z]+)(?:#(\d{1,9}))?", at):
        return _nth([row for row in rows if _enters(row, state[1])], int(state[2] or 1))
    if cause := re.fullmatch(r"cause:([a-z_]+)(?:#(\d{1,9}))?", at):
        return _nth([row for row in rows if _cause_kind(row) == cause[1]], int(cause[2] or 1))
    try:
        instant = parse_instant(at, now_ns)
    except UsageError as error:
        hint = "write `128`, `r7`, `head~3`, `state:running`, `cause:vm_killed` or a time"
        wrong = UsageError(f"`{at}` is no position", hint=hint)
        wrong.exit_code = EXIT_USAGE
        raise wrong from error
    return next((row for row in reversed(rows) if row.wall_ns <= instant), None)


def _nth(rows: list[Row], number: int) -> Row | None:
    return rows[number - 1] if 0 < number <= len(rows) else None


def _enters(row: Row, state: str) -> bool:
    """Whether a sandbox enters `state`, or a container enters it or the OCI status of that name."""
    if row.lane != "move" or row.source == row.dest:
        return False
    if row.machine == "sandbox":
        return row.dest == state
    if row.machine != "container":
        return False
    before, after = container.OCI_STATUS.get(row.source), container.OCI_STATUS.get(row.dest)
    return row.dest == state or (after == state and before != state)


def _cause_kind(row: Row) -> str | None:
    cause = row.detail.get("cause")
    kind = cause.get("kind") if isinstance(cause, dict) else None
    return kind if isinstance(kind, str) else None
