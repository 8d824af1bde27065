# SPDX-License-Identifier: Apache-2.0
"""One life of a soak, in which processes are killed at random, and the sandbox beside all lives that is not harmed."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import NamedTuple

from kata_fsm.testing.bundle import config
from tests.support.kata import LIMIT_S, Kata

CODE = 3
WORKLOAD = f"trap 'exit {CODE}' TERM; echo up; while :; do sleep 0.1; done"
ROLES = ("supervisor", "supervisor", "shim", "virtiofsd", "qemu", "cli", "cli")
KILLS_MAX = 3
DELETIONS_MAX = 6
SETTLING_S, SETTLING_MAX = 0.5, 20
LEADS_TO = {"qemu": "vm_killed", "virtiofsd": "virtiofsd_lost"}
"""Of what ends a sandbox when it is killed: the cause that must be told."""
CLEAN = frozenset({"operator", "workload_exited", "client_gone", "create_failed", "nothing was recorded"})


class Size(NamedTuple):
    """What a process takes: MiB of its own (anonymous), MiB with its share of files (PSS), descriptors.

    Files that it maps are not its own: a reader of the journal has as much of that in memory as it has read.
    """

    own: float
    pss: float
    fds: int


def size(pid: int) -> Size:
    """Of one process."""
    rows = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.endswith("kB")]
    fields = {row[0].rstrip(":"): int(row[1]) / 1024 for row in rows}
    return Size(fields["Anonymous"], fields["Pss"], len(os.listdir(f"/proc/{pid}/fd")))


def _kill(pid: int, mark: str) -> bool:
    """SIGKILL it, if it is (still) one whose command line has `mark`."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if mark.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        return True
    except (ProcessLookupError, FileNotFoundError):
        return False
    finally:
        os.close(fd)


class Life:
    """Created, started, asked for this and that, deleted; meanwhile something of it is killed.

    `pace_s`: how long a creation takes on this host. Everything else is drawn from `dice`.
    """

    def __init__(self, kata: Kata, name: str, dice: random.Random, pace_s: float) -> None:
        self.kata = kata
        self.name = name
        self.wrong: list[str] = []
        self.kills: list[str] = []
        self.cause = "nothing was recorded"
        self.seconds = 0.0
        self._dice = dice
        count = dice.randint(1, KILLS_MAX)
        self._plan = sorted((dice.uniform(0, 2.5 * pace_s), dice.choice(ROLES)) for _ in range(count))
        self._verb: subprocess.Popen[bytes] | None = None
        self._over = threading.Event()

    def live(self) -> None:
        """All of it."""
        begun = time.monotonic()
        killer = threading.Thread(target=self._kill_as_planned)
        killer.start()
        try:
            self._ask_for_this_and_that()
        finally:
            self._over.set()
            killer.join()
        self._delete()
        self.seconds = time.monotonic() - begun
        self._judge()

    # --- what is asked

    def verb(self, *args: str) -> int:
        """A verb, which may be killed; its exit code. One that fails by itself says why in one line."""
        with open(os.devnull, "rb") as nothing, open(self.kata.base / f"{self.name}.err", "w+b") as err:
            self._verb = subprocess.Popen(
                self.kata.argv(*args), env=self.kata.env, stdin=nothing, stdout=subprocess.DEVNULL, stderr=err
            )
            try:
                code = self._verb.wait(2 * LIMIT_S)
            except subprocess.TimeoutExpired:
                self._verb.kill()
                self._verb.wait()
                self.wrong.append(f"`{args[0]}` did not come to its end within {2 * LIMIT_S:g} s")
                return -1
            err.seek(0)
            said = err.read().decode(errors="replace")
        if code > 0 and args[0] != "exec" and (len(said.splitlines()) != 1 or "Traceback" in said):
            self.wrong.append(f"`{args[0]}` exited {code} and said {said!r}")
        if "Traceback" in said:
            self.wrong.append(f"`{args[0]}` said {said!r}")
        return code

    def _ask_for_this_and_that(self) -> None:
        bundle = self.kata.bundle(self.name, "/bin/sh", "-c", WORKLOAD)
        self.verb("create", "--bundle", str(bundle), self.name)
        if self.verb("start", self.name):
            self.verb("start", self.name)
        for _ in range(self._dice.randint(1, 4)):
            what = self._dice.choice(("exec", "exec", "pause", "state"))
            if what == "exec":
                self.verb("exec", self.name, "/bin/true")
            elif what == "pause":
                self.verb("pause", self.name)
                self.verb("resume", self.name)
            else:
                self.verb("state", self.name)
        if self._dice.random() < 0.5:
            self.verb("kill", self.name, "TERM")
            self.verb("delete", self.name)

    def _delete(self) -> None:
        for _ in range(DELETIONS_MAX):
            self.verb("delete", "--force", self.name)
            done = self.kata("state", self.name, check=False)
            if done.returncode:
                if "does not exist" not in done.stderr:
                    self.wrong.append(f"`state` said {done.stderr!r}")
                return
        self.wrong.append(f"it cannot be deleted; `state` said {done.stdout}")

    # --- what is killed

    def _kill_as_planned(self) -> None:
        begun = time.monotonic()
        for at_s, role in self._plan:
            if self._over.wait(max(0.0, at_s - (time.monotonic() - begun))):
                return
            while not self._kill_one(role):  # there is none yet, or no more
                if self._over.wait(0.5):
                    return
            self.kills.append(role)

    def _kill_one(self, role: str) -> bool:
        if role == "cli":
            verb = self._verb
            if verb is None or verb.poll() is not None:
                return False
            verb.send_signal(signal.SIGKILL)
            return True
        mark = {"qemu": f"sandbox-{self.name},", "virtiofsd": self._uid() or "\0"}.get(role, f"{self.name}@")
        words = {"qemu": "qemu-system"}.get(role, role)
        return any(_kill(pid, mark) for pid in self.kata.processes(words, mark))

    def _uid(self) -> str:
        """Of the sandbox's latest life, from whoever names its stream."""
        for pid in self.kata.processes(f"{self.name}@"):
            try:
                found = re.search(rf"{self.name}@([0-9a-f]+)", Path(f"/proc/{pid}/cmdline").read_text(errors="replace"))
            except OSError:
                continue
            if found:
                return found[1]
        return ""

    # --- what is told of it

    def _judge(self) -> None:
        """Codes and causes are those of what happened, and replaying finds nothing wrong."""
        done = self.kata("replay", self.name, "-o", "jsonl", check=False)
        if done.returncode:
            return  # its supervisor died before anything was recorded
        story = [json.loads(line) for line in done.stdout.splitlines()]
        self.wrong += [f"replay: {row['wrong']}" for row in story if row.get("wrong")]
        for row in story:
            detail = row.get("detail") or {}
            if row.get("machine") == "sandbox" and "cause" in detail:
                self.cause = detail["cause"]["kind"]
            if (row.get("machine"), row["what"], row.get("subject")) == ("process", "exited", f"{self.name}/init"):
                self._judge_code(detail)
        allowed = CLEAN | {LEADS_TO[kill] for kill in self.kills if kill in LEADS_TO}
        if self.cause not in allowed:
            self.wrong.append(f"it ended by `{self.cause}`, and killed were {self.kills}")

    def _judge_code(self, detail: dict[str, object]) -> None:
        cause, code = detail["cause"], detail["exit_code"]
        kind = cause["kind"] if isinstance(cause, dict) else ""
        right = {"exited": (CODE,), "signaled": (137, 143)}.get(kind, (255,))
        if code not in right:
            self.wrong.append(f"its process ended by `{kind}`, and the code on record is {code}")


class Steady:
    """A sandbox that is not harmed, an exec in it over and over, and followers of its log and of the journal."""

    NAME = "steady"

    def __init__(self, kata: Kata) -> None:
        self.kata = kata
        self.execs = 0
        self._wrong: list[str] = []
        self._over = threading.Event()
        self._alone = threading.Lock()  # held by an exec, and while sizes are taken: an exec has descriptors of its own
        self._asking = threading.Thread(target=self._ask)
        self._followers: dict[str, subprocess.Popen[bytes]] = {}

    def begin(self) -> float:
        """Create it; how long that took, in seconds."""
        linux = config([])["linux"]
        bundle = self.kata.bundle(self.NAME, "/bin/sleep", "1000000", linux=linux)
        begun = time.monotonic()
        self.kata("create", "--bundle", str(bundle), self.NAME)
        took = time.monotonic() - begun
        self.kata("start", self.NAME)
        for name, words in (("logs -f", ("logs", "-f", self.NAME)), ("journal tail -f", ("journal", "tail", "-f"))):
            self._followers[name] = subprocess.Popen(
                self.kata.argv(*words), env=self.kata.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        self._asking.start()
        return took

    def _ask(self) -> None:
        while not self._over.wait(0.2):
            with self._alone:
                done = self.kata("exec", self.NAME, "/bin/echo", str(self.execs), check=False)
            if (done.returncode, done.stdout) != (0, f"{self.execs}\n"):
                self._wrong.append(
                    f"exec {self.execs} of the sandbox beside: {done.returncode}, {done.stdout!r}, {done.stderr!r}"
                )
            self.execs += 1

    def measured(self) -> dict[str, Size]:
        """What its long-lived processes take, once nothing is asked of them and what was asked last is let go."""
        with self._alone:
            sizes = self._sizes()
            for _ in range(SETTLING_MAX):
                time.sleep(SETTLING_S)
                before, sizes = sizes, self._sizes()
                if all(before[name].fds == sizes[name].fds for name in sizes):
                    break
            return sizes

    def _sizes(self) -> dict[str, Size]:
        found = {
            role: size(self.kata.processes(word, mark)[0])
            for role, word, mark in (
                ("supervisor", "supervisor", f"{self.NAME}@"),
                ("shim", "--process\0init".replace("\0", " "), f"{self.NAME}@"),
                ("qemu", "qemu-system", f"sandbox-{self.NAME},"),
            )
        }
        return {**found, **{name: size(follower.pid) for name, follower in self._followers.items()}}

    def end(self) -> list[str]:
        """Delete it; what did not hold."""
        self._over.set()
        self._asking.join()
        for name, follower in self._followers.items():
            if follower.poll() is not None:
                self._wrong.append(f"`{name}` ended by itself with {follower.returncode}")
            follower.terminate()
            follower.wait(LIMIT_S)
        self.kata("delete", "--force", self.NAME)
        return self._wrong
