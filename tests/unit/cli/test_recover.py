# SPDX-License-Identifier: Apache-2.0
"""`recover` without a virtual machine: its command line, the boot unit, and work that hangs, fails or dies."""

from __future__ import annotations

import configparser
import json
import os
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kata_fsm.cli.main import VERBS
from kata_fsm.cli.recovering import side_by_side
from kata_fsm.cli.recovery_words import SCHEMA
from kata_fsm.cli.verbs import recover
from kata_fsm.errors import UsageError
from tests.unit.cli.conftest import Command

UNIT = Path(__file__).resolve().parents[3] / "configs" / "systemd" / "kata-fsm-recover.service"


def test_the_boot_unit_speaks_our_command_line() -> None:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's keys have capitals
    parsed.read(UNIT)
    program, verb, *rest = shlex.split(parsed["Service"]["ExecStart"])
    assert os.path.basename(program) == "kata-fsm"
    assert verb in VERBS
    given = recover._options(rest)
    assert (given.all, given.apply, given.check, given.orphans) == (True, True, False, "keep")
    assert set(given.only) == {"unknown", "stuck"}
    assert parsed["Service"]["Type"] == "oneshot"
    assert parsed["Service"]["KillMode"] == "process", "the supervisors that it starts must outlive it"
    assert "containerd.service" in parsed["Unit"]["Before"].split()
    assert "local-fs.target" in parsed["Unit"]["After"].split()


@pytest.mark.parametrize(
    "words",
    [
        ("--apply", "--check"),
        ("c1", "--all"),
        ("--only", "everything"),
        ("--orphans", "hug"),
        ("c1", "c2"),
        ("resolve", "c1", "--to", "failed"),
        ("resolve", "c1", "--reason", "x"),
        ("resolve", "c1", "--to", "running", "--reason", "x"),
        ("resolve", "--to", "failed", "--reason", "x"),
        ("remove", "0123456789ab"),
        ("resolve", "c1", "--to", "failed", "--reason", " "),
    ],
)
def test_wrong_usage_is_one_line(command: Command, words: tuple[str, ...]) -> None:
    done = command("recover", *words)
    assert done.returncode in (1, 2)
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_usage_errors_are_raised_as_such() -> None:
    with pytest.raises(UsageError, match="exclude"):
        recover._options(["--apply", "--check"])


def test_with_nothing_there_is_nothing_to_do(command: Command) -> None:
    done = command("recover")
    assert done.returncode == 0
    assert "nothing to do" in done.stdout
    assert "there is no journal" in done.stdout
    assert command("recover", "--check").returncode == 0
    assert command("recover", "--apply", "--orphans", "kill").returncode == 0
    assert not (command.directory / "state").exists(), "a look has made something"
    found = json.loads(command("recover", "--json").stdout)
    assert found == {"schema": SCHEMA, "journal": False, "looked_at": 0, "sandboxes": [], "orphans": []}
    assert command("recover", "c1").returncode == 1


def test_a_directory_without_a_sandbox_is_an_orphan_once_it_is_old_enough(command: Command) -> None:
    directory = command.directory / "run" / "sandboxes" / "0123456789ab"
    directory.mkdir(parents=True)
    (directory / "qmp.sock").touch()
    (command.directory / "run" / "sandboxes" / "somebody-elses").mkdir()
    assert command("recover", "--check").returncode == 0, "it may be just being made"
    os.utime(directory, (1, 1))
    assert command("recover", "--check").returncode == 9
    assert str(directory) in command("recover").stdout
    assert command("recover", "--apply", "--orphans", "kill", "--reason", "tidy").returncode == 0
    assert not directory.exists()
    assert (command.directory / "run" / "sandboxes" / "somebody-elses").exists()
    assert command("recover", "--check").returncode == 0


def test_a_damaged_journal_is_refused_and_nothing_is_an_orphan(command: Command) -> None:
    """Nobody can say what belongs to whom."""
    command.add("c1")
    (command.directory / "state" / "journal" / "data.mdb").write_bytes(b"not a journal" * 1000)
    directory = command.directory / "run" / "sandboxes" / "0123456789ab"
    directory.mkdir(parents=True)
    os.utime(directory, (1, 1))
    done = command("recover", "--apply", "--orphans", "kill")
    assert done.returncode == 5
    assert directory.exists()


# --- side by side -----------------------------------------------------------------------------------------------------


def _sleep() -> dict[str, object]:
    time.sleep(60)
    return {}


def _die() -> dict[str, object]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def _fail() -> dict[str, object]:
    raise ValueError("no")


def test_one_that_hangs_fails_or_dies_holds_up_nobody() -> None:
    def answer(number: int) -> Callable[[], dict[str, object]]:
        return lambda: {"ok": number}

    begun = time.monotonic()
    works = [_sleep, answer(1), _fail, _die, *(answer(number) for number in range(4, 12))]
    answers = side_by_side(works, at_once=2, limit_s=4.0)
    assert time.monotonic() - begun < 40
    assert "did not come to an end within 4 s" in answers[0]["error"]
    assert answers[2] == {"error": "ValueError: no"}
    assert "ended without an answer" in answers[3]["error"]
    assert [a for a in answers if "ok" in a] == [{"ok": number} for number in (1, *range(4, 12))]


def test_large_answers_arrive_whole() -> None:
    assert side_by_side([lambda: {"text": "x" * 1_000_000}])[0]["text"] == "x" * 1_000_000
