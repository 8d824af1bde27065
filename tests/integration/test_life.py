# SPDX-License-Identifier: Apache-2.0
"""Goal: a container's life in a real virtual machine, verb by verb, as its callers see it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from tests.support.kata import LIMIT_S, Kata, wait_until

SLEEP = ("/bin/sleep", "1000")


def test_run_gives_output_and_exit_code(kata: Kata) -> None:
    bundle = kata.bundle("b", "/bin/sh", "-c", "uname -r; hostname; echo to-stderr >&2; exit 7")
    done = kata("run", "--bundle", str(bundle), "c1", check=False)
    kernel, hostname = done.stdout.split()
    assert done.returncode == 7
    assert kernel != os.uname().release
    assert hostname == "kata-fsm"
    assert done.stderr == "to-stderr\n"


def test_stdin_reaches_stdout(kata: Kata) -> None:
    bundle = kata.bundle("b", "/bin/sh", "-c", "tr a-z A-Z")
    text = "".join(f"line {number}\n" for number in range(5000))
    argv = kata.argv("run", "--bundle", str(bundle), "c1")
    done = subprocess.run(argv, input=text, text=True, env=kata.env, timeout=LIMIT_S, capture_output=True, check=True)
    assert done.stdout == text.upper()


def test_state_through_a_life(kata: Kata, tmp_path: Path) -> None:
    bundle = kata.bundle("b", *SLEEP)
    pid_file = tmp_path / "pid"
    kata("create", "--bundle", str(bundle), "--pid-file", str(pid_file), "c1")
    state = json.loads(kata("state", "c1").stdout)
    pid = state["pid"]
    assert (state["status"], state["id"], state["bundle"]) == ("created", "c1", str(bundle))
    assert pid_file.read_text() == str(pid)
    assert Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[-2:] != []
    kata("start", "c1")
    assert kata.status("c1") == "running"
    kata("pause", "c1")
    assert kata.status("c1") == "paused"
    kata("resume", "c1")
    assert kata.status("c1") == "running"
    refused = kata("delete", "c1", check=False)
    assert refused.returncode == 1
    assert "Container still running" in refused.stderr
    kata("kill", "c1", "KILL")
    wait_until(lambda: kata.status("c1") == "stopped", "the container is stopped")
    assert "container not running" in kata("kill", "c1", "TERM", check=False).stderr
    kata("delete", "c1")
    assert "does not exist" in kata("state", "c1", check=False).stderr


def test_an_end_by_signal_is_128_plus_n(kata: Kata) -> None:
    runner = kata.spawn("run", "--bundle", str(kata.bundle("b", "/bin/sh", "-c", "echo up; exec sleep 1000")), "c1")
    assert runner.stdout is not None
    with runner, runner.stdout:
        assert runner.stdout.readline() == "up\n"
        assert kata("exec", "c1", "/bin/sh", "-c", "kill -TERM $$", check=False).returncode == 143
        kata("kill", "c1", "9")
        assert runner.wait(LIMIT_S) == 137


def test_a_signal_to_the_host_pid_is_forwarded(kata: Kata) -> None:
    bundle = kata.bundle("b", "/bin/sh", "-c", "trap 'echo got it; exit 5' USR1; echo up; while :; do sleep 0.1; done")
    runner = kata.spawn("run", "--bundle", str(bundle), "c1")
    assert runner.stdout is not None
    with runner, runner.stdout:
        assert runner.stdout.readline() == "up\n"
        os.kill(json.loads(kata("state", "c1").stdout)["pid"], signal.SIGUSR1)
        assert runner.stdout.read() == "got it\n"
        assert runner.wait(LIMIT_S) == 5


def test_exec_honours_what_it_is_told(kata: Kata, tmp_path: Path) -> None:
    bundle = kata.bundle("b", *SLEEP)
    kata.detached("c1", bundle)
    process = {
        "terminal": False,
        "user": {"uid": 1000, "gid": 1001, "additionalGids": [2002]},
        "args": [
            "/bin/sh",
            "-c",
            "id -u; id -G; pwd; echo \"$WORD\"; ulimit -n; grep -E 'CapEff|NoNewPrivs' /proc/self/status",
        ],
        "env": ["PATH=/bin", "WORD=a b  c"],
        "cwd": "/tmp",
        "capabilities": {kind: [] for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 77}],
        "noNewPrivileges": True,
    }
    path = tmp_path / "process.json"
    path.write_text(json.dumps(process))
    lines = kata("exec", "--process", str(path), "c1").stdout.splitlines()
    assert lines[0] == "1000"
    assert set(lines[1].split()) == {"1001", "2002"}
    assert lines[2:5] == ["/tmp", "a b  c", "77"]
    assert sorted(line.split()[1] for line in lines[5:]) == ["0000000000000000", "1"]
    assert kata("exec", "c1", "/bin/sh", "-c", "exit 9", check=False).returncode == 9
    kata("delete", "--force", "c1")


def test_exec_forwards_stdin(kata: Kata) -> None:
    kata.detached("c1", kata.bundle("b", *SLEEP))
    argv = kata.argv("exec", "c1", "/bin/cat")
    done = subprocess.run(
        argv, input="over there\n", text=True, env=kata.env, timeout=LIMIT_S, capture_output=True, check=True
    )
    assert done.stdout == "over there\n"
    kata("delete", "--force", "c1")


def test_list_and_ps_show_the_container(kata: Kata) -> None:
    kata.detached("c1", kata.bundle("b", *SLEEP))
    listed = json.loads(kata("list", "--format", "json").stdout)
    assert [(each["id"], each["status"]) for each in listed] == [("c1", "running")]
    assert kata("list", "--quiet").stdout == "c1\n"
    assert "sleep" in kata("ps", "c1").stdout
    assert json.loads(kata("ps", "--format", "json", "c1").stdout) == [listed[0]["pid"]]
    kata("delete", "--force", "c1")
    assert kata("list", "--quiet").stdout == ""


def test_update_and_events(kata: Kata) -> None:
    kata.detached("c1", kata.bundle("b", *SLEEP))
    kata("update", "--pids-limit", "42", "c1")
    stats = json.loads(kata("events", "--stats", "c1").stdout)
    assert (stats["type"], stats["id"]) == ("stats", "c1")
    assert stats["data"]["pids"]["limit"] == 42
    assert stats["data"]["memory"]["usage"]["usage"] > 0
    kata("delete", "--force", "c1")


def test_delete_force_in_every_state(kata: Kata) -> None:
    kata("delete", "--force", "never-was")
    kata("create", "--bundle", str(kata.bundle("b1", *SLEEP)), "c1")
    kata("delete", "--force", "c1")
    kata.detached("c2", kata.bundle("b2", *SLEEP))
    kata("pause", "c2")
    kata("delete", "--force", "c2")
    kata("delete", "--force", "c2")
    kata("run", "--bundle", str(kata.bundle("b3", "/bin/true")), "c3")
    kata("delete", "--force", "c3")


def test_two_sandboxes_at_once(kata: Kata) -> None:
    first = kata.spawn(
        "run", "--bundle", str(kata.bundle("b1", "/bin/sh", "-c", "echo one; cat; exit 3")), "c1", stdin=subprocess.PIPE
    )
    assert first.stdout is not None
    assert first.stdin is not None
    with first, first.stdout:
        assert first.stdout.readline() == "one\n"
        done = kata("run", "--bundle", str(kata.bundle("b2", "/bin/sh", "-c", "echo two; exit 4")), "c2", check=False)
        assert (done.stdout, done.returncode) == ("two\n", 4)
        first.stdin.close()
        assert first.wait(LIMIT_S) == 3


def test_the_same_id_can_be_used_again_but_not_twice_at_once(kata: Kata) -> None:
    bundle = kata.bundle("b", *SLEEP)
    kata("create", "--bundle", str(bundle), "c1")
    refused = kata("create", "--bundle", str(bundle), "c1", check=False)
    assert refused.returncode == 1
    assert "already in use" in refused.stderr
    kata("delete", "--force", "c1")
    kata("create", "--bundle", str(bundle), "c1")
    kata("delete", "--force", "c1")
