# SPDX-License-Identifier: Apache-2.0
"""`replay list`: one line per sandbox."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kata_fsm.replay import moments
from kata_fsm.replay.escape import harmless
from kata_fsm.replay.jsonout import dumps, summary_document
from kata_fsm.replay.story import Story, apart_ms
from kata_fsm.replay.subject import split_stream
from kata_fsm.replay.verdict import judge, spans
from kata_fsm.replay.words import short_name

_HEAD = ("SANDBOX", "UID", "BORN", "LASTED", "END", "CAUSE", "CODE", "RECORDS", "CREATED IN")


def render(stories: Iterable[Story], *, utc: bool = False) -> Iterator[str]:
    """A table, in the order given."""
    rows = [_HEAD, *(_row(story, utc) for story in stories)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _row(story: Story, utc: bool) -> tuple[str, ...]:
    verdict = judge(story)
    name, uid = split_stream(story.stream)
    created = spans(story).created_ms
    return (
        harmless(short_name(name)),
        harmless(uid),
        moments.date_time(story.first.wall_ns, utc=utc),
        moments.duration(apart_ms(story.first, story.last)),
        verdict.label,
        harmless(str(verdict.cause.get("kind", "unknown"))) if verdict.cause else "-",
        "-" if verdict.exit_code is None else str(verdict.exit_code),
        str(len(story.rows)) + ("!" if story.damage else ""),
        "-" if created is None else moments.duration(created),
    )


def json_lines(stories: Iterable[Story]) -> Iterator[str]:
    """One summary object per sandbox."""
    for story in stories:
        yield dumps(summary_document(story))
