# SPDX-License-Identifier: Apache-2.0
"""`logs`: files that grow, are cut and have their own ideas of time, and the journal, in one order."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kata_fsm.cli.gathering import SOURCES, Line, LogFile, in_order, printed
from kata_fsm.cli.verbs import logs

UID = "0123456789ab"
S = 10**9
LIMIT_S = 30.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_times_of_every_sort(file: Path) -> None:
    file.write_text(
        "before any time\n[    1.500000] kata-agent: hello\n[   12.000001] Kernel panic\n  no time\n"
        "[2026-11-25 21:19:34.5+00:00] said virtiofsd\n2026-11-25T21:19:35Z said another\n\nlast\r\n"
    )
    os.utime(file, ns=(7 * S, 7 * S))
    lines = list(LogFile(str(file), "console").news(boot_ns=100 * S))
    dated = 1795641574 * S + S // 2
    assert [(line.wall_ns, line.source, line.text, line.about) for line in lines] == [
        (7 * S, "console", "before any time", True),
        (101 * S + S // 2, "agent", "hello", False),
        (112 * S + 1000, "console", "Kernel panic", False),
        (112 * S + 1000, "console", "  no time", True),
        (dated, "console", "said virtiofsd", False),
        (dated + S // 2, "console", "said another", False),
        (dated + S // 2, "console", "last", True),
    ]


def test_seconds_since_a_boot_that_nobody_knows(file: Path) -> None:
    file.write_text("[    1.500000] kata-agent: hello\n")
    os.utime(file, ns=(7 * S, 7 * S))
    assert list(LogFile(str(file), "console").news(0)) == [Line(7 * S, "agent", "hello", about=True)]


def test_a_file_that_grows_is_cut_and_goes(file: Path) -> None:
    log = LogFile(str(file), "hypervisor")
    assert (list(log.news(0)), log.grown()) == ([], False)
    file.write_text("one\ntw")
    assert log.grown()
    assert [line.text for line in log.news(0)] == ["one"]
    assert not log.grown()
    with file.open("a") as more:
        more.write("o\n")
    assert [line.text for line in log.news(0)] == ["two"]
    file.write_text("new\n")
    assert [line.text for line in log.news(0)] == ["new"]
    file.unlink()
    assert (list(log.news(0)), log.grown()) == ([], False)


def test_what_a_guest_writes_is_harmless_and_holds_no_secret() -> None:
    assert printed(Line(0, "console", "\x1b[2J password=hunter2")) == r"\e[2J password=***"


def test_lines_of_one_time_stay_in_order() -> None:
    lines = [Line(2, "a", "x"), Line(1, "a", "y"), Line(2, "b", "z")]
    assert [line.text for line in in_order(lines)] == ["y", "x", "z"]


def test_the_sources_are_told_once() -> None:
    assert logs.SOURCES == SOURCES


@pytest.fixture
def sandbox(command: Any) -> Path:
    """A sandbox with one record and some logs; answers the directory of the logs."""
    command.add("one", uid=UID)
    directory = Path(command.environment["KATA_FSM_STATE"]) / "logs" / UID
    directory.mkdir(parents=True)
    (directory / "console.log").write_text("2026-11-25T21:19:35Z kata-agent: up\n")
    (directory / "qemu.log").write_text("2026-11-25T21:19:34Z qemu: careful\n")
    return directory


def test_all_of_it_in_order(command: Any, sandbox: Path) -> None:
    done = command("logs", "--utc", "one")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(": ", 1)[0].split()[2:] for line in done.stdout.splitlines()] == [
        ["supervisor", "[1]"],
        ["hypervisor"],
        ["agent"],
    ]
    assert done.stdout.endswith(" 2026-11-25 21:19:35.000Z agent: up\n")
    (line,) = command("logs", "--json", "--source", "agent", "one").stdout.splitlines()
    assert json.loads(line) == {
        "time": "2026-11-25T21:19:35.000Z",
        "source": "agent",
        "text": "up",
        "approximate": False,
    }
    assert command("logs", "-n", "1", "one").stdout == command("logs", "--source", "agent", "one").stdout


def test_an_unknown_sandbox_is_told(command: Any, sandbox: Path) -> None:
    done = command("logs", "two")
    assert done.returncode == 1
    assert "two" in done.stderr


def test_what_is_added_is_followed(command: Any, sandbox: Path) -> None:
    argv = [str(command.path), "logs", "-f", "--source", "agent", "one"]
    with subprocess.Popen(argv, env=command.environment, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        assert following.stdout.readline().endswith("agent: up\n")
        with (sandbox / "console.log").open("a") as console:
            console.write("2026-11-25T21:19:36Z kata-agent: more\n")
        assert following.stdout.readline().endswith("agent: more\n")
        following.terminate()
        following.wait(LIMIT_S)
