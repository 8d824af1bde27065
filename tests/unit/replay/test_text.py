# SPDX-License-Identifier: Apache-2.0
"""The story as text: whole stories, compared with kept ones (see `tests.support.golden` for rewriting them)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kata_fsm.replay.reading import open_journal, read_what_can_be
from kata_fsm.replay.story import Story, tell
from kata_fsm.replay.text import View, render
from tests.support.golden import agrees
from tests.support.pods import Driven, Host
from tests.support.stories import STORIES, exited


def told(tmp_path: Path, passage: Callable[[Driven], None]) -> Story:
    host = Host(tmp_path / "journal")
    pod = host.sandbox()
    passage(pod)
    host.close()
    with open_journal(str(host.path)) as journal:
        records, damage = read_what_can_be(journal, pod.stream)
    return tell(records, pod.stream, damage=damage)


@pytest.mark.parametrize("passage", STORIES, ids=lambda passage: passage.__name__)
def test_a_story_reads_as_kept(tmp_path: Path, passage: Callable[[Driven], None]) -> None:
    story = told(tmp_path, passage)
    agrees(f"replay/{passage.__name__}.txt", "\n".join(render(story, View(utc=True))) + "\n")


@pytest.mark.parametrize("passage", STORIES, ids=lambda passage: passage.__name__)
def test_nothing_unprintable_reaches_a_terminal(tmp_path: Path, passage: Callable[[Driven], None]) -> None:
    story = told(tmp_path, passage)
    for line in render(story, View(full=True, clock="wall")):
        assert line.isprintable(), line


def test_full_prints_every_word_of_the_qemu_argv(tmp_path: Path) -> None:
    lines = render(told(tmp_path, exited), View(full=True, utc=True))
    at = next(index for index, line in enumerate(lines) if line.strip() == "argv[4]:")
    assert [line.strip() for line in lines[at + 1 : at + 5]] == [
        "qemu-system-x86_64",
        "-nodefaults",
        "-machine",
        "q35,accel=kvm",
    ]


@pytest.mark.parametrize(("clock", "heading"), [("wall", "time"), ("monotonic", "s"), ("boot", "s of boot")])
def test_other_clocks(tmp_path: Path, clock: str, heading: str) -> None:
    lines = render(told(tmp_path, exited), View(clock=clock, utc=True))
    table = lines[lines.index("") + 1 :]
    assert heading in table[0]
    first = {"wall": "11:02:07.000Z", "monotonic": "0.000", "boot": "5000.000"}[clock]
    assert table[1].split()[1] == first


def test_rows_can_be_picked(tmp_path: Path) -> None:
    story = told(tmp_path, exited)
    lines = render(story, View(utc=True, effects=False, machines=frozenset({"vm"}), last=2))
    table = lines[lines.index("") + 1 :]
    assert "earlier records are not shown" in table[1]
    assert [line.split()[2] for line in table[2:]] == ["vm", "vm"]


def test_a_long_id_is_abbreviated_unless_everything_is_asked_for(tmp_path: Path) -> None:
    host = Host(tmp_path / "journal")
    name = "0123456789abcdef" * 4
    pod = host.sandbox(name).create()
    host.close()
    with open_journal(str(host.path)) as journal:
        story = tell(list(journal.read_stream(pod.stream)), pod.stream)
    short = "\n".join(render(story, View())[8:])
    assert "container 0123456789ab…" in short
    assert f"container {name}" in "\n".join(render(story, View(full=True)))
