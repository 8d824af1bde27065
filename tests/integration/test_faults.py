# SPDX-License-Identifier: Apache-2.0
"""Goal: what dies is told truly, and nothing of it is left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
from pathlib import Path

from tests.support.kata import LIMIT_S, Kata, wait_until

SLEEP = ("/bin/sleep", "1000")


def test_killed_qemu_ends_with_its_cause_and_leaves_nothing(kata: Kata) -> None:
    bundle = kata.bundle("b", "/bin/sh", "-c", "echo up; sleep 1000")
    runner = kata.spawn("run", "--bundle", str(bundle), "c1")
    assert runner.stdout is not None
    with runner, runner.stdout:
        assert runner.stdout.readline() == "up\n"
        (qemu,) = kata.processes("qemu-system", "sandbox-c1")
        os.kill(qemu, signal.SIGKILL)
        assert runner.wait(LIMIT_S) == 255  # nobody knows the workload's code: never 0, and no made-up 137
    story = kata("replay", "c1").stdout
    assert "vm_killed" in story
    assert "SIGKILL" in story
    ended = [r for r in kata.story("c1") if r.get("machine") == "process" and r["what"] == "exited"]
    assert ended[-1]["detail"]["cause"]["kind"] == "vm_killed"
    assert kata("journal", "verify").returncode == 0


def test_killed_virtiofsd_ends_the_sandbox_with_its_cause(kata: Kata) -> None:
    kata.detached("c1", kata.bundle("b", *SLEEP))
    kata.kill("virtiofsd")
    wait_until(lambda: kata.status("c1") == "stopped", "the container is stopped")
    assert "share_died" in kata("replay", "c1").stdout
    assert "virtiofsd_lost" in kata("replay", "c1").stdout
    kata("delete", "c1")


def test_killed_supervisor_is_replaced_and_loses_nothing(kata: Kata) -> None:
    script = "echo before; read line; echo $line; exit 6"
    runner = kata.spawn("run", "--bundle", str(kata.bundle("b", "/bin/sh", "-c", script)), "c1", stdin=subprocess.PIPE)
    assert runner.stdout is not None
    assert runner.stdin is not None
    with runner, runner.stdout:
        assert runner.stdout.readline() == "before\n"
        (supervisor,) = kata.processes("supervisor", "c1")
        os.kill(supervisor, signal.SIGKILL)
        wait_until(lambda: kata.processes("supervisor", "c1") not in ([], [supervisor]), "another supervisor")
        runner.stdin.write("after\n")
        runner.stdin.close()
        assert runner.stdout.read() == "after\n"
        assert runner.wait(LIMIT_S) == 6


def test_a_supervisor_killed_within_a_large_output_loses_and_doubles_nothing(kata: Kata) -> None:
    """Again and again, with the other stream and the input in use beside it."""
    lines = 1_500_000
    script = f"(seq 1 {lines}) & seq 1 20000 >&2; wait; read line; echo $line"
    bundle = kata.bundle("b", "/bin/sh", "-c", script)
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            kata.argv("run", "--bundle", str(bundle), "c1"),
            env=kata.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as runner,
    ):
        assert runner.stdout is not None
        assert runner.stdin is not None
        runner.stdin.write(b"typed\n")
        runner.stdin.close()
        found, killed = bytearray(), 0
        while data := runner.stdout.read1(1 << 20):  # type: ignore[attr-defined]
            found += data
            if len(found) > (killed + 1) * 3_300_000 and killed < 2:
                killed += bool(kata.kill("supervisor", "c1"))  # with none to be killed yet, after the next bytes
        assert runner.wait(LIMIT_S) == 0
        errors.seek(0)
        assert errors.read() == b"".join(b"%d\n" % number for number in range(1, 20_001))
    assert killed == 2
    assert bytes(found) == b"".join(b"%d\n" % number for number in range(1, lines + 1)) + b"typed\n"


def test_a_reader_that_finds_no_supervisor_asks_for_recovery(kata: Kata) -> None:
    kata.detached("c1", kata.bundle("b", *SLEEP))
    for role in ("shim", "supervisor"):  # in this order: a shim would start another supervisor
        kata.kill(role, "c1")
    (qemu,) = kata.processes("qemu-system", "sandbox-c1")
    os.kill(qemu, signal.SIGKILL)
    wait_until(lambda: kata.status("c1") == "stopped", "the container is stopped")
    kata("delete", "c1")


def test_illegal_requests_change_nothing(kata: Kata) -> None:
    kata.detached("c1", kata.bundle("b", *SLEEP))
    before = len(kata.story("c1"))
    for verb in ("start", "resume", "delete"):
        refused = kata(verb, "c1", check=False)
        assert refused.returncode == 1
        assert len(refused.stderr.splitlines()) == 1
        assert "running" in refused.stderr
    assert len(kata.story("c1")) == before
    kata("delete", "--force", "c1")


def test_bad_input_is_one_line_and_leaves_nothing(kata: Kata, tmp_path: Path) -> None:
    log = kata.base / "log"
    bundle = kata.bundle("b", *SLEEP)
    config = json.loads((bundle / "config.json").read_text())

    def refused(name: str, *args: str, about: str) -> None:
        done = kata(*args, name, check=False)
        assert done.returncode == 1, done
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert about in done.stderr
        assert about in log.read_text()

    refused("c1", "create", "--bundle", str(tmp_path / "none"), about="none")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused("c1", "create", "--bundle", str(empty), about="config.json")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps({**config, "process": {**config["process"], "args": 3}}))
    refused("c1", "create", "--bundle", str(broken), about="process.args")
    (broken / "config.json").write_text("{")
    refused("c1", "create", "--bundle", str(broken), about="config.json")
    (broken / "config.json").write_text(json.dumps({**config, "root": {"path": "/not/there"}}))
    refused("c1", "create", "--bundle", str(broken), about="/not/there")
    refused("a/b", "create", "--bundle", str(bundle), about="a/b")
    refused("x" * 2000, "create", "--bundle", str(bundle), about="2000")
    (bundle / "config.json").write_text(
        json.dumps({**config, "process": {**config["process"], "args": ["/bin/no-such-program"]}})
    )
    refused("c1", "create", "--bundle", str(bundle), about="no-such-program")


def test_an_agent_that_never_answers_is_told_by_phase(kata: Kata, tmp_path: Path) -> None:
    settings = tmp_path / "configuration.toml"
    settings.write_text(
        '[hypervisor.qemu]\nkernel_params = "init=/none rdinit=/none panic=0"\n[agent.kata]\ndial_timeout = 20\n'
    )
    done = kata("--config", str(settings), "create", "--bundle", str(kata.bundle("b", *SLEEP)), "c1", check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    for words in ("Kernel panic", "in phase `hello`", "the console said last: `"):
        assert words in done.stderr
    assert re.search(r"\(`port` \d\.\d\d s, `hello` \d\d\.\d\d s\)", done.stderr)
    assert "Kernel panic" in (kata.base / "log").read_text()
