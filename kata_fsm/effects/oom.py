# SPDX-License-Identifier: Apache-2.0
"""Was it the host's OOM killer? And what else did the kernel say about a process that ended?

Three witnesses, best first. The kernel's log names the pid that it killed. The counter of the memory cgroup that the
process was in rises when one of *its* processes is killed. The counter of the whole host (/proc/vmstat) rises for any
process on it, so alone it proves nothing and is only put on record. Each may be unreadable in a container: then it is
absent.
"""

from __future__ import annotations

import os
import re
import signal

import msgspec
import trio

from kata_fsm.effects import mounts
from kata_fsm.effects.process import Exit, Identity, alive
from kata_fsm.limits import KERNEL_LOG_LINES_MAX, LOG_CHECK_S

CRASHES = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS}
)
"""Signals that a program brings upon itself. Somebody else may send them, too: nobody can tell."""

_KMSG = "/dev/kmsg"
_KMSG_BYTES = 8192  # one read yields one record, of at most this


class Counters(msgspec.Struct, frozen=True):
    """OOM kills so far: of the host (None where that cannot be read), and by memory cgroup directory."""

    host: int | None = None
    cgroups: dict[str, int] = {}


def _number(path: str, name: str) -> int | None:
    """The value of the row `name` in a file of rows `name value`."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(" ")
                if key == name:
                    return int(value)
    except (OSError, ValueError):
        pass
    return None


def _memory_cgroups(pid: int) -> list[str]:
    """The memory cgroup directories of a process, in either version."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            rows = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return []
    found = []
    for mount in mounts.table():
        for row in rows:
            wanted = (
                mount.fstype == "cgroup" and "memory" in mount.super_options and "memory" in row[1].split(",")
            ) or (mount.fstype == "cgroup2" and row[0] == "0")
            if len(row) == 3 and wanted:
                found.append(mount.point + row[2].rstrip("/"))
    return found


def _kills(directory: str) -> int | None:
    kills = _number(directory + "/memory.events", "oom_kill")
    return kills if kills is not None else _number(directory + "/memory.oom_control", "oom_kill")


def counters(pid: int) -> Counters:
    """The counters that concern a process that lives."""
    return again(Counters(None, dict.fromkeys(_memory_cgroups(pid), 0)))


class Watch:
    """The counters of a process while it lives. They are read again now and then, so that what somebody else's end had
    counted long before is not taken for this one's."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._before = counters(identity.pid)

    async def keep_fresh(self) -> None:
        """For ever (until cancelled)."""
        while True:
            await trio.sleep(LOG_CHECK_S)
            fresh = counters(self._identity.pid)
            if alive(self._identity):  # a zombie's cgroups are not told any more
                self._before = fresh

    def testify(self, ended: Exit) -> Testimony:
        """What the witnesses say, now that it has ended."""
        return judge(ended, self._before, again(self._before), kernel_log(self._identity))


def again(before: Counters) -> Counters:
    """The same counters now."""
    now = {directory: _kills(directory) for directory in before.cgroups}
    known = {directory: kills for directory, kills in now.items() if kills is not None}
    return Counters(_number("/proc/vmstat", "oom_kill"), known)


def kernel_log(identity: Identity) -> list[str]:
    """What the kernel's log has about a process since its start: the last few lines; none where it may not be read.

    Since its start, because pids are used again. (The log's clock stands still while the host sleeps: then a line may
    look older than it is, and is missed.)
    """
    pid, start_us = identity.pid, identity.start_ticks * 1_000_000 // os.sysconf("SC_CLK_TCK")
    about = re.compile(rf"Killed process {pid} |\[{pid}\]:? (?:segfault|general protection|trap)|\bpid={pid},")
    found: list[str] = []
    try:
        fd = os.open(_KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        while True:
            try:
                record = os.read(fd, _KMSG_BYTES)
            except BrokenPipeError:
                continue  # overwritten under us: the next read goes on behind it
            prefix, _, text = record.decode("utf-8", "replace").split("\n", 1)[0].partition(";")
            fields = prefix.split(",")  # priority, number, microseconds since the boot, flags
            late = len(fields) > 2 and fields[2].isdigit() and int(fields[2]) >= start_us
            if late and about.search(text):
                found.append(text[:300])
    except OSError:
        pass  # EAGAIN: the end
    finally:
        os.close(fd)
    return found[-KERNEL_LOG_LINES_MAX:]


class Testimony(msgspec.Struct, frozen=True):
    """What the witnesses say of one end. `by_oom` and `crashed` are their verdicts; `evidence` goes on record."""

    by_oom: str = ""
    crashed: str = ""
    evidence: dict[str, object] = {}


NOTHING = Testimony()
"""No witness has anything to say."""


def judge(ended: Exit, before: Counters, now: Counters, log: list[str]) -> Testimony:
    """Pure. A process whose end was seen not to be SIGKILL was not killed by the OOM killer, whatever was counted."""
    rose = {
        path: now.cgroups[path] - kills for path, kills in before.cgroups.items() if now.cgroups.get(path, 0) > kills
    }
    host = now.host - before.host if now.host is not None and before.host is not None else None
    evidence: dict[str, object] = {}
    if rose:
        evidence["cgroup_oom_kills"] = rose
    if host:
        evidence["host_oom_kills"] = host
    if log:
        evidence["kernel_log"] = log
    named = next((line for line in reversed(log) if "Killed process" in line), "")
    fault = next((line for line in reversed(log) if "segfault" in line or "general protection" in line), "")
    possible = ended.signal == signal.SIGKILL or not ended.known
    by_oom = named or (f"its memory cgroup counted {sum(rose.values())} OOM kills" if rose else "")
    return Testimony(by_oom if possible else "", fault, evidence)
