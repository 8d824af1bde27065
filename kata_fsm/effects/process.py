# SPDX-License-Identifier: Apache-2.0
"""Host processes: who they are, starting them, watching them end, ending them.

A pid alone names nobody for long. A process is known by its pid, its start time and the boot it belongs to, and is held
by a pidfd: opened by pid, then checked by reading the start time again, because between a look at /proc and
`pidfd_open` the pid may have changed hands.

Daemons that we start (QEMU, virtiofsd) outlive us by design. While the starter lives it is their parent and learns the
wait status; a later supervisor sees them end too (a pidfd becomes readable for anybody), but not how.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

import msgspec
import trio

from kata_fsm import errors, limits
from kata_fsm.argv import argv_of
from kata_fsm.world import WORLD

_STAT_STATE = 0
_STAT_GROUP = 2  # field 5
_STAT_FLAGS = 6
_STAT_START_TICKS = 19  # field 22 of /proc/PID/stat, counted from the state, which is field 3
_PF_EXITING, _PF_KTHREAD = 0x4, 0x200000  # linux/sched.h
_EXEC_POLL_S = 0.001
_ENDED_MAX = 64


class Identity(msgspec.Struct, frozen=True):
    """One process of one boot. `start_ticks` is field 22 of /proc/PID/stat, in clock ticks since the boot."""

    pid: int
    start_ticks: int
    boot_id: str

    def to_dict(self) -> dict[str, object]:
        """As stored in records."""
        return {"pid": self.pid, "start_ticks": self.start_ticks, "boot_id": self.boot_id}

    @classmethod
    def from_dict(cls, raw: Mapping[str, object]) -> Identity | None:
        """From a record that holds at least those three fields; None if it does not."""
        pid, ticks, boot = raw.get("pid"), raw.get("start_ticks"), raw.get("boot_id")
        if isinstance(pid, int) and isinstance(ticks, int) and isinstance(boot, str):
            return cls(pid, ticks, boot)
        return None


class Exit(msgspec.Struct, frozen=True):
    """How a process ended: an exit code, or a signal, or (both None) in a way nobody can tell us."""

    code: int | None = None
    signal: int | None = None
    core: bool = False

    @property
    def known(self) -> bool:
        """Whether the wait status was seen."""
        return self.code is not None or self.signal is not None

    def describe(self) -> str:
        """`exited with code 1`, `was killed by SIGKILL`, `ended in an unknown way`."""
        if self.signal is not None:
            try:
                name = signal.Signals(self.signal).name
            except ValueError:
                name = f"signal {self.signal}"
            return f"was killed by {name}" + (" and dumped core" if self.core else "")
        if self.code is not None:
            return f"exited with code {self.code}"
        return "ended in an unknown way"

    def to_dict(self) -> dict[str, object]:
        """As stored in records."""
        return {"code": self.code, "signal": self.signal, "core": self.core}


UNKNOWN = Exit()

# The wait status of a child can be collected once. Whoever collects it leaves it here for the others who watch.
_ended: dict[Identity, Exit] = {}


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command name, which may itself hold spaces and parentheses."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def identify(pid: int) -> Identity | None:
    """Who has `pid` now; None if nobody has."""
    fields = _stat(pid)
    return None if fields is None else Identity(pid, int(fields[_STAT_START_TICKS]), WORLD.boot_id())


def members(group: int) -> list[Identity]:
    """Every process of process group `group` that still runs. Its leader is not among them once it has ended."""
    numbers = (int(name) for name in os.listdir("/proc") if name.isdigit())
    found = [pid for pid in numbers if (fields := _stat(pid)) is not None and int(fields[_STAT_GROUP]) == group]
    return [each for each in map(identify, found) if each is not None and alive(each)]


def alive(identity: Identity) -> bool:
    """Whether that very process still runs. A zombie does not."""
    fields = _stat(identity.pid)
    return (
        fields is not None
        and int(fields[_STAT_START_TICKS]) == identity.start_ticks
        and fields[_STAT_STATE] not in ("Z", "X")
        and identity.boot_id == WORLD.boot_id()
    )


def is_stopped(identity: Identity) -> bool:
    """Whether somebody has stopped it (SIGSTOP, a debugger), so that it answers nobody."""
    stat = _stat(identity.pid)
    return stat is not None and stat[_STAT_STATE] in ("T", "t") and alive(identity)


def open_pidfd(identity: Identity) -> int | None:
    """A pidfd that certainly names that process (perhaps a zombie), to be closed by the caller; None if gone."""
    try:
        fd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    if identify(identity.pid) == identity:
        return fd
    os.close(fd)
    return None


def kill(identity: Identity, number: int) -> bool:
    """Send signal `number` to that process and no other; whether it was there to get it."""
    fd = open_pidfd(identity)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def _reap(fd: int, identity: Identity) -> Exit:
    """Collect the wait status of the process that `fd` names, if it is our child and has ended."""
    try:
        result = os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return _ended.get(identity, UNKNOWN)
    if result is None:
        return UNKNOWN
    if result.si_code == os.CLD_EXITED:
        ended = Exit(code=result.si_status)
    else:
        ended = Exit(signal=result.si_status, core=result.si_code == os.CLD_DUMPED)
    if len(_ended) >= _ENDED_MAX:
        _ended.pop(next(iter(_ended)))
    _ended[identity] = ended
    return ended


async def wait_exit(identity: Identity) -> Exit:
    """Wait until that process has ended, reap it if it is our child, and say how it ended."""
    fd = open_pidfd(identity)
    if fd is None:
        await trio.lowlevel.checkpoint()
        return _ended.get(identity, UNKNOWN)
    try:
        await trio.lowlevel.wait_readable(fd)
        return _reap(fd, identity)
    finally:
        trio.lowlevel.notify_closing(fd)
        os.close(fd)


async def kill_and_wait(identity: Identity, *, limit_s: float = limits.PROCESS_KILL_WAIT_S) -> Exit:
    """SIGKILL that process and wait for its end. Raises EffectError if it is still there after `limit_s` seconds."""
    kill(identity, signal.SIGKILL)
    with trio.move_on_after(limit_s):
        return await wait_exit(identity)
    raise errors.EffectError(
        "kill", f"process `{identity.pid}` is still there {limit_s:g} s after SIGKILL", evidence=identity.to_dict()
    )


def _is_between_programs(pid: int) -> bool:
    """Whether `pid` has no command line only because it is within execve(2): its old memory is gone, its arguments are not
    in the new one yet. Threads of the kernel, and what is ending, never have any."""
    fields = _stat(pid)
    if fields is None or fields[_STAT_STATE] in ("Z", "X"):
        return False
    return not int(fields[_STAT_FLAGS]) & (_PF_KTHREAD | _PF_EXITING)


def _argv_when_there(pid: int, deadline_ns: int) -> list[str]:
    argv = argv_of(pid)
    while not argv and _is_between_programs(pid) and WORLD.mono_ns() < deadline_ns:
        time.sleep(_EXEC_POLL_S)
        argv = argv_of(pid)
    return argv


def find_by_argv(*elements: str) -> list[Identity]:
    """Every process whose command line holds each of `elements` as a whole argument, oldest first; never ourselves.

    One that is just becoming another program is waited for, all of them together for at most `PROCESS_EXEC_S`: `spawn`
    answers a moment before the kernel has put the command line in place.
    """
    wanted, found = set(elements), []
    deadline_ns = WORLD.mono_ns() + int(limits.PROCESS_EXEC_S * 1e9)
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == WORLD.pid():
            continue
        if not wanted.issubset(_argv_when_there(int(name), deadline_ns)):
            continue
        identity = identify(int(name))
        if identity is not None and alive(identity):
            found.append(identity)
    return sorted(found, key=lambda identity: (identity.start_ticks, identity.pid))


def spawn(
    argv: Sequence[str], *, log_path: str, env: Mapping[str, str] | None = None, pass_fds: Sequence[int] = ()
) -> Identity:
    """Start a process that does not depend on us: own session, /dev/null as input, output appended to `log_path`.

    `argv[0]` is an absolute path (there may be no PATH); no descriptor but `pass_fds` gets through. Its end must be
    awaited with `wait_exit` or `kill_and_wait`, which reap it. Raises EffectError if it cannot be started.
    """
    try:
        with open(log_path, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as log:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={} if env is None else dict(env),
                cwd="/",
                close_fds=True,
                pass_fds=tuple(pass_fds),
                start_new_session=True,
            )
    except OSError as error:
        where = error.filename or argv[0]
        raise errors.EffectError("spawn", f"cannot start `{argv[0]}`: `{where}`: {error.strerror}") from error
    # The wait status is ours to collect, through the pidfd: `Popen` must neither wait nor complain about a child left.
    process.returncode = 0
    identity = identify(process.pid)
    if identity is None:  # our child, not reaped by anybody: it is in /proc at least as a zombie
        raise errors.Bug(f"the child `{process.pid}` has no entry in /proc")
    return identity


def raise_file_limit(identity: Identity) -> None:
    """Raise that process's soft limit of open files to its hard one, which needs no privilege."""
    try:
        hard = resource.prlimit(identity.pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(identity.pid, resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        pass  # a lower limit costs the guest open files, not its life


def has_capability(number: int) -> bool:
    """Whether this process holds capability `number` (capabilities(7)) effectively."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
    return False
