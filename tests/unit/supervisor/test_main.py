# SPDX-License-Identifier: Apache-2.0
"""A supervisor's process: it comes, it is the only one, and it leaves nothing when it goes."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from journal import Journal
from kata_fsm import control
from kata_fsm.effects import mounts
from kata_fsm.machines import container, sandbox
from kata_fsm.machines.pod import moved_from_body
from kata_fsm.world import Paths, journal_dir
from tests.support.lives import live
from tests.support.stage import BOX, STREAM, SUBJECT, UID, Stage, running, state

LIMIT_S = 20.0
ROOT = Path(__file__).parents[3]

PROGRAM = """
import sys
from kata_fsm import limits
limits.SUPERVISOR_IDLE_S = limits.SUPERVISOR_LINGER_S = 0.3
import kata_fsm.effects.agent.handlers as handlers
handlers.DISCONNECT_S = 0.05
{extra}
from kata_fsm.supervisor.main import main
sys.exit(main(sys.argv[1:]))
"""

STAYS = "limits.SUPERVISOR_LINGER_S = 60.0"  # for whoever wants to ask it something
FAILS = """
import kata_fsm.supervisor.watch as watch
def reconcile(self, pod):
    if not self.blind:
        raise ZeroDivisionError("in a watch")
watch.Watcher.reconcile = reconcile
"""


class Supervisors:
    """Real supervisor processes for one sandbox."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, extra: str = "", *, resume: bool = False, stream: str = STREAM) -> tuple[Any, int]:
        """One process, and the descriptor that it reports on."""
        reader, writer = os.pipe()
        argv = [BOX, "--resume" if resume else "--stream", stream, "--ready-fd", str(writer)]
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(extra=extra), *argv],
            pass_fds=[writer],
            cwd=ROOT,
            stderr=subprocess.PIPE,
        )
        os.close(writer)
        self.started.append(process)
        return process, reader

    def ready(self, reader: int) -> bytes:
        """What it reports."""
        said = b""
        with open(reader, "rb", buffering=0) as file:
            while not said.endswith(b"\n"):
                assert select.select([file], [], [], LIMIT_S)[0], "it reports nothing"
                data = file.read(65536)
                if not data:
                    break
                said += data
        return said

    def run(self, extra: str = "", **how: Any) -> tuple[Any, bytes]:
        """Start one and wait for its report."""
        process, reader = self.start(extra, **how)
        return process, self.ready(reader)

    def leave(self, process: Any) -> str:
        """Wait for its end; what it had to say."""
        said: bytes = process.communicate(timeout=LIMIT_S)[1]
        return said.decode()

    def ask(self, **request: Any) -> dict[str, Any]:
        with control.Connection(self.paths.supervisor_sock, timeout_s=LIMIT_S) as connection:
            connection.send(request)
            return connection.receive()


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for `condition`, with a limit."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        select.select([], [], [], 0.005)


@pytest.fixture
def supervisors(paths: Paths) -> Iterator[Supervisors]:
    made = Supervisors(paths)
    yield made
    for process in made.started:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def recorded() -> list[Any]:
    """Everything in the sandbox's stream."""
    with Journal.open(journal_dir(), read_only=True) as journal:
        return list(journal.read_stream(STREAM))


def states() -> dict[str, str]:
    """The last state of every machine."""
    moves = [moved_from_body(record.data) for record in recorded() if record.kind == "event"]
    return {f"{move.machine} {move.subject}".strip(): move.dest for move in moves}


GONE = {"pid": 1, "start_ticks": 123456789, "boot_id": "gone"}
"""A process that is no more."""


@pytest.fixture
def plant(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`plant(at)` writes the journal of a sandbox that has lived until `at`, and whose shims are gone since."""
    monkeypatch.setattr("tests.support.lives.ourselves", lambda: GONE)
    return _plant


def _plant(at: Callable[[Any], bool], *, alive: bool = True) -> None:
    async def lives() -> None:
        stage = Stage()
        if not alive:
            stage.results |= {"hypervisor.launch": GONE, "share.prepare": GONE}
        with Journal.open(journal_dir(), sync=False) as journal:
            async with running(journal, stage) as runtime:
                await live(runtime, at)

    trio.run(lives)


def test_one_that_nobody_asks_leaves_nothing(supervisors: Supervisors) -> None:
    process, said = supervisors.run()
    assert said == b"ok\n"
    assert supervisors.leave(process) == ""
    assert process.returncode == 0
    assert not os.path.exists(supervisors.paths.base)
    assert not os.path.exists(supervisors.paths.logs)
    assert not recorded()


def test_one_whose_creation_is_refused_leaves(supervisors: Supervisors) -> None:
    process, _ = supervisors.run("limits.SUPERVISOR_IDLE_S = 60.0")
    bad = {"id": BOX, "uid": UID, "root": "/r", "hypervisor": {"no_such_setting": 1}}
    reply = supervisors.ask(op="create", sandbox=bad, container={"id": BOX, "guest_spec": {}})
    assert "no_such_setting" in json.dumps(reply["error"])
    assert supervisors.leave(process) == ""
    assert not os.path.exists(supervisors.paths.base)
    assert not recorded()


def test_there_is_only_one(supervisors: Supervisors) -> None:
    """The second finds the first, says that somebody is there, and leaves."""
    first, _ = supervisors.run("limits.SUPERVISOR_IDLE_S = 60.0")
    second, said = supervisors.run(resume=True)
    assert said == b"ok\n"
    assert supervisors.leave(second) == ""
    assert second.returncode == 0
    assert supervisors.ask(op="ping")["pid"] == first.pid
    mode = os.stat(supervisors.paths.supervisor_sock).st_mode
    assert mode & 0o777 == 0o600


def test_a_readers_look_at_the_lock_is_outlasted(supervisors: Supervisors) -> None:
    fd = os.open(supervisors.paths.supervisor_lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_SH)
    process, reader = supervisors.start()
    assert not select.select([reader], [], [], 0.5)[0]
    os.close(fd)
    assert supervisors.ready(reader) == b"ok\n"
    assert supervisors.leave(process) == ""


def test_one_that_waits_for_a_lock_takes_over_when_its_holder_is_gone(supervisors: Supervisors) -> None:
    """The holder does not listen (it is leaving): the next neither gives up nor begins too early."""
    fd = os.open(supervisors.paths.supervisor_lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    _, reader = supervisors.start("limits.SUPERVISOR_IDLE_S = 60.0")
    assert not select.select([reader], [], [], 0.5)[0]
    os.unlink(supervisors.paths.supervisor_lock)  # it cleans up as its last act
    os.close(fd)
    assert supervisors.ready(reader) == b"ok\n"
    assert not control.lock_is_free(supervisors.paths.supervisor_lock), "the lock that it holds is nobody's"


def test_a_lock_that_is_held_for_ever_is_told(supervisors: Supervisors) -> None:
    fd = os.open(supervisors.paths.supervisor_lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    process, said = supervisors.run("limits.SUPERVISOR_START_S = 0.2")
    os.close(fd)
    assert "does not answer" in json.loads(said)["error"]["message"]
    supervisors.leave(process)
    assert process.returncode == 1


def test_what_keeps_it_from_starting_is_reported(supervisors: Supervisors, tmp_path: Path) -> None:
    directory = Path(journal_dir())
    directory.mkdir(parents=True)
    (directory / "data.mdb").write_bytes(b"rubbish" * 2000)
    process, said = supervisors.run()
    assert json.loads(said)["error"]["family"] in ("world", "damaged")
    assert supervisors.leave(process).startswith("supervisor: ")
    assert process.returncode == 1


def test_one_that_resumes_an_ended_sandbox_serves_its_deletion(supervisors: Supervisors, plant: Any) -> None:
    """And removes the last traces."""
    plant(state("sandbox", sandbox.STOPPED))
    Path(supervisors.paths.console_log).write_text("kept until now")
    process, said = supervisors.run(STAYS, resume=True)
    assert said == b"ok\n"
    assert supervisors.ask(op="delete", container=BOX) == {"ok": True}
    assert supervisors.leave(process) == ""
    assert not os.path.exists(supervisors.paths.base)
    assert not os.path.exists(supervisors.paths.logs)
    assert states()["sandbox"] == sandbox.DELETED


@pytest.mark.parametrize("journal", ["gone", "another"])
def test_one_that_has_lost_its_journal_touches_nothing(supervisors: Supervisors, tmp_path: Path, journal: str) -> None:
    """A shim starts it, and knows nothing of that. What is bound in its directory is a container's root file system."""
    if journal == "another":
        Journal.open(journal_dir()).close()
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "data").write_text("somebody's")
    shared = f"{supervisors.paths.base}/shared"
    os.makedirs(shared)
    mounts.bind(str(bundle), shared)
    try:
        process, said = supervisors.run(resume=True)
        assert b"error" in said
        assert "journal" in supervisors.leave(process)
        assert process.returncode == 1
        assert (bundle / "data").read_text() == "somebody's"
        assert os.path.exists(journal_dir()) == (journal == "another")
    finally:
        mounts.unmount_below(shared)


def test_the_last_traces_are_not_removed_through_a_mount(supervisors: Supervisors, plant: Any, tmp_path: Path) -> None:
    plant(state("sandbox", sandbox.STOPPED))
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "data").write_text("somebody's")
    left = f"{supervisors.paths.base}/left"
    os.makedirs(left)
    mounts.bind(str(bundle), left)
    try:
        process, _ = supervisors.run(STAYS, resume=True)
        assert supervisors.ask(op="delete", container=BOX) == {"ok": True}
        assert "still mounted" in supervisors.leave(process)
        assert (bundle / "data").read_text() == "somebody's"
    finally:
        mounts.unmount_below(left)


def test_one_whose_sandbox_has_ended_leaves_and_another_comes(supervisors: Supervisors, plant: Any) -> None:
    plant(state("sandbox", sandbox.STOPPED))
    before = len(recorded())
    for _ in range(2):
        process, _ = supervisors.run(resume=True)
        assert supervisors.leave(process) == ""
        assert process.returncode == 0
        assert not os.path.exists(supervisors.paths.supervisor_sock)
    assert len(recorded()) == before
    assert os.path.isdir(supervisors.paths.logs)


def test_a_deletion_that_comes_while_it_leaves_is_served(supervisors: Supervisors, plant: Any) -> None:
    """Connected before the door was closed, asked after."""
    plant(state("sandbox", sandbox.STOPPED))
    process, _ = supervisors.run("limits.SUPERVISOR_LINGER_S = 3.0", resume=True)
    with control.Connection(supervisors.paths.supervisor_sock, timeout_s=LIMIT_S) as connection:
        until(lambda: not os.path.exists(supervisors.paths.supervisor_sock), "it to leave")
        connection.send({"op": "delete", "container": BOX})
        assert connection.receive() == {"ok": True}
    assert supervisors.leave(process) == ""
    assert not os.path.exists(supervisors.paths.base)


def test_one_that_takes_over_a_dead_sandbox_takes_it_down(supervisors: Supervisors, plant: Any) -> None:
    """Its VMM died unwatched: everything is released with the real handlers, and the deletion needs no force."""
    plant(state("container", container.RUNNING, BOX), alive=False)
    process, said = supervisors.run(STAYS, resume=True)
    assert said == b"ok\n"
    until(lambda: states()["sandbox"] == sandbox.FAILED, "the sandbox to be taken down")
    assert supervisors.ask(op="delete", container=BOX) == {"ok": True}
    assert supervisors.leave(process) == ""
    assert not os.path.exists(supervisors.paths.base)
    (died,) = [r.data for r in recorded() if r.type == "vm.died"]
    assert died["facts"]["cause"]["kind"] == "vm_killed"


def test_a_failure_of_its_own_is_told_in_the_log_and_the_journal(supervisors: Supervisors, plant: Any) -> None:
    """And the sandbox is left as it is: the next supervisor goes on, as after a kill."""
    plant(state("container", container.RUNNING, BOX))
    process, said = supervisors.run(FAILS, resume=True)
    assert json.loads(said)["error"]["family"] == "bug"
    text = supervisors.leave(process)
    assert "ZeroDivisionError: in a watch" in text
    assert "Traceback" in text
    assert process.returncode == 1
    last = recorded()[-1]
    assert (last.kind, last.type) == ("note", "supervisor_failed")
    assert last.data["error"] == "ZeroDivisionError: in a watch"
    assert "reconcile" in last.data["traceback"]
    assert states()[f"container {BOX}"] == container.RUNNING


def test_one_that_fails_again_and_again_takes_its_sandbox_down(supervisors: Supervisors, plant: Any) -> None:
    """Rather than failing for ever: the third is followed by one that watches nothing and ends everything."""
    plant(state("container", container.RUNNING, BOX))
    for _ in range(3):
        process, _ = supervisors.run(FAILS, resume=True)
        supervisors.leave(process)
        assert states()["sandbox"] == sandbox.READY
    process, said = supervisors.run(FAILS, resume=True)
    assert said == b"ok\n"
    supervisors.leave(process)
    assert states()["sandbox"] == sandbox.FAILED
    (stop,) = [r.data for r in recorded() if r.type == "sandbox.stop"]
    assert stop["facts"]["cause"]["kind"] == "supervisor_failed"
    assert "failed 3 times" in stop["facts"]["cause"]["message"]
    (exited,) = [r.data for r in recorded() if r.type == "process.exited" and r.data["subject"] == SUBJECT]
    assert exited["facts"]["exit_code"] == 255


def test_one_that_is_killed_leaves_its_sandbox_to_the_next(supervisors: Supervisors, plant: Any) -> None:
    plant(state("sandbox", sandbox.STOPPED))
    first, _ = supervisors.run(STAYS, resume=True)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert control.lock_is_free(supervisors.paths.supervisor_lock)
    second, said = supervisors.run(STAYS, resume=True)
    assert said == b"ok\n"
    assert supervisors.ask(op="ping")["pid"] == second.pid
