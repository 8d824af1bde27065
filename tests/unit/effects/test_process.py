# SPDX-License-Identifier: Apache-2.0
"""Processes: identity is more than a pid, ends are seen with their status, and nothing unwanted is inherited."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import trio

from kata_fsm import errors
from kata_fsm.effects import process
from kata_fsm.effects.process import Exit, Identity


def shell(place, command: str) -> Identity:
    return process.spawn(["/bin/sh", "-c", command, place.top], log_path=f"{place.work}/log")


async def test_exit_code_is_seen(place):
    assert await process.wait_exit(shell(place, "exit 7")) == Exit(code=7)


async def test_signal_is_seen(place):
    identity = shell(place, "kill -SEGV $$")
    ended = await process.wait_exit(identity)
    assert ended.signal == signal.SIGSEGV
    assert ended.describe().startswith("was killed by SIGSEGV")


async def test_every_watcher_learns_the_status(place):
    identity = shell(place, "read line; exit 3")  # input is /dev/null: ends at once
    results = []

    async def watch() -> None:
        results.append(await process.wait_exit(identity))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        nursery.start_soon(watch)
    assert results == [Exit(code=1 + 2)] * 2
    assert await process.wait_exit(identity) == Exit(code=3)


async def test_no_zombie_is_left(place):
    identity = shell(place, "exit 0")
    await process.wait_exit(identity)
    assert not os.path.exists(f"/proc/{identity.pid}")


async def test_a_pid_with_another_start_time_is_somebody_else(place):
    identity = shell(place, "exec sleep 60")
    other = msgspec.structs.replace(identity, start_ticks=identity.start_ticks + 1)
    rebooted = msgspec.structs.replace(identity, boot_id="another boot")
    for stranger in (other, rebooted):
        assert process.open_pidfd(stranger) is None
        assert not process.alive(stranger)
        assert not process.kill(stranger, signal.SIGKILL)
        assert await process.wait_exit(stranger) == process.UNKNOWN
    assert process.alive(identity)
    assert (await process.kill_and_wait(identity)).signal == signal.SIGKILL
    assert not process.alive(identity)


async def test_the_end_of_somebody_elses_child_is_seen_without_status(place):
    # The grandchild is not ours, and its parent does not wait for it until told to.
    script = (
        "import subprocess, sys; p = subprocess.Popen(['/bin/sleep', '61']); "
        "print(p.pid, flush=True); sys.stdin.read(); p.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        identity = process.identify(int(parent.stdout.readline()))
        with trio.fail_after(60):
            assert await process.kill_and_wait(identity) == process.UNKNOWN
        assert not process.alive(identity)  # a zombie by now
        parent.stdin.close()


async def test_only_what_is_passed_gets_through(place):
    leaky_read, leaky_write = os.pipe()
    os.set_inheritable(leaky_write, True)
    wanted_read, wanted_write = os.pipe()
    identity = process.spawn(
        ["/bin/sh", "-c", "ls -l /proc/self/fd; /usr/bin/env; ps -o sid= -p $$; echo $$; pwd"],
        log_path=f"{place.work}/log",
        env={"ONLY": "this"},
        pass_fds=[wanted_write],
    )
    assert (await process.wait_exit(identity)).code == 0
    said = Path(f"{place.work}/log").read_text()
    assert f"pipe:[{os.fstat(wanted_write).st_ino}]" in said
    assert f"pipe:[{os.fstat(leaky_write).st_ino}]" not in said
    assert "ONLY=this" in said
    assert "HOME=" not in said
    assert "0 -> /dev/null" in said
    session, pid, where = said.split()[-3:]
    assert (session, where) == (pid, "/")
    for fd in (leaky_read, leaky_write, wanted_read, wanted_write):
        os.close(fd)


def test_what_cannot_be_started_is_said(place):
    with pytest.raises(errors.EffectError, match=r"cannot start `/no/such`: `/no/such`: No such file or directory"):
        process.spawn(["/no/such"], log_path=f"{place.work}/log")
    with pytest.raises(errors.EffectError, match=r"cannot start `/bin/true`: `/no/log`: No such file"):
        process.spawn(["/bin/true"], log_path="/no/log")


async def test_found_by_whole_arguments_only(place):
    file = place.top + "/file"
    Path(file).touch()
    identity = process.spawn(["/usr/bin/tail", "-f", file], log_path=f"{place.work}/log")
    assert process.find_by_argv(file) == [identity]
    assert process.find_by_argv("-f", file) == [identity]
    assert process.find_by_argv("-F", file) == []
    assert process.find_by_argv(file[:-1]) == []
    await process.kill_and_wait(identity)
    assert process.find_by_argv(file) == []


def test_identity_survives_a_record():
    identity = process.identify(os.getpid())
    assert Identity.from_dict({**identity.to_dict(), "more": 1}) == identity
    assert Identity.from_dict({"pid": 1}) is None
    assert process.identify(2**22 + 1) is None
