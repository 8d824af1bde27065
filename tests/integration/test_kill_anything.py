# SPDX-License-Identifier: Apache-2.0
"""Goal: kill any process of ours at any instant, and the next verb converges, the code is true, and nothing is left.

The supervisor is killed just before or just after each append of a whole life (create, start, exec, pause, resume, kill,
delete), one boundary a life.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import names
from tests.support.dying import VARIABLE, appends, write_command
from tests.support.kata import GONE_S, LIMIT_S, Kata, Traces, clean_up_by_force, kill_rest, leaks, wait_until

CODE = 3
WORKLOAD = f"trap 'exit {CODE}' TERM; echo up; while :; do sleep 0.05; done"
LIVES_AT_ONCE = 2


class Life:
    """One container's life, by verbs of which one may meet a supervisor that dies under it."""

    def __init__(self, kata: Kata, name: str) -> None:
        self.kata = kata
        self.name = name
        self.refusals: list[str] = []
        self.ran = False

    def verb(self, *args: str) -> bool:
        """Whether it succeeded. One that did not says why in one line."""
        done = self.kata(*args, check=False)
        if done.returncode:
            assert len(done.stderr.splitlines()) == 1, (args, done)
            self.refusals.append(f"{args[0]}: {done.stderr.strip()}")
        return done.returncode == 0

    def status(self) -> str | None:
        """The OCI status, None when the container is gone."""
        done = self.kata("state", self.name, check=False)
        if done.returncode:
            assert "does not exist" in done.stderr, done
            return None
        return self.kata.status(self.name)

    def until(self, verb: str, wanted: str) -> None:
        """A verb that leads to a status: asked again where it failed, it finds it done or does it."""
        for _ in range(3):
            if self.verb(verb, self.name) or self.status() == wanted:
                break
        assert self.status() == wanted, (verb, self.refusals)

    def live(self, bundle: Path) -> None:
        """The whole of it. A creation that was cut off may fail; what runs goes on whatever happens to others."""
        if not self.verb("create", "--bundle", str(bundle), self.name):
            if self.status() is not None:
                self.until_deleted("--force")
            return
        self.until("start", "running")
        self.ran = True
        assert self.verb("exec", self.name, "true") or self.verb("exec", self.name, "true"), self.refusals
        self.until("pause", "paused")
        self.until("resume", "running")
        for _ in range(3):
            if self.verb("kill", self.name, "TERM") or self.status() == "stopped":
                break  # whether a signal whose supervisor died was sent, its end tells
        wait_until(lambda: self.status() in ("stopped", None), f"the end of {self.name}")
        self.until_deleted()

    def until_deleted(self, *options: str) -> None:
        for _ in range(3):
            if self.verb("delete", *options, self.name) or self.status() is None:
                break
        assert self.status() is None, self.refusals

    def check(self) -> None:
        """What the journal tells of it."""
        assert self.kata("journal", "verify").returncode == 0
        if self.kata("replay", self.name, check=False).returncode == 1 and not self.ran:
            return  # its supervisor died before anything was recorded
        story = self.kata.story(self.name)
        assert not any(record.get("wrong") for record in story)
        inits = [
            record["detail"]
            for record in story
            if (record.get("machine"), record.get("what"), record.get("subject"))
            == ("process", "exited", f"{self.name}/init")
        ]
        started = [r for r in story if r["lane"] == "intent" and r["what"] == "container.start"]
        assert len(started) <= 2, "asked for once, and looked after once more at the most"
        if self.ran:
            assert [detail["exit_code"] for detail in inits] == [CODE], inits
            drained = [
                record["detail"]["bytes"]
                for record in story
                if (record["lane"], record["what"], record.get("subject")) == ("note", "drained", f"{self.name}/init")
            ]
            assert drained[-1] == {"stdout": len("up\n"), "stderr": 0}


@pytest.fixture(scope="module")
def command() -> Iterator[Path]:
    """A command whose supervisors can be told to die."""
    directory = Path(tempfile.mkdtemp(prefix="kfd-"))
    yield write_command(directory)
    shutil.rmtree(directory)


class Installation:
    """A `Kata` of its own, with a check for what is left."""

    def __init__(self, rootfs: Path, command: Path) -> None:
        self.base = names.directory()
        self._traces = Traces(self.base)
        self._before = self._traces.snapshot()
        self.kata = Kata(self.base, rootfs)
        self.kata.command = command

    def gone(self) -> list[str]:
        """What is left, once nothing changes any more."""
        left: list[str] = []

        def clean() -> bool:
            left[:] = leaks(self.kata, self._traces, self._before)
            return not left

        try:
            wait_until(clean, "nothing left behind", GONE_S)
        except pytest.fail.Exception:
            pass
        return left

    def close(self) -> None:
        self.kata.env.pop(VARIABLE, None)
        clean_up_by_force(self.kata)
        kill_rest(self.kata)
        shutil.rmtree(self.base, ignore_errors=True)


def one_life(rootfs: Path, command: Path, number: int, when: str) -> tuple[int, list[str]]:
    """A life in which the supervisor dies at append `number`; (appends in all, what verbs said)."""
    installation = Installation(rootfs, command)
    kata = installation.kata
    counter = installation.base / "appends"
    try:
        kata.env[VARIABLE] = f"{counter}:{number}:{when}"
        life = Life(kata, "c1")
        life.live(kata.bundle("b", "/bin/sh", "-c", WORKLOAD))
        life.check()
        left = installation.gone()
        assert not left, left
        return appends(counter), life.refusals
    except BaseException as error:
        said = f"died {when} append {number}\n{kata.latest_story()}\n{kata.logs()}"
        raise AssertionError(f"{error}\n{said}") from error
    finally:
        installation.close()


def test_a_supervisor_killed_at_any_boundary_of_the_journal(rootfs: Path, command: Path) -> None:
    total, refusals = one_life(rootfs, command, 10_000, "before")
    assert refusals == []
    assert total > 30, "a whole life"
    moments = [(number, when) for number in range(1, total + 1) for when in ("before", "after")]
    with ThreadPoolExecutor(LIVES_AT_ONCE) as pool:
        found = list(pool.map(lambda moment: one_life(rootfs, command, *moment), moments))
    assert len(found) == len(moments)
    told = [line for _, lines in found for line in lines]
    assert all("Traceback" not in line for line in told)


def test_a_killed_shim_ends_as_such_and_its_container_goes_on(kata: Kata) -> None:
    """The engine sees that pid end; the record says so; the container lives and its code is recorded."""
    bundle = kata.bundle("b", "/bin/sh", "-c", WORKLOAD)
    kata.detached("c1", bundle)
    (shim,) = kata.processes("shim", "c1")
    os.kill(shim, signal.SIGKILL)
    wait_until(lambda: not kata.processes("shim", "c1"), "the shim is gone")
    assert kata.status("c1") == "running"
    kata("exec", "c1", "true")
    kata("kill", "c1", "TERM")
    wait_until(lambda: kata.status("c1") == "stopped", "the container is stopped")
    kata("delete", "c1")
    life = Life(kata, "c1")
    life.ran = True
    life.check()


def test_a_killed_command_line_changes_nothing_for_its_container(kata: Kata) -> None:
    """`run` attached is killed: its shim keeps the container, whose code is recorded."""
    bundle = kata.bundle("b", "/bin/sh", "-c", WORKLOAD)
    runner = kata.spawn("run", "--bundle", str(bundle), "c1")
    assert runner.stdout is not None
    with runner, runner.stdout:
        assert runner.stdout.readline() == "up\n"
        runner.send_signal(signal.SIGKILL)
    assert kata.status("c1") == "running"
    kata("kill", "c1", "TERM")
    wait_until(lambda: kata.status("c1") == "stopped", "the container is stopped")
    kata("delete", "c1")
    life = Life(kata, "c1")
    life.ran = True
    life.check()


@pytest.mark.parametrize("verb", ["create", "exec"])
def test_a_command_line_killed_at_work_leaves_something_that_can_be_deleted(kata: Kata, verb: str) -> None:
    bundle = kata.bundle("b", "/bin/sh", "-c", WORKLOAD)
    if verb == "exec":
        kata.detached("c1", bundle)
        argv = kata.argv("exec", "c1", "sleep", "1000")
    else:
        argv = kata.argv("create", "--bundle", str(bundle), "c1")
    with subprocess.Popen(argv, env=kata.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as doomed:
        if verb == "create":
            wait_until(lambda: kata.processes("qemu-system", "sandbox-c1"), "QEMU")
        else:
            wait_until(lambda: "process.exec" in kata("replay", "c1").stdout, "the exec is under way")
        doomed.send_signal(signal.SIGKILL)
    if verb == "exec":
        assert kata.status("c1") == "running"
    kata("delete", "--force", "c1")
    assert kata("journal", "verify").returncode == 0


@pytest.mark.parametrize("role", ["supervisor", "shim", "virtiofsd", "qemu-system"])
def test_a_stopped_process_does_not_keep_a_sandbox_from_being_deleted(kata: Kata, role: str) -> None:
    kata.detached("c1", kata.bundle("b", "/bin/sh", "-c", WORKLOAD))
    kata.kill(role, number=signal.SIGSTOP)
    assert kata("state", "c1").returncode == 0
    kata("delete", "--force", "c1")
    assert kata("journal", "verify").returncode == 0


BLOCK = 65536
BLOCKS = 800  # 52 MB
KILLS = 20


def test_a_counted_stream_survives_twenty_killed_supervisors(kata: Kata) -> None:
    """No byte is lost or doubled: each block begins with its number, and all of it is compared."""
    script = (
        f"head -c {BLOCK - 9} /dev/urandom > /dev/shm/rest; cat /dev/shm/rest; i=0; "
        f"while [ $i -lt {BLOCKS} ]; do printf '%08d:' $i; cat /dev/shm/rest; i=$((i+1)); done"
    )
    bundle = kata.bundle("b", "/bin/sh", "-c", script)
    runner = subprocess.Popen(
        kata.argv("run", "--bundle", str(bundle), "c1"), env=kata.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    found, kills = bytearray(), 0
    step = BLOCK * BLOCKS // (KILLS + 1)
    with runner:
        assert runner.stdout is not None
        while data := runner.stdout.read1(1 << 20):  # type: ignore[attr-defined]
            found += data
            if kills < KILLS and len(found) > (kills + 1) * step:
                kills += len(kata.kill("supervisor", "c1"))
        assert runner.wait(LIMIT_S) == 0
    assert kills >= KILLS
    rest = bytes(found[: BLOCK - 9])
    assert bytes(found[BLOCK - 9 :]) == b"".join(b"%08d:" % number + rest for number in range(BLOCKS))
