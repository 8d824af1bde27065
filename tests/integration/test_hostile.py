# SPDX-License-Identifier: Apache-2.0
"""Goal: whoever misuses a sandbox, or takes its processes away in mid-act, is told in one line and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.kata import LIMIT_S, Kata, wait_until

SLEEP = ("/bin/sleep", "1000")


def create(kata: Kata, bundle: Path, name: str = "c1") -> subprocess.Popen[str]:
    """`create` under way, its errors on a pipe of its own (the shim keeps stdout and stderr)."""
    with (kata.base / f"err-{time.monotonic_ns()}").open("w") as errors:
        creating = subprocess.Popen(
            kata.argv("create", "--bundle", str(bundle), name),
            env=kata.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
        )
    creating.said = Path(errors.name)  # type: ignore[attr-defined]
    return creating


def outcome(creating: subprocess.Popen[str]) -> tuple[int, str]:
    code = creating.wait(LIMIT_S)
    return code, creating.said.read_text()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("supervisor", "c1"), "hung up before it answered"),
        (("qemu-system", "sandbox-c1"), "QEMU was killed by SIGKILL"),
        (("shim", "c1"), "the shim was killed by signal 9"),
    ],
)
def test_what_is_killed_while_a_container_is_created_is_told(kata: Kata, words: tuple[str, ...], told: str) -> None:
    creating = create(kata, kata.bundle("b", *SLEEP))
    # The shim is the last of them to come; from then on everything is under way.
    wait_until(lambda: kata.processes("shim", "c1"), "the shim")
    wait_until(lambda: kata.kill(*words), f"{words[0]} runs")
    code, said = outcome(creating)
    assert code == 1
    assert len(said.splitlines()) == 1
    assert said.startswith("cannot create container `c1`: ")
    assert told in said
    assert said.strip() in (kata.base / "log").read_text()
    assert kata("state", "c1", check=False).returncode == 1


def test_one_of_many_gets_the_id(kata: Kata) -> None:
    bundle = kata.bundle("b", *SLEEP)
    outcomes = [outcome(creating) for creating in [create(kata, bundle) for _ in range(10)]]
    assert sorted(code for code, _ in outcomes) == [0] + [1] * 9
    assert all(said.startswith("ID already in use") for code, said in outcomes if code)
    assert len(kata.processes("qemu-system")) == 1
    kata("delete", "--force", "c1")


def test_force_does_not_wait_for_a_reader_that_stopped_reading(kata: Kata) -> None:
    bundle = kata.bundle("b", "/bin/sh", "-c", "yes")
    runner = kata.spawn("run", "--bundle", str(bundle), "c1")
    assert runner.stdout is not None
    with runner, runner.stdout:
        runner.stdout.read(100)
        kata("kill", "c1", "KILL")
        wait_until(lambda: kata.status("c1") == "stopped", "the container is stopped")
        kata("delete", "--force", "c1")
        assert runner.wait(LIMIT_S) == 128 + signal.SIGKILL


@contextmanager
def small(directory: Path, size: str) -> Iterator[None]:
    """A file system of `size` at `directory`."""
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.parametrize(("which", "size"), [("s", "4k"), ("s", "1m"), ("r", "4k"), ("r", "1m")])
def test_no_disk_space_is_told_and_nothing_is_left(kata: Kata, which: str, size: str) -> None:
    bundle = kata.bundle("b", *SLEEP)
    with small(kata.base / which, size):
        done = kata("create", "--bundle", str(bundle), "c1", check=False)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "no disk space" in done.stderr
        left = [path for path in (kata.base / which).rglob("*") if "journal" not in path.parts]
        assert left == []


def test_a_member_that_ended_leaves_nothing_open_in_its_pods_file_server(kata: Kata) -> None:
    """The agent holds a container's directories, and lets go of them when it removes the container, which is soon."""
    keys = "io.kubernetes.cri."
    pod = {f"{keys}container-type": "sandbox", f"{keys}sandbox-id": "pod"}
    kata.detached("pod", kata.bundle("pod", "/bin/sleep", "1000", annotations=pod))
    member = {**pod, f"{keys}container-type": "container"}
    kata.detached("m1", kata.bundle("m1", *SLEEP, annotations=member))
    kata("exec", "m1", "cat", "/etc/passwd")

    def opened() -> list[str]:
        """What the file server has open of it. A descriptor may be gone before its name is read."""
        paths = []
        for pid in kata.processes("virtiofsd"):
            for each in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    paths.append(os.readlink(each))
        return [path for path in paths if path.startswith("/m1/rootfs")]

    assert "/m1/rootfs/etc/passwd" in opened()
    kata("kill", "m1", "KILL")
    wait_until(lambda: not opened(), "nothing of it is open")
    wait_until(lambda: kata.status("m1") == "stopped", "the member has ended")
    kata("delete", "m1")
    kata("delete", "--force", "pod")
