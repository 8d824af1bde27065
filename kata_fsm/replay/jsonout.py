# SPDX-License-Identifier: Apache-2.0
"""The story for programs. `schema` names the shape; within a version of it, keys are only ever added."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from kata_fsm.replay import moments
from kata_fsm.replay.story import Row, Story
from kata_fsm.replay.subject import split_stream
from kata_fsm.replay.text import View, shown
from kata_fsm.replay.verdict import count_effects, held, judge, spans, states
from kata_fsm.replay.why import why_ended

STORY_SCHEMA = "kata-fsm.replay/1"
RECORD_SCHEMA = "kata-fsm.replay.record/1"


def dumps(value: Any, *, indent: int | None = None) -> str:
    """JSON in ASCII, so that no control or direction character of a guest's reaches a terminal."""
    separators = (",", ":") if indent is None else None
    return json.dumps(value, indent=indent, separators=separators).replace("\x7f", "\\u007f")


def summary_document(story: Story, standing: str = "") -> dict[str, Any]:
    """Everything but the records."""
    verdict = judge(story)
    name, uid = split_stream(story.stream)
    return {
        "schema": STORY_SCHEMA,
        "stream": story.stream,
        "sandbox": name,
        "uid": uid,
        "verdict": verdict.word.lower(),
        "live": verdict.live,
        "deleted": verdict.deleted,
        "cause": verdict.cause,
        "exit_code": verdict.exit_code,
        "why": [msgspec.to_builtins(link) for link in why_ended(story)],
        "standing": standing or None,
        "damage": story.damage,
        "born": moments.iso_utc(story.first.wall_ns),
        "last": moments.iso_utc(story.last.wall_ns),
        "spans": msgspec.to_builtins(spans(story)),
        "states": states(story),
        "effects": msgspec.to_builtins(count_effects(story)),
        "open": [{"kind": intent.kind, "subject": intent.subject} for intent in story.open],
        "held": held(story),
        "divergences": len(story.divergences),
        "versions": story.versions,
        "seq": {"first": story.first.seq, "last": story.last.seq, "count": len(story.rows)},
    }


def document(story: Story, view: View) -> str:
    """The whole story as one JSON object."""
    records = [row_document(row) for row in shown(story, view)]
    return dumps({**summary_document(story, view.standing), "records": records}, indent=2)


def lines(story: Story, view: View) -> Iterator[str]:
    """One JSON object per record."""
    for row in shown(story, view):
        yield dumps({"schema": RECORD_SCHEMA, "stream": story.stream, **row_document(row)})


def row_document(row: Row) -> dict[str, Any]:
    """One record; keys without a value are left out."""
    built: dict[str, Any] = msgspec.to_builtins(row)
    return {"time": moments.iso_utc(row.wall_ns), **built}
