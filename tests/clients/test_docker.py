# SPDX-License-Identifier: Apache-2.0
"""Goal: dockerd runs its containers in virtual machines, and nobody who uses its client has to know."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests.support.docker import Docker
from tests.support.engines import Typist
from tests.support.kata import wait_until
from tests.support.loops import loop

UNTIL_TOLD = "trap 'echo told; exit 4' TERM; trap 'echo usr' USR1; echo up; while :; do sleep 0.1; done"
SLEEP = ("sh", "-c", "echo up; exec sleep 100000")


def feature(*names: str, refused: bool = False) -> pytest.MarkDecorator:
    return pytest.mark.feature("docker", *names, refused=refused)


def times_up(docker: Docker, name: str) -> int:
    return docker("logs", name, check=False).stdout.count("up\n")


def state(docker: Docker, name: str) -> tuple[str, int]:
    found = docker.inspect(name)["State"]
    return found["Status"], found["ExitCode"]


@feature(
    "run --rm", "run -i", "exit code", "--env", "--workdir", "--volume", "--volume :ro", "--volume, named", "--tmpfs"
)
def test_run(docker: Docker, tmp_path: Path) -> None:
    for name in ("rw", "ro"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "given").write_text(f"{name}\n")
    script = (
        'uname -r; pwd; echo "$WORD"; cat /rw/given /ro/given; tr a-z A-Z; echo back >/rw/back; echo kept >/named/kept;'
        "touch /ro/x; grep -c ' /scratch tmpfs ' /proc/mounts; exit 7"
    )
    binds = (f"-v={tmp_path}/rw:/rw", f"-v={tmp_path}/ro:/ro:ro", "-v=store:/named", "--tmpfs=/scratch")
    settings = ("--rm", "-i", "--env=WORD=a  b", "--workdir=/tmp")
    done = docker.run(*settings, *binds, command=("sh", "-c", script), check=False, stdin="typed\n")
    assert done.returncode == 7, done.stderr
    kernel, *rest = done.stdout.splitlines()
    assert kernel != os.uname().release
    assert rest == ["/tmp", "a  b", "rw", "ro", "TYPED", "1"]
    assert "touch: /ro/x: Read-only file system" in done.stderr
    assert (tmp_path / "rw" / "back").read_text() == "back\n"
    assert docker.run("--rm", "-v=store:/named:ro", command=("cat", "/named/kept")).stdout == "kept\n"
    assert docker("ps", "-aq").stdout == ""


@feature(
    "run -d", "exec", "exec: exit code", "exec -it", "logs", "ps", "top", "stats", "inspect: pid", "--memory",
    "pause, unpause", "kill -s", "stop", "start again", "restart", "rm -f", "update of limits", "cp, both ways", "wait",
)  # fmt: skip
def test_life(docker: Docker, tmp_path: Path) -> None:
    docker.run("-d", "--name=box", "--memory=128m", command=("sh", "-c", UNTIL_TOLD))
    wait_until(lambda: times_up(docker, "box") == 1, "the script runs")
    _look_into(docker)
    _copy(docker, tmp_path)
    docker("update", "--memory=96m", "--memory-swap=96m", "box")
    limit = "cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/memory.max"
    assert docker("exec", "box", "sh", "-c", limit).stdout == f"{96 << 20}\n"
    docker("pause", "box")
    assert docker.inspect("box")["State"]["Status"] == "paused"
    docker("unpause", "box")
    docker("kill", "-s=USR1", "box")
    wait_until(lambda: "usr" in docker("logs", "box").stdout, "the signal arrives")
    docker("stop", "box")
    assert state(docker, "box") == ("exited", 4)
    docker("start", "box")
    wait_until(lambda: times_up(docker, "box") == 2, "it runs again")
    docker("restart", "-t=0", "box")
    wait_until(lambda: times_up(docker, "box") == 3, "it runs a third time")
    docker("kill", "box")
    assert docker("wait", "box").stdout == "137\n"
    docker("start", "box")
    docker("rm", "-f", "box")
    wait_until(lambda: not docker.kata.processes("qemu-system"), "the machines are gone")


def _look_into(docker: Docker) -> None:
    pid = docker.inspect("box")["State"]["Pid"]
    assert os.path.exists(f"/proc/{pid}/ns/net")
    done = docker("exec", "box", "sh", "-c", "echo one; echo two >&2; exit 3", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "one\n", "two\n")
    done = docker("exec", "-u=1000", "-w=/tmp", "-e=A=b c", "box", "sh", "-c", 'id -u; pwd; echo "$A"')
    assert done.stdout == "1000\n/tmp\nb c\n"
    typist = Typist(docker, "exec", "-it", "box", "sh", rows=33, columns=99)
    typist.read_until("# ")
    typist.type(f"{typist.sized}; stty size; exit 6\r")
    typist.read_until(r"33 99\r\n")
    assert typist.close() == 6
    assert docker("ps", "--format={{.Names}}").stdout == "box\n"
    assert str(pid) in docker("top", "box").stdout
    stats = json.loads(docker("stats", "--no-stream", "--format={{json .}}", "box").stdout)
    assert stats["Name"] == "box"
    assert not re.match(r"0(\.0+)?B", stats["MemUsage"])


def _copy(docker: Docker, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("carried in\n")
    docker("cp", f"{tmp_path}/in", "box:/tmp/there")
    assert docker("exec", "box", "cat", "/tmp/there").stdout == "carried in\n"
    docker("exec", "box", "sh", "-c", "echo carried out >/tmp/back")
    docker("cp", "box:/tmp/back", f"{tmp_path}/out")
    assert (tmp_path / "out").read_text() == "carried out\n"


@feature("run -it", "attach, detach keys")
def test_terminal(docker: Docker) -> None:
    words = ("run", "-it", "--name=tty", "--network=none", "--detach-keys=ctrl-q", "bb:latest")
    typist = Typist(docker, *words, rows=31, columns=97)
    typist.read_until("# ")
    typist.type(f"{typist.sized}; stty size\r")
    typist.read_until(r"31 97\r\n")
    typist.type("\x11")
    assert typist.close() == 0
    again = Typist(docker, "attach", "tty")
    again.type("echo still $((40+2)); exit 5\r")
    again.read_until("still 42")
    again.close()
    assert docker("wait", "tty").stdout == "5\n"


@feature("--restart on-failure:N", "--restart always", "--restart: machine killed")
def test_restart_policies(docker: Docker) -> None:
    script = ("sh", "-c", "echo up; exit 3")
    docker.run("-d", "--name=fails", "--restart=on-failure:1", "--network=none", command=script)
    docker.run("-d", "--name=always", "--restart=always", command=SLEEP)
    wait_until(lambda: docker.inspect("fails")["RestartCount"] == 1, "it is tried again")
    wait_until(lambda: state(docker, "fails") == ("exited", 3), "it has failed again")
    assert times_up(docker, "fails") == 2
    wait_until(lambda: times_up(docker, "always") == 1, "it runs")
    os.kill(docker.kata.process("qemu-system"), signal.SIGKILL)
    wait_until(lambda: times_up(docker, "always") == 2, "it runs in another machine")
    assert docker.inspect("always")["RestartCount"] == 1
    docker("stop", "-t=0", "always")
    wait_until(lambda: not docker.kata.processes("qemu-system"), "it stays stopped")


@feature("failure: no such program (127)", "failure: not executable (126)")
@pytest.mark.parametrize(("program", "code"), [("/no/such", 127), ("/etc/passwd", 126)])
def test_what_cannot_be_run(docker: Docker, program: str, code: int) -> None:
    done = docker.run("--rm", "--network=none", command=[program], check=False)
    assert done.returncode == code, done.stderr
    assert program in done.stderr


@feature("--network host", "--device, of characters", "--privileged with the host's devices", refused=True)
@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--network=host", "host networking requested"),
        ("--device=/dev/loop-control", "cannot be given to the guest"),
        ("--privileged", "cannot be given to the guest"),
    ],
)
def test_a_refusal_reaches_the_caller(docker: Docker, option: str, told: str) -> None:
    done = docker.run("--rm", option, command=["true"], check=False)
    assert done.returncode != 0
    assert told in done.stderr.lower()


@feature("--device, a block device", "--device :r", "--privileged, without the host's devices")
def test_devices(docker: Docker) -> None:
    with loop(docker.base) as disk:
        disk.write(0, b"from the host")
        script = "head -c 13 /dev/xvda; printf 'from the guest' >/dev/xvda"
        options = ("--rm", "--network=none")
        said = docker.run(*options, f"--device={disk.node}:/dev/xvda", command=["sh", "-c", script]).stdout
        assert said == "from the host"
        assert disk.read(0, 14) == b"from the guest"
        said = docker.run(
            *options, f"--device={disk.node}:/dev/xvda:r", command=["sh", "-c", f"{script} || echo refused"]
        ).stdout
        assert said == "from the guesrefused\n"
        script = "mkdir /m && mount -t tmpfs none /m && echo mounts; ls /dev"
        said = docker.run(*options, "--privileged", "--runtime=sparing", command=["sh", "-c", script]).stdout
        assert said.startswith("mounts\n")
        assert "loop" not in said
        assert disk.holders() == []


@feature("recovery: supervisor killed", "recovery: dockerd's shim killed")
def test_what_watches_it_is_killed(docker: Docker) -> None:
    docker.run("-d", "--name=box", command=SLEEP)
    os.kill(docker.kata.process("supervisor"), signal.SIGKILL)
    assert docker("exec", "box", "echo", "still here").stdout == "still here\n"
    os.kill(docker.kata.process("containerd-shim-runc-v2"), signal.SIGKILL)
    wait_until(lambda: not docker.kata.processes("qemu-system"), "containerd has it deleted, and the machine is gone")
    wait_until(lambda: docker.inspect("box")["State"]["Status"] == "exited", "dockerd knows")
    docker("rm", "box")


@feature("recovery: dockerd killed")
def test_dockerd_is_killed(docker: Docker) -> None:
    """Without `live-restore` the next dockerd ends what ran, and starts anew what is to be kept running."""
    docker.run("-d", "--name=kept", "--restart=always", command=SLEEP)
    wait_until(lambda: times_up(docker, "kept") == 1, "it runs")
    docker.kill_and_start_again()
    wait_until(lambda: times_up(docker, "kept") == 2, "it runs again")
    assert docker("exec", "kept", "sh", "-c", "ip -o -4 addr show eth0").stdout.split()[3].startswith("10.92.0.")
    docker.kata.process("qemu-system")
    docker("rm", "-f", "kept")
