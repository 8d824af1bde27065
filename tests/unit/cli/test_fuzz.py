# SPDX-License-Identifier: Apache-2.0
"""`fuzz` as a user sees it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

PLANT = """
def forget(wiring):
    handler = wiring.handlers["container.discard"].handler

    async def perform(intent):
        handler.host.give_back("mount", handler.name(intent))
        return {}

    handler.perform = perform
"""


def test_it_says_what_it_runs_before_it_does(command: Any) -> None:
    done = command("fuzz", "--seed", "x", "--programs", "4", "--jobs", "1")
    first, last = done.stdout.splitlines()
    assert first == "fuzz --seed x --programs 4 --steps 12 --faults 40 --jobs 1"
    assert last.startswith("ok: 4 programs, ")
    assert done.returncode == 0


def test_a_failure_is_shrunk_kept_and_repeated(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plant.py").write_text(PLANT)
    monkeypatch.chdir(tmp_path)
    done = command("fuzz", "--seed", "y", "--programs", "500", "--jobs", "2", "--handlers", "plant:forget")
    assert done.returncode == 1
    told = dict(line.split(":", 1) for line in done.stdout.splitlines()[1:])
    assert "cgroup" in told["failed"]
    assert len(eval(told["program"])) <= 3
    (bundle,) = tmp_path.glob("*.kfsm")
    story = command("replay", str(bundle))
    assert story.returncode == 0
    assert "sandbox s" in story.stdout
    words = shlex.split(told["again"])
    again = command(*words[1:])
    assert (again.returncode, "cgroup" in again.stdout) == (1, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--programs", "0"), "--programs: `0` is not from"),
        (("--faults", "101"), "--faults: `101` is not from"),
        (("--program", "[1]"), "this is not a program"),
        (("--time", "soon"), "`soon` is no duration"),
        (("--handlers", "nowhere:x"), "`nowhere:x` cannot be had"),
    ],
)
def test_what_makes_no_sense_is_refused(command: Any, words: tuple[str, ...], message: str) -> None:
    done = command("fuzz", *words)
    assert done.returncode == 1
    assert message in done.stderr
