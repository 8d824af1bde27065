# SPDX-License-Identifier: Apache-2.0
"""Everything on the host that carries our names.

Every host resource of a sandbox has a name that derives from its uid and our run directory, so all of them are found
without memory, also when the journal is gone. Other installations on the same host have other run directories: what
does not name ours is none of our business. A tap lies in its sandbox's network namespace and goes with it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable

import msgspec

from kata_fsm.argv import argv_of
from kata_fsm.effects import cgroup, mounts, process
from kata_fsm.effects.hypervisor.argv import uuid_of
from kata_fsm.effects.process import Identity
from kata_fsm.world import RUN_DIR, Paths, run_dir, state_dir

PROCESSES = ("shim", "supervisor", "qemu", "virtiofsd")
"""Kinds of traces that are processes, in the order in which they are ended: whoever would start others first."""

_UID_CHARS = 12


class Trace(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing. `kind` is one of `PROCESSES`, or `netns`, `mount`, `cgroup`, `directory`; `name` is a path, or what a
    process calls its sandbox. `identity` is a process's."""

    kind: str
    uid: str
    name: str
    identity: Identity | None = None

    def describe(self) -> str:
        """`qemu pid 4410 (sandbox-c01d)`, `mount /run/kata-fsm/...`."""
        if self.identity is None:
            return f"{self.kind} `{self.name}`"
        return f"{self.kind} pid {self.identity.pid}" + (f" (`{self.name}`)" if self.name else "")


def is_uid(text: str) -> bool:
    """Whether `text` can be a sandbox's uid."""
    return len(text) == _UID_CHARS and not text.strip("0123456789abcdef")


def _uid_in(path: str, base: str) -> str:
    """The uid in a path below `base`; empty if there is none."""
    if not path.startswith(base + "/"):
        return ""
    uid = path[len(base) + 1 :].split("/", 1)[0]
    return uid if is_uid(uid) else ""


def classify(argv: list[str], run: str) -> tuple[str, str, str] | None:
    """(kind, uid, name) of a process of ours by its command line; None for any other. Pure."""
    base = f"{run}/sandboxes"
    following = dict(itertools.pairwise(argv))
    uid = _uid_in(following.get("-pidfile", ""), base)
    if uid and following.get("-uuid") == uuid_of(uid):
        return "qemu", uid, following.get("-name", "").split(",", 1)[0]
    for word in argv:
        if word.startswith("source=") and word.endswith("/served/tree"):
            uid = _uid_in(word.removeprefix("source="), base)
            if uid:
                return "virtiofsd", uid, ""
    if len(argv) > 5 and argv[1] in ("-IS", "-I") and argv[3] in ("supervisor", "shim"):
        stream = following.get("--stream") or following.get("--resume") or ""
        if is_uid(stream.rpartition("@")[2]):
            return argv[3], stream.rpartition("@")[2], argv[4]
    return None


def _run_of(pid: int) -> str:
    """The run directory in a process's environment, as `world.run_dir` would read it; empty if it cannot be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return ""
    found = [word.partition(b"=")[2] for word in words if word.startswith(b"KATA_FSM_RUN=")]
    return os.fsdecode(found[0]) if found and found[0] else RUN_DIR


def processes() -> list[Trace]:
    """Our processes that live."""
    found = []
    run = run_dir()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        pid = int(entry)
        known = classify(argv_of(pid), run)
        if known is None:
            continue
        kind, uid, name = known
        identity = process.identify(pid)
        if identity is None or not process.alive(identity) or (kind in ("supervisor", "shim") and _run_of(pid) != run):
            continue
        found.append(Trace(kind, uid, name, identity))
    return found


def mounted(table: Iterable[mounts.Mount]) -> list[Trace]:
    """Our mounts in a mount table, the last mounted first: the order in which they can be unmounted."""
    base = os.path.realpath(run_dir()) + "/sandboxes"
    found = []
    for mount in table:
        uid = _uid_in(mount.point, base)
        if uid:
            kind = "netns" if mount.point == f"{base}/{uid}/netns" else "mount"
            found.append(Trace(kind, uid, mount.point))
    return found[::-1]


def cgroups() -> list[Trace]:
    """Our cgroups, the innermost first. A parent in which another sandbox has one as well, perhaps of an installation with
    another run directory, is nobody's alone."""
    marked, ours, found = cgroup.marked(), run_dir(), []
    for directory, uid, run in reversed(marked):
        inside = {(o, r) for other, o, r in marked if other == directory or other.startswith(directory + "/")}
        if is_uid(uid) and run == ours and inside == {(uid, run)}:
            found.append(Trace("cgroup", uid, directory))
    return found


def directories() -> list[Trace]:
    """The run and log directories of sandboxes."""
    found = []
    for parent in (f"{run_dir()}/sandboxes", f"{state_dir()}/logs"):
        try:
            names = sorted(os.listdir(parent))
        except OSError:
            continue
        found += [Trace("directory", name, f"{parent}/{name}") for name in names if is_uid(name)]
    return found


def everything() -> list[Trace]:
    """All of it, in the order in which it can be taken away."""
    running = sorted(processes(), key=lambda trace: PROCESSES.index(trace.kind))
    return [*running, *mounted(mounts.table()), *cgroups(), *directories()]


def by_uid(found: Iterable[Trace]) -> dict[str, list[Trace]]:
    """The same by sandbox."""
    groups: dict[str, list[Trace]] = {}
    for trace in found:
        groups.setdefault(trace.uid, []).append(trace)
    return groups


def journal_named_by_lock(uid: str) -> str:
    """The journal directory that the last supervisor of a sandbox wrote into its lock file; empty if it did not."""
    try:
        with open(Paths(uid).supervisor_lock, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(4096).strip()
    except OSError:
        return ""
