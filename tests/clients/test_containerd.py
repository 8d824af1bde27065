# SPDX-License-Identifier: Apache-2.0
"""Goal: containerd's runc shim takes the command for runc."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.support.containerd import Containerd
from tests.support.engines import Typist
from tests.support.kata import wait_until

SLEEP = ("sleep", "1000")


def feature(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.feature("containerd", *names)


def begin(containerd: Containerd, name: str, *options: str) -> None:
    containerd.run(name, "--detach", *options, command=SLEEP)
    assert containerd.status(name) == "RUNNING"


@feature("run", "run --rm", "exit code", "--env", "--mount")
def test_run(containerd: Containerd, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("of the host\n")
    mount = f"--mount=type=bind,src={tmp_path},dst=/mnt,options=rbind:ro"
    script = 'uname -r; cat /mnt/given; echo "$WORD"; echo to-stderr >&2; exit 7'
    done = containerd.run("one", "--rm", "--env=WORD=a b", mount, command=("sh", "-c", script), check=False)
    assert done.returncode == 7
    kernel, *rest = done.stdout.splitlines()
    assert kernel != os.uname().release
    assert rest == ["of the host", "a b"]
    assert "to-stderr" in done.stderr


@feature("run --tty")
def test_terminal(containerd: Containerd) -> None:
    typist = Typist(containerd, *containerd.run_argv("tty", "--rm", "--tty", command=("sh",)), rows=29, columns=91)
    typist.read_until("# ")
    typist.type(f"{typist.sized}; stty size; exit 5\r")
    typist.read_until(r"29 91\r+\n")
    assert typist.close() == 5


@feature("task exec", "task exec: exit code", "task exec --tty", "task ps", "task metrics", "task pause, resume")
def test_task(containerd: Containerd) -> None:
    begin(containerd, "box", "--memory-limit=134217728")
    done = containerd("task", "exec", "--exec-id=e1", "box", "sh", "-c", "echo one; exit 3", check=False)
    assert (done.returncode, done.stdout) == (3, "one\n")
    typist = Typist(containerd, "task", "exec", "--exec-id=e2", "--tty", "box", "sh")
    typist.read_until("# ")
    typist.type("tty; exit 6\r")
    typist.read_until(r"/dev/\S+\r+\n")
    assert typist.close() == 6
    pids = [line.split()[0] for line in containerd("task", "ps", "box").stdout.splitlines()[1:]]
    listed = containerd("task", "ls").stdout
    assert pids
    assert re.search(rf"box\s+{pids[0]}\s+RUNNING", listed)
    metrics = containerd("task", "metrics", "box").stdout
    found = re.search(r"memory\.usage_in_bytes\s+(\d+)", metrics)
    assert found, metrics
    assert int(found[1]) > 64 << 20  # the machine's, not only that of the process that stands for the container
    containerd("task", "pause", "box")
    assert containerd.status("box") == "PAUSED"
    containerd("task", "resume", "box")
    assert containerd("task", "exec", "--exec-id=e3", "box", "echo", "awake").stdout == "awake\n"
    containerd("task", "kill", "--signal=SIGKILL", "box")
    wait_until(lambda: containerd.status("box") == "STOPPED", "the task has stopped")
    assert "137" in containerd("task", "delete", "box", check=False).stderr
    containerd("container", "delete", "box")


@feature("task kill --all", "task kill of an exec", "task delete --force", "run again by the same name")
def test_ends(containerd: Containerd) -> None:
    for _ in range(2):
        begin(containerd, "box")
        containerd("task", "delete", "--force", "box", check=False)
        containerd("container", "delete", "box")
    begin(containerd, "box")
    execing = containerd.popen("task", "exec", "--exec-id=long", "box", *SLEEP)
    wait_until(lambda: len(containerd("task", "ps", "box").stdout.splitlines()) == 3, "the exec runs")
    containerd("task", "kill", "--signal=SIGKILL", "--exec-id=long", "box")
    assert execing.wait(60) == 137
    containerd("task", "kill", "--all", "--signal=SIGKILL", "box")
    wait_until(lambda: containerd.status("box") == "STOPPED", "the task has stopped")


@feature("failure: the last error of log.json is told")
def test_failures(containerd: Containerd) -> None:
    done = containerd.run("none", "--rm", command=("/no/such",), check=False)
    assert done.returncode != 0
    assert "OCI runtime create failed" in done.stderr
    assert "/no/such" in done.stderr
    done = containerd.run("host", "--rm", "--net-host", command=("true",), check=False)
    assert "Host networking requested" in done.stderr


@feature("recovery: containerd's shim killed")
def test_a_killed_shim(containerd: Containerd) -> None:
    begin(containerd, "box")
    os.kill(containerd.kata.process("containerd-shim-runc-v2", "box"), signal.SIGKILL)
    wait_until(
        lambda: not containerd.kata.processes("qemu-system"), "containerd has it deleted, and the machine is gone"
    )
