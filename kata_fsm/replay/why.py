# SPDX-License-Identifier: Apache-2.0
"""The chain of causes, back from the end of a sandbox. Pure.

Theory of operation. A transition was fired by an input, or by a rule of the joint-state table. A rule names the states
it was waiting for, so the link before it is the transition that last brought one of those about; where the rule looks at
its own machine only, it is the end of the init process in the same step. The chain stops at an input: an effect that
failed, something the world did, or somebody's command.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

import msgspec

from kata_fsm.machines.pod import container_of, init_of
from kata_fsm.replay.story import Row, Story
from kata_fsm.replay.words import brief, failure_words, short_name, who

if TYPE_CHECKING:
    from kata_fsm.machines.coupling import Rule

LINKS_MAX = 16  # a chain is rarely longer than five; a bound against records that were not written by us


class Link(msgspec.Struct, frozen=True, omit_defaults=True):
    """One cause: the record it stands in, in words, and the rule (with its reason) that made it follow."""

    seq: int
    text: str
    rule: str = ""
    because: str = ""


@cache
def rules() -> Mapping[str, Rule]:
    """The joint-state table by name."""
    from kata_fsm.machines.coupling import RULES

    return {rule.name: rule for rule in RULES}


def why_ended(story: Story) -> list[Link]:
    """Why the sandbox left `ready` (or never got there): the end first. Empty while nobody has ended it."""
    stops = story.moves("sandbox", "stop")
    return chain(story, stops[0]) if stops else []


def chain(story: Story, row: Row) -> list[Link]:
    """The causes of one transition, the transition itself first."""
    at = {other.seq: index for index, other in enumerate(story.rows)}
    links: list[Link] = []
    current: Row | None = row
    while current is not None and len(links) < LINKS_MAX:
        rule = rules().get(current.rule)
        links.append(Link(current.seq, _words(current), current.rule, rule.why if rule else ""))
        current = _before(story, at, current, rule) if current.lane == "move" else None
    return links


def _before(story: Story, at: Mapping[int, int], row: Row, rule: Rule | None) -> Row | None:
    index = at[row.seq]
    if not row.rule:
        return _input_of(story, at, row)
    if rule is not None:
        for other in reversed(story.rows[:index]):
            if _brought_about(other, row, rule) and _own_container(story, other, row):
                return other
    return _own_init(story, index, row) or _linked(story, at, row)


def _brought_about(other: Row, row: Row, rule: Rule) -> bool:
    """Whether `other` led a machine into the joint state that `rule` waited for, leaving out the machine it moved."""
    if other.lane != "move" or other.machine == row.machine or other.machine not in rule.when:
        return False
    related = not (row.subject and other.subject) or container_of_row(other) == container_of_row(row)
    return related and other.dest in rule.when[other.machine] and other.source not in rule.when[other.machine]


def _own_container(story: Story, other: Row, row: Row) -> bool:
    """A sandbox ends with the container that made it, not with any other."""
    return row.machine != "sandbox" or other.machine != "container" or other.subject == story.pod.id


def container_of_row(row: Row) -> str:
    """The container that a row is about; empty for the pod's own machines."""
    return container_of(row.subject) if "/" in row.subject else row.subject


def _own_init(story: Story, index: int, row: Row) -> Row | None:
    """The end of the container's init process, when a container's rule looks at nothing but itself."""
    for other in reversed(story.rows[:index]):
        if other.lane == "move" and other.machine == "process" and other.subject == init_of(row.subject):
            return other
    return None


def _linked(story: Story, at: Mapping[int, int], row: Row) -> Row | None:
    index = at.get(row.cause) if row.cause is not None else None
    return None if index is None else story.rows[index]


def _input_of(story: Story, at: Mapping[int, int], row: Row) -> Row | None:
    """The record of the input that fired a transition: the one it names, or the last input before it."""
    linked = _linked(story, at, row)
    if linked is not None:
        return linked
    before = story.rows[: at[row.seq]]
    return next((other for other in reversed(before) if other.lane in ("command", "outcome", "note")), None)


def _words(row: Row) -> str:
    subject = f" {short_name(row.subject)}" if row.subject else ""
    if row.lane == "move":
        code = row.detail.get("exit_code")
        return f"{row.machine}{subject} {row.dest}" + ("" if code is None else f", code {code}")
    if row.lane == "command":
        force = " --force" if row.detail.get("force") else ""
        return f"{row.what}{force}{subject} {who(row.actor)}".rstrip()
    if row.lane == "outcome":
        return f"{row.what}{subject} {_outcome_words(row)}"
    return f"{row.what}{subject}: {_noted(row)}".rstrip(": ")


def _outcome_words(row: Row) -> str:
    if row.ok:
        return "succeeded"
    return "failed " + failure_words(row.detail)


def _noted(row: Row) -> str:
    cause = row.detail.get("cause")
    if not isinstance(cause, dict):
        return brief(row.detail)
    evidence = cause.get("evidence")
    told = brief(evidence) if isinstance(evidence, dict) else ""
    message = str(cause.get("message") or cause.get("kind", ""))
    return f"{message} ({told})" if told else message
