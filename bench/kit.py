# SPDX-License-Identifier: Apache-2.0
"""A private installation to measure: its own run, state and root directories, gone when the benchmark ends."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kata_fsm.testing.bundle import make_bundle

ROOT = Path(__file__).resolve().parents[1]
COMMAND = ROOT / ".venv" / "bin" / "kata-fsm"
LIMIT_S = 300.0  # for one command, on a machine with a lot else to do


class BenchError(Exception):
    """What was measured did not work, so that its time would mean nothing."""


@dataclass
class Ran:
    """One command, from before its start to its end. `wall_ns` is its start by CLOCK_BOOTTIME, the journal's clock."""

    wall_s: float
    started_ns: int
    ended_ns: int
    out: bytes


class Kit:
    """Use as a context manager. Paths are short: unix sockets are made below them."""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="kfb", dir="/tmp"))
        self.run_dir = self.base / "r"
        self.state_dir = self.base / "s"
        self._ids = 0

    @property
    def env(self) -> dict[str, str]:
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "KATA_FSM_RUN": str(self.run_dir),
            "KATA_FSM_STATE": str(self.state_dir),
        }

    def __enter__(self) -> Kit:
        if not COMMAND.exists():
            raise BenchError(f"`{COMMAND}` is not there: run `sh scripts/setup` first")
        # What the product's own code, used in this process, is told by its environment.
        os.environ.update(self.env)
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.verb("list", "--quiet", check=False).out.decode().split():
            self.verb("delete", "--force", name, check=False)
        shutil.rmtree(self.base, ignore_errors=True)

    def new_id(self, prefix: str) -> str:
        """A container id that was not used before."""
        self._ids += 1
        return f"{prefix}{self._ids}"

    def bundle(self, name: str, *args: str, **changes: Any) -> Path:
        """A bundle with busybox that runs `args`."""
        return make_bundle(self.base / "b" / name, args, **changes)

    def argv(self, *args: str) -> list[str]:
        """The command line of a verb."""
        return [str(COMMAND), *args]

    def verb(self, *args: str, check: bool = True) -> Ran:
        """Run a verb to its end."""
        return timed(self.argv(*args), self.env, check=check)

    def delete(self, *names: str) -> None:
        """Delete containers by force."""
        for name in names:
            self.verb("delete", "--force", name)


def timed(argv: Sequence[str], env: dict[str, str], *, check: bool = True) -> Ran:
    """Run a command to its end. Its output goes to a file, which what it leaves behind may keep open."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = now_ns()
        command = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        code = ended_code(command)
        ended = now_ns()
        out.seek(0)
        err.seek(0)
        if check and code:
            said = err.read().decode(errors="replace")
            raise BenchError(f"`{' '.join(argv)}` exited {code}: {said}")
        return Ran((ended - started) / 1e9, started, ended, out.read())


def ended_code(command: subprocess.Popen[bytes]) -> int:
    """The exit code as soon as there is one. `Popen.wait` with a limit would look only every 50 ms."""
    pidfd = os.pidfd_open(command.pid)
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if not poller.poll(LIMIT_S * 1e3):
            command.kill()
            raise BenchError(f"`{command.args!r}` did not end within {LIMIT_S:g} s")
    finally:
        os.close(pidfd)
    return command.wait()


def now_ns() -> int:
    """CLOCK_BOOTTIME, as in the journal's records."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def interpreter() -> str:
    """The interpreter that the installed command names."""
    return os.path.realpath(sys.executable)


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def machine() -> list[str]:
    """What a reader must know of the machine, noise included."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    with open("/proc/loadavg", encoding="ascii") as file:
        load = " ".join(file.read().split()[:3])
    name = models[0] if models else "unknown"
    release = os.uname().release
    return [
        f"{os.cpu_count()} x {name}, kernel {release}; load average before: {load}",
        "medians; ratios are of medians; the two sides of a ratio were measured in turn",
    ]


def cpu_s(argv: Sequence[str], env: dict[str, str]) -> float:
    """User and system seconds of one command whose output goes nowhere."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]
        pid = os.posix_spawn(argv[0], list(argv), env, file_actions=actions)
    finally:
        os.close(null)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise BenchError(f"`{' '.join(argv)}` ended with status {status}")
    return usage.ru_utime + usage.ru_stime
