# SPDX-License-Identifier: Apache-2.0
"""Goal: an engine that does its part badly is told in one line of its log, in the format it asked for; nothing is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.kata import LIMIT_S, Kata, wait_until

SLEEP = ("/bin/sleep", "1000")


def refused(kata: Kata, *args: str) -> str:
    """A `create` that fails as containerd would see it: the message of the last error in log.json."""
    log = kata.base / "log.json"
    done = kata("--log", str(log), "--log-format", "json", "create", *args, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    errors = [line["msg"] for line in lines if line["level"] == "error"]
    assert errors == [done.stderr.strip()]
    assert kata("list", "--quiet").stdout == ""
    return str(errors[0])


def test_a_console_socket_that_takes_nothing(kata: Kata) -> None:
    bundle = kata.bundle("b", "/bin/sh", terminal=True)
    path = kata.base / "console.sock"
    said = refused(kata, "--bundle", str(bundle), "--console-socket", str(path), "c1")
    assert said == f"console socket `{path}`: No such file or directory"
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(path))
        said = refused_again(kata, bundle, path)
        assert said == f"console socket `{path}`: Connection refused"


def refused_again(kata: Kata, bundle: Path, path: Path) -> str:
    (kata.base / "log.json").unlink()
    return refused(kata, "--bundle", str(bundle), "--console-socket", str(path), "c1")


def test_a_console_socket_on_which_nobody_accepts(kata: Kata) -> None:
    """Its queue is full: whoever connects waits, but not for ever."""
    bundle = kata.bundle("b", "/bin/sh", terminal=True)
    path = kata.base / "console.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(path))
        busy.listen(0)
        first.connect(str(path))
        said = refused(kata, "--bundle", str(bundle), "--console-socket", str(path), "c1")
    assert said == f"console socket `{path}`: nobody accepts on it"


def test_a_pid_file_in_a_directory_that_is_not_there(kata: Kata) -> None:
    bundle = kata.bundle("b", *SLEEP)
    path = kata.base / "none" / "pid"
    said = refused(kata, "--bundle", str(bundle), "--pid-file", str(path), "c1")
    assert said == f"pid file `{path}`: there is no directory `{path.parent}`"


def test_a_namespace_that_has_vanished(kata: Kata) -> None:
    bundle = kata.bundle("b", *SLEEP)
    document = json.loads((bundle / "config.json").read_text())
    gone = "/run/netns/kata-fsm-test-none"
    document["linux"]["namespaces"] = [{"type": "network", "path": gone}, {"type": "mount"}, {"type": "pid"}]
    (bundle / "config.json").write_text(json.dumps(document))
    said = refused(kata, "--bundle", str(bundle), "c1")
    assert f"network namespace `{gone}`" in said


def test_systemd_is_asked_for_where_it_does_not_run(kata: Kata) -> None:
    if os.path.isdir("/run/systemd/system"):
        pytest.skip("systemd runs here")
    log = kata.base / "log.json"
    bundle = kata.bundle("b", *SLEEP)
    globals_ = ("--log", str(log), "--log-format", "json", "--systemd-cgroup")
    done = kata(*globals_, "create", "--bundle", str(bundle), "c1", check=False)
    assert done.returncode == 1
    assert "systemd cgroup flag passed" in json.loads(log.read_text().splitlines()[-1])["msg"]


@pytest.mark.parametrize("words", [("supervisor", "c1"), ("qemu-system",), ("shim", "c1")])
def test_an_engine_that_disappears_while_it_creates(kata: Kata, words: tuple[str, ...]) -> None:
    """Its runtime call is killed with it; each time another part of the sandbox is just there."""
    with subprocess.Popen(
        kata.argv("create", "--bundle", str(kata.bundle("b", *SLEEP)), "c1"),
        env=kata.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as creating:
        wait_until(lambda: kata.processes(*words), f"`{' '.join(words)}`")
        creating.send_signal(signal.SIGKILL)
        creating.wait(LIMIT_S)
    kata("delete", "--force", "c1")  # as an engine's clean-up does
    # One that was never asked for anything waits a while (SUPERVISOR_IDLE_S), for it cannot know that nobody will.
    wait_until(lambda: not kata.processes("supervisor"), "the supervisor has ended")
    assert kata("list", "--quiet").stdout == ""
