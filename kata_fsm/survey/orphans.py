# SPDX-License-Identifier: Apache-2.0
"""Traces that no living sandbox accounts for, and taking them away.

Living means: the journal has it and it has not ended; or a supervisor of it runs, whatever journal that one writes. A
supervisor whose own journal was deleted under it accounts for nothing any more. What names another journal that still
knows the sandbox is that journal's, and left alone.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Iterable, Mapping

import msgspec
import trio

from kata_fsm import errors
from kata_fsm.control import lock_is_free
from kata_fsm.effects import cgroup, mounts, netns, process
from kata_fsm.effects.bounded import Bounded
from kata_fsm.effects.network import namespace
from kata_fsm.limits import ORPHAN_DIRECTORY_AGE_S, ORPHAN_UNMOUNT_S
from kata_fsm.survey.traces import Trace, journal_named_by_lock
from kata_fsm.world import WORLD, Paths, journal_dir


class Orphan(msgspec.Struct, frozen=True):
    """What is left of one uid that nothing alive accounts for. `name` is its sandbox's id, if known."""

    uid: str
    name: str
    why: str
    traces: tuple[Trace, ...]


class Left(msgspec.Struct, frozen=True):
    """What could not be taken away: what stands, why, and what to do about it."""

    what: str
    why: str
    hint: str


def name_of(traces: Iterable[Trace]) -> str:
    """The sandbox's id, from the processes that name it; empty if none does."""
    for trace in traces:
        if trace.kind in ("supervisor", "shim", "qemu") and trace.name:
            return trace.name.removeprefix("sandbox-") if trace.kind == "qemu" else trace.name
    return ""


def orphan_of(uid: str, traces: list[Trace], lives: Mapping[str, str]) -> Orphan | None:
    """The orphan that the traces of `uid` are, if they are one. `lives` maps the uids that the journal knows to their
    sandbox's state; ended ones are passed in only with what may not be left of them."""
    if uid not in lives and (_is_supervised(uid, traces) or _is_foreign(uid) or _is_just_being_made(traces)):
        return None
    state = lives.get(uid)
    why = "the journal has no such sandbox" if state is None else f"its sandbox is `{state}`"
    return Orphan(uid, name_of(traces), why, tuple(traces))


def _is_supervised(uid: str, traces: list[Trace]) -> bool:
    supervisors = [trace for trace in traces if trace.kind == "supervisor" and trace.identity is not None]
    if supervisors:
        return not all(_lost_its_journal(trace.identity.pid) for trace in supervisors if trace.identity is not None)
    return not lock_is_free(Paths(uid).supervisor_lock)


def _lost_its_journal(pid: int) -> bool:
    """Whether a supervisor writes into a journal that was deleted under it."""
    directory = f"/proc/{pid}/fd"
    try:
        for fd in os.listdir(directory):
            if "/data.mdb" in os.readlink(f"{directory}/{fd}") and os.stat(f"{directory}/{fd}").st_nlink == 0:
                return True
    except OSError:
        pass
    return False


def _is_foreign(uid: str) -> bool:
    """Whether the sandbox's last supervisor wrote another journal, which still has it."""
    named = journal_named_by_lock(uid)
    if not named or os.path.realpath(named) == os.path.realpath(journal_dir()):
        return False
    from journal import Journal, JournalError

    try:
        with Journal.open(named, read_only=True) as journal:
            return any(info.stream.endswith("@" + uid) for info in journal.streams())
    except JournalError:
        return os.path.isdir(named)  # it cannot be read: then nothing of its is ours to take


def _is_just_being_made(traces: list[Trace]) -> bool:
    """A sandbox's directory stands for an instant before its supervisor does."""
    if any(trace.kind != "directory" for trace in traces):
        return False
    try:
        newest = max(os.lstat(trace.name).st_mtime for trace in traces)
    except OSError:
        return True  # it has just gone
    return WORLD.wall_ns() / 1e9 - newest < ORPHAN_DIRECTORY_AGE_S


# --- removal ----------------------------------------------------------------------------------------------------------


async def remove(traces: Iterable[Trace]) -> list[Left]:
    """Take away what `traces` name, in that order; a process is killed only if it is the very one. Answers what stays."""
    left: list[Left] = []
    for trace in traces:
        try:
            await _remove(trace)
        except (errors.EffectError, OSError) as error:
            left.append(_left(trace, error))
    return left


async def _remove(trace: Trace) -> None:
    if trace.identity is not None:
        process.kill(trace.identity, signal.SIGKILL)
        await process.kill_and_wait(trace.identity)
    elif trace.kind == "netns":
        await _part(trace)
        await _unmount(trace)
    elif trace.kind == "mount":
        await _unmount(trace)
    elif trace.kind == "cgroup":
        await _remove_cgroup(trace)
    else:
        await _remove_directory(trace)


async def _part(trace: Trace) -> None:
    """What was joined to a namespace that somebody gave is taken from it; it is not ours, and will not end with us."""

    def work() -> None:
        if netns.is_network_namespace(trace.name):
            netns.inside(trace.name, lambda: namespace.part(trace.uid))

    await Bounded("netns", f"parting what was joined to `{trace.name}`").run(work)


async def _unmount(trace: Trace) -> None:
    # A file system whose server hangs may keep the call for ever: the thread is left behind then, and only that.
    with trio.move_on_after(ORPHAN_UNMOUNT_S):
        await trio.to_thread.run_sync(mounts.unmount_below, trace.name, abandon_on_cancel=True)
        return
    raise errors.EffectError("unmount", f"unmounting it did not end within {ORPHAN_UNMOUNT_S:g} s")


async def _remove_cgroup(trace: Trace) -> None:
    directory = trace.name

    def root() -> str:
        return cgroup.root_of(directory) if cgroup.owner_of(directory) == trace.uid else ""

    found = await cgroup.bounded(f"looking at cgroup `{directory}`", root)
    if found:
        await cgroup.remove_marked(directory, found)


async def _remove_directory(trace: Trace) -> None:
    """Nothing is mounted in it by now, or it is left: a recursive removal must never reach into a bundle."""
    if mounts.below(trace.name):
        raise errors.EffectError("remove", f"`{mounts.below(trace.name)[-1].point}` is still mounted in it")
    await trio.to_thread.run_sync(_remove_tree, trace.name)


def _remove_tree(path: str) -> None:
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        pass
    try:
        os.rmdir(os.path.dirname(path))
    except OSError:
        pass  # other sandboxes


def _left(trace: Trace, error: Exception) -> Left:
    why = error.message if isinstance(error, errors.EffectError) else str(getattr(error, "strerror", None) or error)
    if trace.identity is not None:
        pid = trace.identity.pid
        hint = f"see why with `cat /proc/{pid}/status /proc/{pid}/stack`: it ends when what it waits for in the kernel does"
    elif trace.kind == "cgroup":
        hint = f"see who is in it with `cat {trace.name}/cgroup.procs`"
    elif getattr(error, "errno", None) in (errno.EPERM, errno.EACCES):
        hint = f"see `lsattr -d {trace.name}`: an attribute may forbid it"
    else:
        hint = f"see who uses it with `fuser -vm {trace.name}`"
    return Left(trace.describe(), why, hint)
