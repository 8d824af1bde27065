# SPDX-License-Identifier: Apache-2.0
"""Goal: a container that runs is handled by podman as any other."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engines import Podman, Typist
from tests.support.kata import wait_until

UNTIL_TOLD = "trap 'echo told; exit 4' TERM; trap 'echo usr' USR1; echo up; while :; do sleep 0.1; done"
DEAF = "trap '' TERM; echo up; while :; do sleep 1; done"


def feature(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.feature("podman", *names)


def begin(podman: Podman, name: str, script: str, *options: str) -> int:
    """A detached container whose script has said `up`; its pid on the host."""
    podman.run("-d", f"--name={name}", *options, command=["sh", "-c", script])
    wait_until(lambda: "up" in podman("logs", name).stdout, "the script runs")
    return int(podman.inspect(name)["State"]["Pid"])


@pytest.fixture
def box(podman: Podman) -> Iterator[int]:
    yield begin(podman, "box", UNTIL_TOLD, "--memory=128m", "-v=store:/store")
    podman("rm", "-f", "-t=0", "box", check=False)


@feature("exec", "exec --user, --workdir, --env", "exec: exit code", "exec -d", "exec -it", "healthcheck")
def test_exec(podman: Podman, box: int) -> None:
    done = podman("exec", "box", "sh", "-c", "echo one; echo two >&2; exit 3", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "one\n", "two\n")
    done = podman("exec", "-u=1000", "-w=/tmp", "-e=A=b c", "box", "sh", "-c", 'id -u; pwd; echo "$A"')
    assert done.stdout == "1000\n/tmp\nb c\n"
    assert podman("exec", "-i", "box", "wc", "-c", stdin="12345").stdout == "5\n"
    assert podman("exec", "box", "/no/such", check=False).returncode == 127
    assert podman("exec", "box", "/etc/passwd", check=False).returncode == 126
    podman("exec", "-d", "box", "touch", "/tmp/done")
    wait_until(lambda: podman("exec", "box", "ls", "/tmp").stdout == "done\n", "the detached process has run")
    typist = Typist(podman, "exec", "-it", "box", "sh", rows=33, columns=99)
    typist.read_until("# ")
    typist.type(f"{typist.sized}; stty size; exit 6\r")
    typist.read_until(r"33 99\r\n")
    assert typist.close() == 6


@feature("ps", "top", "stats", "inspect: pid", "cp, both ways", "update of limits")
def test_looking_into_it(podman: Podman, box: int, tmp_path: Path) -> None:
    assert [each["Names"] for each in json.loads(podman("ps", "--format=json").stdout)] == [["box"]]
    assert os.path.exists(f"/proc/{box}/ns/net")
    assert "sleep" in podman("top", "box", "-ef").stdout
    assert podman("top", "box", "pid").stdout.split() == ["PID", str(box)]  # the pid that stands for it on the host
    stats = json.loads(podman("stats", "--no-stream", "--format=json", "box").stdout)
    assert stats[0]["name"] == "box"
    used, unit = re.match(r"([\d.]+)([kMG]?B) / ", stats[0]["mem_usage"]).groups()
    assert unit in ("MB", "GB")
    assert unit == "GB" or float(used) > 64, "the machine's, not only that of the process that stands for the container"
    (tmp_path / "in").write_text("carried in\n")
    assert not os.path.exists("/tmp/there")
    podman("cp", f"{tmp_path}/in", "box:/tmp/there")
    assert podman("exec", "box", "cat", "/tmp/there").stdout == "carried in\n"
    podman("exec", "box", "sh", "-c", "echo carried out >/tmp/back")
    podman("cp", "box:/tmp/back", f"{tmp_path}/out")
    assert (tmp_path / "out").read_text() == "carried out\n"
    podman("cp", f"{tmp_path}/in", "box:/store/there")
    assert podman("exec", "box", "cat", "/store/there").stdout == "carried in\n"
    assert not os.path.exists("/tmp/there")  # nothing went to the host's own files
    podman("update", "--memory=96m", "box")
    limit = "cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/memory.max"
    assert podman("exec", "box", "sh", "-c", limit).stdout == f"{96 << 20}\n"


@feature("pause, unpause")
def test_pause(podman: Podman, box: int) -> None:
    podman("pause", "box")
    assert podman.inspect("box")["State"]["Status"] == "paused"
    assert podman("exec", "box", "true", check=False).returncode != 0
    podman("unpause", "box")
    assert podman("exec", "box", "echo", "awake").stdout == "awake\n"


@feature("kill", "kill -s", "stop", "stop -t: killed after it", "restart")
def test_signals_and_ends(podman: Podman, box: int) -> None:
    podman("kill", "-s=USR1", "box")
    wait_until(lambda: "usr" in podman("logs", "box").stdout, "the signal arrives")
    podman("stop", "box")
    state = podman.inspect("box")["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 4)
    podman("restart", "-t=0", "box")
    wait_until(lambda: podman("logs", "box").stdout.count("up") == 2, "it runs again")
    podman("kill", "box")
    assert podman("wait", "box").stdout == "137\n"
    begin(podman, "deaf", DEAF)
    began = time.monotonic()
    podman("stop", "-t=1", "deaf")
    assert time.monotonic() - began >= 1
    assert podman.inspect("deaf")["State"]["ExitCode"] == 137


@feature("rm -f of a running container", "run -d --rm")
def test_removal(podman: Podman) -> None:
    begin(podman, "gone", UNTIL_TOLD)
    podman("rm", "-f", "-t=0", "gone")
    begin(podman, "brief", UNTIL_TOLD, "--rm")
    podman("kill", "brief")
    wait_until(lambda: podman("ps", "-aq").stdout == "", "it removes itself")


@feature("recovery: podman killed", "recovery: conmon killed", "recovery: supervisor killed")
def test_what_watches_it_is_killed(podman: Podman, box: int) -> None:
    watcher = podman.popen("attach", "--sig-proxy=false", "box", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_until(lambda: podman.kata.processes("attach"), "podman is attached")
    watcher.kill()
    watcher.wait()
    os.kill(podman.kata.process("supervisor"), signal.SIGKILL)
    assert podman("exec", "box", "echo", "still here").stdout == "still here\n"
    os.kill(podman.kata.process("conmon", "box"), signal.SIGKILL)  # that of the exec ends
    assert podman("exec", "box", "echo", "even now").stdout == "even now\n"
    podman(
        "kill", "box", check=False
    )  # it arrives, and then podman looks in vain for the exit code that conmon would tell
    wait_until(lambda: not podman.kata.processes("qemu-system"), "the machine is gone")
    wait_until(lambda: podman("rm", "-f", "-t=0", "box", check=False).returncode == 0, "podman lets it go")
    # Without its conmon, podman may forget a container and not have its runtime delete it, ours as little as any other.
    for forgotten in podman.kata("list", "--quiet").stdout.split():
        podman.kata("delete", "--force", forgotten)


@feature("recovery: podman killed while it creates")
def test_a_creation_whose_podman_is_killed(podman: Podman) -> None:
    command = podman.popen("run", "--network=none", "--name=half", "localhost/bb:latest", "sleep", "1000")
    wait_until(lambda: podman.kata.processes("qemu-system"), "the machine boots")
    command.kill()
    command.wait()
    podman("rm", "-f", "-t=0", "half")
    wait_until(lambda: not podman.kata.processes("qemu-system"), "the machine is gone")
