# SPDX-License-Identifier: Apache-2.0
"""`replay state`: the pod as it was at a position. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from journal import Record
from kata_fsm.machines import container
from kata_fsm.machines.pod import summary
from kata_fsm.replay import moments
from kata_fsm.replay.escape import harmless
from kata_fsm.replay.story import Row, Story, tell
from kata_fsm.replay.verdict import held

STATE_SCHEMA = "kata-fsm.replay.state/1"


def until(records: Sequence[Record], row: Row, stream: str) -> Story:
    """The story up to and including `row`."""
    return tell([record for record in records if record.seq <= row.seq], stream)


def document(story: Story) -> dict[str, Any]:
    """The folded pod after the story's last record, and the effects that were under way."""
    pod, row = story.pod, story.last
    return {
        "schema": STATE_SCHEMA,
        "stream": story.stream,
        "at": {"seq": row.seq, "rev": row.rev, "time": moments.iso_utc(row.wall_ns)},
        "states": summary(pod),
        "status": {subject: container.OCI_STATUS.get(unit.state) for subject, unit in pod.containers.items()},
        "facts": {f"{machine} {subject}".strip(): unit.facts for machine, subject, unit in pod.units() if unit.facts},
        "open": [{"kind": intent.kind, "subject": intent.subject} for intent in story.open],
        "held": held(story),
    }


def render(story: Story, *, utc: bool = False) -> Iterator[str]:
    """One line per machine."""
    row = story.last
    yield harmless(f"{story.stream} after seq {row.seq} (r{row.rev}), {moments.date_time(row.wall_ns, utc=utc)}")
    for machine, subject, unit in story.pod.units():
        status = container.OCI_STATUS.get(unit.state) if machine == "container" else None
        told = f"{unit.state}  (OCI {status})" if status else unit.state
        yield harmless(f"  {f'{machine} {subject}':<24} {told}")
    for intent in story.open:
        yield harmless(f"  open: {intent.kind} {intent.subject}".rstrip())
