# SPDX-License-Identifier: Apache-2.0
"""A reader of a damaged journal ends with one line and exit code 5, whatever LMDB does about a bad page."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_fsm.cli.guarded import guarded
from kata_fsm.errors import DamagedData
from tests.support.pods import Host

ROOT = Path(__file__).resolve().parents[3]
MAIN = "from kata_fsm.cli.main import console_main; console_main()"


def kata_fsm(*argv: str) -> subprocess.CompletedProcess[str]:
    """The command as it is installed, but for how it is found."""
    return subprocess.run([sys.executable, "-c", MAIN, *argv], cwd=ROOT, capture_output=True, text=True, check=False)


def test_any_page_of_noise_ends_a_reader_in_one_line_or_is_not_met(tmp_path: Path) -> None:
    host = Host(tmp_path / "journal")
    host.sandbox("web", "aaaa00000001").create().start().exits(3).delete()
    host.close()
    data = tmp_path / "journal" / "data.mdb"
    whole = data.read_bytes()
    codes = set()
    for page in range(2, len(whole) // 4096):
        data.write_bytes(whole[: page * 4096] + bytes([page * 7 % 256, 0xA5]) * 2048 + whole[(page + 1) * 4096 :])
        ran = kata_fsm("replay", "web", "--journal", str(data.parent))
        assert ran.returncode in (0, 1, 5, 6, 7), (page, ran)
        assert "Traceback" not in ran.stderr
        if ran.returncode:
            assert ran.stderr.count("\n") == 1 or ran.stdout, (page, ran)
        codes.add(ran.returncode)
    assert {0, 5} <= codes


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT])
def test_a_signal_that_damage_leads_to_is_said(number: signal.Signals) -> None:
    def work() -> int:
        faulthandler.disable()  # pytest's, which would tell a long story
        os.kill(os.getpid(), number)
        return 0

    with pytest.raises(DamagedData, match=f"ended by {number.name}"):
        guarded(work)


def test_codes_and_other_signals_are_handed_on() -> None:
    assert guarded(lambda: 7) == 7

    def work() -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert guarded(work) == 137


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_who_stops_the_caller_stops_the_child(tmp_path: Path, number: signal.Signals) -> None:
    host = Host(tmp_path / "journal")
    host.sandbox("web", "aaaa00000001").create()
    host.close()
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, "journal", "tail", "-f", "--journal", str(tmp_path / "journal")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(number)
        process.stdout.read()  # ends when nobody holds it any more
        assert process.wait() == (-number if number == signal.SIGKILL else 128 + number)


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """What the guard sets is put back."""
    before = {number: signal.getsignal(number) for number in (1, 2, 3, 15)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
