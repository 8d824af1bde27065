# SPDX-License-Identifier: Apache-2.0
"""`replay check`: what the machines wrote they decide again; what they did not is named from both sides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from journal import NewRecord
from kata_fsm.replay.checking import Divergence, compare
from kata_fsm.replay.reading import open_journal
from kata_fsm.replay.story import tell
from tests.support.pods import Driven, Host
from tests.support.stories import STORIES


def checked(pod: Driven) -> list[Divergence]:
    pod.host.close()
    with open_journal(str(pod.host.path)) as journal:
        records = list(journal.read_stream(pod.stream))
    return compare(records, tell(records, pod.stream))


@pytest.mark.parametrize("passage", STORIES, ids=lambda passage: passage.__name__)
def test_what_the_machines_wrote_they_decide_again(tmp_path: Path, passage: Callable[[Driven], None]) -> None:
    pod = Host(tmp_path / "j").sandbox()
    passage(pod)
    assert checked(pod) == []


def test_records_of_other_writers_are_no_divergence(tmp_path: Path) -> None:
    pod = Host(tmp_path / "j").sandbox().create().start()
    pod.append([NewRecord("outcome", "process.signal", {"subject": "web/init", "signal": 15, "ok": True})])
    pod.append([NewRecord("note", "signal_forwarded", {"process": "web/init", "signal": 2})])
    pod.append([NewRecord("verse", "of a later version", {"rhyme": [1, 2]})])
    assert checked(pod) == []


def test_an_event_that_no_table_has_is_told_from_both_sides(tmp_path: Path) -> None:
    pod = Host(tmp_path / "j").sandbox().create()
    forged = {"machine": "sandbox", "trigger": "ready", "source": "ready", "dest": "booted"}
    pod.append([NewRecord("note", "later", {}), NewRecord("event", "sandbox.ready", forged)])
    (found,) = checked(pod)
    assert found.message() == [
        f"replay: seq {pod.rev} does not match this version's sandbox table",
        "  journal (written by kata-fsm 0.1.0, tables 1)   ready --ready--> booted",
        "  this build (kata-fsm 0.1.0, tables 1)           sandbox has no row `ready` --ready-->",
    ]


def test_another_destination_is_told(tmp_path: Path) -> None:
    pod = Host(tmp_path / "j").sandbox().create()
    pod.append(
        [NewRecord("event", "vm.died", {"machine": "vm", "trigger": "died", "source": "running", "dest": "gone"})]
    )
    (found,) = checked(pod)
    assert (found.journal_says, found.build_says) == ("running --died--> gone", "running --died--> exited")


def test_an_answer_that_the_machines_would_not_give_is_told(tmp_path: Path) -> None:
    pod = Host(tmp_path / "j").sandbox().create()
    moved = {"machine": "container", "trigger": "start", "source": "created", "dest": "starting", "subject": "web"}
    pod.append([NewRecord("command", "start", {"container": "web"}), NewRecord("event", "container.start", moved)])
    (found,) = checked(pod)
    assert (found.what, found.journal_says, found.build_says) == (
        "answer to `start`",
        "nothing further",
        "intent container.start web",
    )


def test_a_command_that_the_machines_would_refuse_is_told(tmp_path: Path) -> None:
    pod = Host(tmp_path / "j").sandbox().create()
    pod.append([NewRecord("command", "resume", {"container": "web"})])
    (found,) = checked(pod)
    assert found.what == "decision"
    assert found.build_says.startswith("refused: container `web` is `created`")
