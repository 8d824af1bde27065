# SPDX-License-Identifier: Apache-2.0
"""How a sandbox ended, what it still holds, and how long its phases took. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from kata_fsm.machines import container, network, sandbox, share, vm
from kata_fsm.machines.pod import TABLES, init_of
from kata_fsm.replay.story import Row, Story, apart_ms

_HOLDERS = {"vm": vm.TABLE, "network": network.TABLE, "share": share.TABLE}


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """`word`: `OK` (ended as wanted, exit code 0 or by request), `EXITED` (the workload ended with another code),
    `FAILED`, or, while the records leave it alive, what it was doing: `CREATING`, `CREATED`, `RUNNING`, `PAUSED`,
    `STOPPING`, or `EMPTY` when nothing of ours is in the stream.
    """

    word: str
    live: bool
    deleted: bool
    cause: dict[str, Any] | None = None
    exit_code: int | None = None

    @property
    def label(self) -> str:
        """The word for people; a deleted sandbox says so."""
        return f"{self.word}, deleted" if self.deleted else self.word


class Effects(msgspec.Struct, frozen=True):
    """How many effects were performed, failed, were given up (late or cancelled), and wait for an outcome."""

    done: int
    failed: int
    given_up: int
    open: int


class Spans(msgspec.Struct, frozen=True, omit_defaults=True):
    """Milliseconds: from the first record until the sandbox's container was created; of its start; of its init process
    (up to the last record while that runs); of the tear-down. None where it did not come to that.
    """

    created_ms: float | None = None
    started_ms: float | None = None
    ran_ms: float | None = None
    stopped_ms: float | None = None
    running: bool = False


def judge(story: Story) -> Verdict:
    """The verdict of a story."""
    pod = story.pod
    state = pod.sandbox.state
    cause = pod.sandbox.facts.get("cause")
    code = pod.unit("process", init_of(pod.id)).facts.get("exit_code")
    live = state in sandbox.LIVE
    return Verdict(
        _live_word(story) if live or state == sandbox.ABSENT else _end_word(story, cause, code),
        live,
        state == sandbox.DELETED,
        cause if isinstance(cause, dict) else None,
        code if isinstance(code, int) else None,
    )


def _live_word(story: Story) -> str:
    pod = story.pod
    if pod.sandbox.state == sandbox.ABSENT:
        return "EMPTY"
    if pod.sandbox.state == sandbox.STOPPING:
        return "STOPPING"
    return container.OCI_STATUS.get(pod.unit("container", pod.id).state, "creating").upper()


def _end_word(story: Story, cause: Any, code: Any) -> str:
    if story.moves("sandbox", "fail"):
        return "FAILED"
    wanted = isinstance(cause, dict) and cause.get("kind") == "operator"
    return "OK" if code == 0 or wanted else "EXITED"


def held(story: Story) -> list[str]:
    """What the pod's states say is still held on the host: `vm running`, `container web stuck`, ..."""
    found = []
    for name, table in _HOLDERS.items():
        state = story.pod.unit(name, "").state
        if state != table.initial and state not in table.terminal:
            found.append(f"{name} {state}")
    for subject, unit in story.pod.containers.items():
        if unit.state not in container.RELEASED and unit.state != container.DECLARED:
            found.append(f"container {subject} {unit.state}")
    return found


def count_effects(story: Story) -> Effects:
    """What became of the intents."""
    outcomes = [row for row in story.rows if row.lane == "outcome"]
    answered = [row for row in outcomes if not row.late]
    return Effects(
        sum(row.ok is True for row in answered),
        sum(row.ok is not True for row in answered),
        sum(row.late for row in outcomes),
        len(story.open),
    )


def spans(story: Story) -> Spans:
    """How long the phases of the sandbox and of its own container took."""
    me = story.pod.id
    first = story.first
    created = _first(story, "container", "created", me)
    begun, started = _first(story, "container", "start", me), _first(story, "container", "started", me)
    run, over = _first(story, "process", "run", init_of(me)), _first(story, "process", "exited", init_of(me))
    stop = _first(story, "sandbox", "stop")
    ended = _first(story, "sandbox", "stopped") or _first(story, "sandbox", "fail")
    return Spans(
        apart_ms(first, created) if created else None,
        apart_ms(begun, started) if begun and started else None,
        apart_ms(run, over or story.last) if run else None,
        apart_ms(stop, ended) if stop and ended else None,
        run is not None and over is None,
    )


def _first(story: Story, machine: str, trigger: str, subject: str = "") -> Row | None:
    found = story.moves(machine, trigger, subject)
    return found[0] if found else None


def unfinished(story: Story) -> list[str]:
    """The effects whose outcome the journal does not have, in words."""
    asked = {(row.what, row.subject): row for row in story.rows if row.lane == "intent" and row.pair is None}
    found = []
    for intent in story.open:
        row = asked.get(intent.key)
        since = "" if row is None else f" since seq {row.seq}"
        found.append(f"{intent.kind}{' ' + intent.subject if intent.subject else ''}{since}")
    return found


def states(story: Story) -> dict[str, str]:
    """Every machine of the pod that has left its initial state: `vm` → `running`, `process web/init` → `exited`."""
    return {
        f"{machine} {subject}".strip(): unit.state
        for machine, subject, unit in story.pod.units()
        if unit.state != TABLES[machine].initial
    }
