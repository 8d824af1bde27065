# SPDX-License-Identifier: Apache-2.0
"""`create` against a supervisor that speaks the protocol and runs nothing: real command, real shim, real descriptors."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import hung

ROOT = Path(__file__).parents[3]
LIMIT_S = 20.0
PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture
def subreaper() -> Iterator[None]:
    """This process inherits the orphans of what it starts, as conmon and containerd's shim do."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def test_the_pid_is_a_child_that_exits_with_the_workloads_code(
    stubbed: Any, bundle: Any, subreaper: None, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    words = ["--log", str(tmp_path / "log"), "--root", str(stubbed.root)]
    argv = [stubbed.path, *words, "create", "--bundle", bundle(), "--pid-file", pid_file, "box"]
    inherited, _ = os.pipe()
    with subprocess.Popen(
        argv, env=stubbed.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[inherited]
    ) as creating:
        assert creating.wait(LIMIT_S) == 0
        pid = int(pid_file.read_bytes())
        command_line = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        assert command_line[3:5] == ["shim", "box"]
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert os.readlink(f"/proc/self/fd/{inherited}") not in links
        assert os.getsid(pid) == pid
        out, _ = creating.communicate(b"hello", timeout=LIMIT_S)
    assert out == b"echo: hello"
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert "cgroup `/no/such/cgroup` does not take the shim" in (tmp_path / "log").read_text()
    request = json.loads((tmp_path / "state" / "request.json").read_text())
    assert request["actor"]["pid"] == os.getpid()
    assert request["container"]["args"] == ["sh"]
    assert request["sandbox"]["id"] == "box"
    assert request["container"]["guest_spec"]["root"]["path"].endswith("/containers/box/rootfs")


def test_a_refusal_is_told_and_no_shim_is_left(stubbed: Any, bundle: Any, tmp_path: Path) -> None:
    stubbed.plan(refuse="cannot create container `box`: no")
    done = stubbed("create", "--bundle", bundle(), "--pid-file", str(tmp_path / "pid"), "box")
    assert (done.returncode, done.stderr) == (1, "cannot create container `box`: no (try again)\n")
    assert not (tmp_path / "pid").exists()


@pytest.mark.parametrize(("verb", "option", "box"), [("create", "--bundle", "new"), ("exec", "--process", "other")])
def test_what_never_answers_is_named_and_the_command_ends(
    verb: str, option: str, box: str, stubbed: Any, tmp_path: Path
) -> None:
    """Although a thread of it is in the kernel for ever."""
    dead = tmp_path / "dead"
    dead.mkdir()
    stubbed.add("other", status="running", state="running")
    code = "from kata_fsm import limits; limits.HOST_CALL_S = 2.0; from kata_fsm.cli.main import console_main as main"
    argv = [sys.executable, "-c", f"{code}; main()", "--root", str(stubbed.root), verb, option, str(dead), box]
    with hung.mounted(dead):
        done = subprocess.run(argv, env=stubbed.environment, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    assert f"`{dead}` did not answer within 2 s: the server of its file system hangs" in done.stderr
    assert done.returncode == 1


def test_a_supervisor_that_cannot_start_says_why_and_leaves_nothing(stubbed: Any, bundle: Any, tmp_path: Path) -> None:
    stubbed.plan(ready="the journal is damaged")
    done = stubbed("create", "--bundle", bundle(), "box")
    assert (done.returncode, done.stderr) == (1, "the journal is damaged\n")
    assert not (tmp_path / "run" / "sandboxes").exists()


def test_a_member_needs_its_sandbox(stubbed: Any, bundle: Any) -> None:
    words = {"io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.cri-o.SandboxID": "infra"}
    done = stubbed("create", "--bundle", bundle(annotations=words), "member")
    assert done.stderr == "sandbox `infra` of container `member` is not there (create it first)\n"


def test_a_terminal_that_its_receiver_has_closed_is_told(stubbed: Any, bundle: Any, tmp_path: Path) -> None:
    directory = Path(bundle())
    document = json.loads((directory / "config.json").read_text())
    document["process"]["terminal"] = True
    (directory / "config.json").write_text(json.dumps(document))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def receive_and_close() -> None:
            connection, _ = listener.accept()
            _, fds, _, _ = socket.recv_fds(connection, 100, 1)
            os.close(fds[0])
            connection.close()

        receiver = threading.Thread(target=receive_and_close)
        receiver.start()
        done = stubbed("create", "--bundle", str(directory), "--console-socket", str(tmp_path / "s"), "box")
        receiver.join()
    assert done.returncode == 1
    assert "its terminal has been closed by whoever was given it" in done.stderr


def test_a_supervisor_that_ends_half_way_is_told_in_one_line(stubbed: Any, bundle: Any) -> None:
    stubbed.plan(die=True)
    done = stubbed("create", "--bundle", bundle(), "box")
    assert done.returncode == 1
    assert done.stderr.startswith("cannot create container `box`: the supervisor at ")
    assert len(done.stderr.splitlines()) == 1
    assert not (stubbed.directory / "run" / "sandboxes").exists()
