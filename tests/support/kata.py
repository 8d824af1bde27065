# SPDX-License-Identifier: Apache-2.0
"""A private installation of the real command for tests, and what could be left behind on a host."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

from journal import Journal
from kata_fsm.testing.bundle import make_bundle
from tests.support.names import is_of_others

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ROOT / ".venv" / "bin" / "kata-fsm"
LIMIT_S = 120.0  # for one command; a boot takes about 2 s on an idle machine
GONE_S = 15.0  # for what ends by itself after the command that asked for it
ENGINES_NAMESPACES = ("cni-", "netns-")  # as containerd's CRI plugin and podman begin their names


def wait_until(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """The first true value of `condition`; fails naming `what` when none came within `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"not within {limit_s:g} s: {what}")
        time.sleep(0.02)


class Verb(subprocess.Popen[str]):
    """One that is killed when a block that it was opened for fails, so that nobody waits for it."""

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, value, trace)


class Kata:
    """One private installation: its own run, state and root directories, and short names for what tests do.

    The first one of a process finds out whether guests run on KVM here, as on any new host; where they hang that takes 6 s.
    Those after it begin with its answer, as on a host where a container has run since the boot.
    """

    _answer: ClassVar[bytes] = b""

    def __init__(self, base: Path, rootfs: Path) -> None:
        self.base = base
        self.rootfs = rootfs
        self.env = {
            "PATH": os.environ["PATH"],
            "KATA_FSM_RUN": str(base / "r"),
            "KATA_FSM_STATE": str(base / "s"),
        }
        self.bundles = base / "b"
        self.command = COMMAND
        self.prefix: list[str] = []  # words that put a command where the engine is
        self._kept = base / "s" / "kvm.json"
        if Kata._answer:
            self._kept.parent.mkdir(0o700)
            self._kept.write_bytes(Kata._answer)

    def pass_on(self) -> None:
        """Let later installations begin with what this one has found out of KVM."""
        if not Kata._answer and self._kept.exists():
            Kata._answer = self._kept.read_bytes()

    def bundle(self, name: str, *args: str, terminal: bool = False, **changes: Any) -> Path:
        """A bundle that runs `args`; its root file system is a copy of the session's."""
        directory = self.bundles / name
        directory.mkdir(parents=True)
        shutil.copytree(self.rootfs, directory / "rootfs", symlinks=True)
        return make_bundle(directory, args, terminal=terminal, **changes)

    def argv(self, *args: str) -> list[str]:
        """The command line of a verb."""
        return [*self.prefix, str(self.command), "--log", str(self.base / "log"), *args]

    def __call__(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end. Output goes through files: the shim of `create` keeps its stdout open, as it must."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            done = subprocess.run(
                self.argv(*args),
                env=self.env,
                timeout=LIMIT_S,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                check=False,
            )
            out.seek(0)
            err.seek(0)
            result = subprocess.CompletedProcess(done.args, done.returncode, out.read(), err.read())
        if check and done.returncode:
            said = f"{result.stdout}\n{result.stderr}\n{self.logs()}\n{self.latest_story()}"
            pytest.fail(f"`kata-fsm {' '.join(args)}` exited {done.returncode}\n{said}")
        return result

    def spawn(self, *args: str, **kwargs: Any) -> subprocess.Popen[str]:
        """Start a verb whose output is read while it runs."""
        return Verb(self.argv(*args), env=self.env, stdout=subprocess.PIPE, text=True, **kwargs)

    def detached(self, name: str, bundle: Path) -> None:
        """Create and start a container whose output nobody reads."""
        self("create", "--bundle", str(bundle), name)
        self("start", name)

    def status(self, name: str) -> str:
        """The OCI status."""
        import json

        return str(json.loads(self("state", name).stdout)["status"])

    def story(self, name: str) -> list[dict[str, Any]]:
        """The records of a sandbox."""
        import json

        lines = self("replay", name, "-o", "jsonl").stdout.splitlines()
        return [json.loads(line) for line in lines]

    def latest_story(self) -> str:
        """How the latest sandbox got where it is, for a failed test's message."""
        done = subprocess.run(
            self.argv("replay", "-n", "60"), env=self.env, timeout=LIMIT_S, capture_output=True, text=True, check=False
        )
        return done.stdout or done.stderr

    def logs(self) -> str:
        """What the long-lived processes said, for a failed test's message."""
        found = sorted((self.base / "s" / "logs").rglob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in found)

    def processes(self, *words: str) -> list[int]:
        """Pids of processes of this installation whose command line holds all of `words`."""
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            try:
                line = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                ours = str(self.base) in line or str(self.base) in Path(f"/proc/{entry}/environ").read_text(
                    errors="replace"
                )
            except OSError:
                continue
            if ours and all(word in line for word in words):
                found.append(int(entry))
        return found

    def process(self, *words: str) -> int:
        """The pid of the one such process. While there are none or several it waits: one forks, becomes another program, or
        leaves because it has found that another is there already."""
        (pid,) = wait_until(lambda: len(found := self.processes(*words)) == 1 and found, f"one process of {words}")
        return int(pid)

    def kill(self, *words: str, number: int = signal.SIGKILL) -> list[int]:
        """Send a signal to every such process; their pids. One that has ended by itself in the meantime, as virtiofsd does
        after its QEMU, needs none."""
        found = self.processes(*words)
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return found


class Traces:
    """What could be left behind on a host. Differences with a snapshot taken before are leaks."""

    def __init__(self, base: Path, where: int | str = "self", *, of_engine: bool = False) -> None:
        """`where`: the pid of a process that is in the namespaces to look at. `of_engine`: whether to look at what an engine
        makes; else it is somebody else's, as containerd's CRI plugin is tested on this very host."""
        self.base = str(base)
        self.others = () if of_engine else ENGINES_NAMESPACES
        self.where = Path(f"/proc/{where}")

    def snapshot(self) -> dict[str, set[str]]:
        """Everything of interest, by kind."""
        look = ["nsenter", f"--net={self.where}/ns/net", "ip", "-o", "link"]
        links = subprocess.run(look, capture_output=True, text=True, check=True).stdout
        mounts = (self.where / "mountinfo").read_text().splitlines()
        sockets = (self.where / "net" / "unix").read_text().splitlines()
        named = self.where / "root" / "run" / "netns"
        return {
            "link": {name for line in links.splitlines() if not is_of_others(name := line.split(":")[1].strip())},
            "mount": {line.split(" ")[4] for line in mounts if self.base in line},
            "socket": {line.split()[-1] for line in sockets if self.base in line},
            "namespace": {name for name in os.listdir(named) if self._counts(name)} if named.is_dir() else set(),
            "cgroup": self._cgroups(),
        }

    def _counts(self, namespace: str) -> bool:
        return not is_of_others(namespace) and not namespace.startswith(self.others)

    def _cgroups(self) -> set[str]:
        """The cgroups of this installation's sandboxes: they are named by uid, so other installations do not count."""
        uids = self._uids()
        found = set()
        for where, directories, _ in os.walk("/sys/fs/cgroup"):
            found.update(f"{where}/{name}" for name in directories if uids.intersection(f"{where}/{name}".split("/")))
        return found

    def _uids(self) -> set[str]:
        return {uid for _, uid in self.sandboxes()}

    def sandboxes(self) -> set[tuple[str, str]]:
        """(id, uid) of every sandbox that this installation has ever had."""
        path = Path(self.base) / "s" / "journal"
        if not path.exists():
            return set()
        with Journal.open(path, read_only=True) as journal:
            named = (info.stream.rpartition("@") for info in journal.streams())
            return {(name, uid) for name, _, uid in named}


def leaks(kata: Kata, traces: Traces, before: dict[str, set[str]]) -> list[str]:
    """What is left now. It is asked while the last of it goes, so any of it may vanish while it is looked at."""
    after = traces.snapshot()
    left = [f"{kind} {name}" for kind in after for name in sorted(after[kind] - before[kind])]
    left += [f"process {pid}: {line!r}" for pid in kata.processes() if (line := command_line(pid))]
    for top in (kata.base / "r", kata.base / "s" / "logs"):
        for where, directories, files in os.walk(top):
            inside = [] if "rootfs" in where.split("/") else [*directories, *files]
            left += [f"directory {where}/{name}" for name in inside]
    return left


def command_line(pid: int) -> bytes:
    """The command line of a process; empty when it is gone, or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def exists(pid: int) -> bool:
    return command_line(pid) != b""


def clean_up_by_force(kata: Kata) -> None:
    for line in kata("list", "--quiet", check=False).stdout.split():
        kata("delete", "--force", line, check=False)


def kill_rest(kata: Kata) -> None:
    kata.pass_on()
    kata.kill()
    mounts = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in sorted((point for point in mounts if point.startswith(str(kata.base))), reverse=True):
        subprocess.run(["umount", "-l", point], check=False, stderr=sys.stderr)
