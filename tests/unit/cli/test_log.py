# SPDX-License-Identifier: Apache-2.0
"""Lines in the host's log, received by real sockets, and in `--log`: what they carry, what is hidden, how many there are."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from journal import Journal, NewRecord, Stamp
from kata_fsm import system_log
from kata_fsm.cli import log
from kata_fsm.cli.context import Context
from kata_fsm.limits import SYSTEM_LOG_LINES_MAX


class Sink:
    """A datagram socket that keeps what comes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def lines(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(1 << 16).decode())
            except BlockingIOError:
                return found


@pytest.fixture
def sinks(tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Sink, Sink]]:
    """Journald's socket and syslog's, as this test's commands find them."""
    both = Sink(tmp_path / "journald"), Sink(tmp_path / "syslog")
    named = f"{both[0].path}:{both[1].path}"
    command.environment["KATA_FSM_SYSTEM_LOG"] = named
    monkeypatch.setenv("KATA_FSM_SYSTEM_LOG", named)
    monkeypatch.setattr(system_log, "RATE", system_log._Rate())
    yield both
    for sink in both:
        sink.socket.close()


def test_journald_gets_fields_and_syslog_nothing(command: Any, sinks: tuple[Sink, Sink]) -> None:
    message = command("kill", "nobody").stderr.strip()
    (line,) = sinks[0].lines()
    fields = dict(part.split("=", 1) for part in line.splitlines())
    assert fields == {
        "MESSAGE": message,
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "kata-fsm",
        "KATA_FSM_CONTAINER": "nobody",
        "KATA_FSM_COMMAND": "kill",
    }
    assert sinks[1].lines() == []


def test_a_line_about_a_signal_that_is_none_names_the_container(command: Any, sinks: tuple[Sink, Sink]) -> None:
    command("kill", "nobody", "FOO")
    assert "KATA_FSM_CONTAINER=nobody" in sinks[0].lines()[0].splitlines()


def test_without_journald_it_is_syslog(command: Any, sinks: tuple[Sink, Sink]) -> None:
    sinks[0].path.unlink()
    message = command("state", "nobody").stderr.strip()
    (line,) = sinks[1].lines()
    head, _, tail = line.partition(": ")
    assert re.fullmatch(r"<27>[A-Z][a-z]{2} [ 0-9]\d \d\d:\d\d:\d\d kata-fsm\[\d+\]", head)
    assert tail == f"{message} container=nobody command=state"


@pytest.mark.parametrize("named", ["", ":", "/no/such/socket:/no/such/either"])
def test_neither_is_no_error(command: Any, named: str) -> None:
    command.environment["KATA_FSM_SYSTEM_LOG"] = named
    done = command("state", "nobody")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


def test_a_log_that_is_full_holds_nothing_up(command: Any, sinks: tuple[Sink, Sink]) -> None:
    filler = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    filler.setblocking(False)
    with filler:
        try:
            while True:
                filler.sendto(b"x" * 1000, str(sinks[0].path))
        except BlockingIOError:
            pass
        assert command("state", "nobody").returncode == 1


def test_several_lines_are_one_value() -> None:
    data = system_log.journald_datagram("warning", "a\nb", {"seq": 7})
    assert data == (
        b"MESSAGE\n" + (3).to_bytes(8, "little") + b"a\nb\nPRIORITY=4\nSYSLOG_IDENTIFIER=kata-fsm\nKATA_FSM_SEQ=7\n"
    )


def test_there_is_a_limit_and_it_is_told(sinks: tuple[Sink, Sink], monkeypatch: pytest.MonkeyPatch) -> None:
    received = []
    for number in range(SYSTEM_LOG_LINES_MAX + 5):
        system_log.send("info", f"line {number}", {})
        received += sinks[0].lines()
    assert len(received) == SYSTEM_LOG_LINES_MAX
    system_log.RATE.began_ns = 0  # the window is over
    system_log.send("info", "again", {})
    assert "MESSAGE=again (5 lines before this one were left out)" in sinks[0].lines()[0]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nothing to hide", "nothing to hide"),
        ("token=abc, more", "token=***, more"),
        ("DB_PASSWORD: hunter2 x", "DB_PASSWORD: *** x"),
        ('{"api_key": "k"}', '{"api_key": ***'),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("the token is not there", "the token is not there"),
    ],
)
def test_secrets_are_hidden(text: str, shown: str) -> None:
    assert log.redacted(text) == shown


def test_a_line_carries_what_it_belongs_to(command: Any, sinks: tuple[Sink, Sink], tmp_path: Path) -> None:
    """Also the seq of the record of what this process asked for, if its supervisor was asked."""
    context = Context()
    context.verb, context.container, context.stream, context.log = (
        "pause",
        "web",
        "pod@0123456789ab",
        str(tmp_path / "l"),
    )
    context.log_format = "json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KATA_FSM_STATE", str(tmp_path / "state"))
        (tmp_path / "state").mkdir()
        with Journal.open(str(tmp_path / "state" / "journal")) as journal:
            stamp = Stamp(wall_ns=1, mono_ns=1, boot_id="boot")
            mine = NewRecord(kind="command", type="pause", body={}, actor={"cli_pid": os.getpid()})
            other = NewRecord(kind="command", type="pause", body={}, actor={"cli_pid": 1})
            journal.append(context.stream, [other, mine, other], stamp=stamp, expected_rev=0)
        log.write(context, "warning", "before")
        context.asked = True
        log.write(context, "error", "after")
    before, after = (json.loads(line) for line in (tmp_path / "l").read_text().splitlines())
    assert (before["container"], before["sandbox"], before.get("seq")) == ("web", "pod", None)
    assert (after["container"], after["sandbox"], after["seq"]) == ("web", "pod", 2)
    assert list(after) == sorted(after, key=lambda name: (name in ("level", "msg", "time"), name))
    assert "KATA_FSM_SEQ=2" in sinks[0].lines()[1].splitlines()


def test_debug_says_what_was_called_without_its_secrets(command: Any, sinks: tuple[Sink, Sink]) -> None:
    command("--debug", "exec", "nobody", "sh", "-c", "secret words")
    debug, error = sinks[0].lines()
    assert re.search(r"^MESSAGE=version \S+, arguments: exec \*\*\* \*\*\* -c \*\*\*$", debug, re.MULTILINE)
    assert "PRIORITY=7" in debug
    assert "secret words" not in debug + error
