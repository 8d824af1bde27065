# SPDX-License-Identifier: Apache-2.0
"""Host cgroups of a container: where engines look for its pid, its statistics and its end.

The container's resources are limited inside the guest; on the host, the cgroup that `linux.cgroupsPath` names holds the
shim, and the first one's the machine, which the pod's limits are around (`cgroup_limits`). It is made in every hierarchy of
cgroup v1, and in the unified one, whatever the host has. Every directory that we make is marked with an extended attribute,
so that removal needs no memory: a marked directory is ours, any other was there before. A hierarchy that refuses is recorded
and never an error: an engine works with those that it finds.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import trio

from kata_fsm import errors, limits
from kata_fsm.effects import mounts
from kata_fsm.effects.bounded import Bounded
from kata_fsm.world import run_dir

T = TypeVar("T")

MARK = "trusted.kata-fsm"
RUN_MARK = "trusted.kata-fsm.run"  # the run directory: whose orphan it is when nobody knows its sandbox any more
OWN_PARENT = "/kata-fsm"
_PROCS = "cgroup.procs"
_SEED_FROM_PARENT = ("cpuset.cpus", "cpuset.mems")  # empty in a new v1 cpuset, which then takes no process


class Hierarchy(NamedTuple):
    """One mounted cgroup hierarchy. `name` is its v1 controllers (`cpu,cpuacct`, `name=systemd`) or `unified`."""

    name: str
    point: str
    unified: bool


def hierarchies(table: list[mounts.Mount] | None = None) -> list[Hierarchy]:
    """Every cgroup hierarchy in the mount table, each once."""
    found: dict[str, Hierarchy] = {}
    for mount in mounts.table() if table is None else table:
        if mount.fstype == "cgroup2":
            found.setdefault("unified", Hierarchy("unified", mount.point, True))
        elif mount.fstype == "cgroup":
            flags = {"rw", "ro", "xattr", "clone_children", "noprefix", "none"}
            name = ",".join(
                option
                for option in mount.super_options
                if option not in flags and not option.startswith(("release_agent=", "cpuset_v2_mode"))
            )
            found.setdefault(name, Hierarchy(name, mount.point, False))
    return list(found.values())


def _expand_slice(name: str) -> str:
    """`a-b.slice` lies in `a.slice` (systemd.slice(5)); `-.slice` is the root."""
    if name in ("", "-.slice"):
        return ""
    if not name.endswith(".slice"):
        raise errors.EffectError("cgroup", f"`{name}` in the cgroups path is not a slice")
    parts = name.removesuffix(".slice").split("-")
    return "/".join("-".join(parts[: end + 1]) + ".slice" for end in range(len(parts)))


def scope_of(cgroups_path: str) -> tuple[str, str] | None:
    """(slice, unit) that systemd's form `slice:prefix:name` means; None for a path, and for a slice, which holds no process
    itself."""
    if cgroups_path.count(":") != 2 or cgroups_path.startswith("/"):
        return None
    slice_name, prefix, name = cgroups_path.split(":")
    if name.endswith(".slice"):
        return None
    return slice_name or "system.slice", f"{prefix}-{name}.scope" if prefix else f"{name}.scope"


def resolve(cgroups_path: str, container: str, uid: str) -> str:
    """The absolute cgroup that a spec means by `linux.cgroupsPath`.

    Empty means `/kata-fsm/<sandbox uid>/<container>`, which cannot meet a container of that id below another `--root`;
    a relative one is taken below `/kata-fsm` (OCI leaves that to us); systemd's
    `slice:prefix:name` becomes the path of that scope. Raises EffectError for one that climbs with `..`.
    """
    if not cgroups_path:
        path = f"{OWN_PARENT}/{uid}/{container}"
    elif cgroups_path.count(":") == 2 and not cgroups_path.startswith("/"):
        slice_name, unit = scope_of(cgroups_path) or (cgroups_path.split(":")[0], cgroups_path.split(":")[2])
        path = f"/{_expand_slice(slice_name or 'system.slice')}/{unit}"
    elif cgroups_path.startswith("/"):
        path = cgroups_path
    else:
        path = f"{OWN_PARENT}/{cgroups_path}"
    parts = [part for part in path.split("/") if part]
    if ".." in parts or not parts:
        raise errors.EffectError("cgroup", f"the cgroups path `{cgroups_path}` does not name a cgroup below the root")
    return "/" + "/".join(part for part in parts if part != ".")


def _write(path: str, value: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(value)


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read().strip()


def _seed_cpuset(directory: str) -> None:
    for name in _SEED_FROM_PARENT:
        try:
            if not _read(f"{directory}/{name}"):
                _write(f"{directory}/{name}", _read(f"{os.path.dirname(directory)}/{name}"))
        except OSError:
            pass  # not the cpuset hierarchy


def _enable_controllers(parent: str) -> None:
    """Let children of `parent` have every controller it has, so that engines find their statistics files (v2)."""
    try:
        for name in _read(f"{parent}/cgroup.controllers").split():
            try:
                _write(f"{parent}/cgroup.subtree_control", f"+{name}")
            except OSError:
                pass  # one with processes of its own cannot; then the engine has no statistics, as with any runtime
    except OSError:
        pass


def _mark(directory: str, owner: str) -> None:
    try:
        os.setxattr(directory, MARK, owner.encode())
        os.setxattr(directory, RUN_MARK, os.fsencode(run_dir()))
    except OSError:
        pass  # unmarked is not ours: it would be left, never taken from somebody else


def owner_of(directory: str) -> str | None:
    """Whose mark a cgroup directory bears (a sandbox's uid); None for one that we did not make."""
    try:
        return os.getxattr(directory, MARK).decode("utf-8", "replace")
    except OSError:
        return None


def marked() -> list[tuple[str, str, str]]:
    """(directory, sandbox uid, run directory) of every cgroup that an installation of ours has made; parents come before
    what is in them."""
    found = []
    for hierarchy in hierarchies():
        for where, _, _ in os.walk(hierarchy.point):
            owner = owner_of(where)
            try:
                if owner is not None:
                    found.append((where, owner, os.fsdecode(os.getxattr(where, RUN_MARK))))
            except OSError:
                continue
    return found


def _make_once(hierarchy: Hierarchy, path: str, owner: str) -> str:
    directory = hierarchy.point
    for part in path.strip("/").split("/"):
        if hierarchy.unified:
            _enable_controllers(directory)
        directory += "/" + part
        try:
            os.mkdir(directory, 0o755)
        except FileExistsError:
            continue
        _mark(directory, owner)
        if not hierarchy.unified:
            _seed_cpuset(directory)
    return directory


def _make(hierarchy: Hierarchy, path: str, owner: str) -> str:
    """Make `path` in one hierarchy. An empty parent may be removed under us by another sandbox's end: then again."""
    for _ in range(limits.CGROUP_RETRIES):
        try:
            return _make_once(hierarchy, path, owner)
        except FileNotFoundError:
            continue
    return _make_once(hierarchy, path, owner)


def create(path: str, owner: str) -> dict[str, list[dict[str, object]]]:
    """Make cgroup `path` in every hierarchy, marked with `owner`.

    Answers {"cgroups": [{"hierarchy", "path" (directory), "created" (by us)}], "refused": [{"hierarchy", "error"}]}.
    Never raises for what a hierarchy refuses.
    """
    made: list[dict[str, object]] = []
    refused: list[dict[str, object]] = []
    for hierarchy in hierarchies():
        try:
            directory = _make(hierarchy, path, owner)
        except OSError as error:
            refused.append({"hierarchy": hierarchy.name, "error": error.strerror or str(error)})
            continue
        made.append({"hierarchy": hierarchy.name, "path": directory, "created": owner_of(directory) == owner})
    return {"cgroups": made, "refused": refused}


async def created(path: str, owner: str) -> dict[str, list[dict[str, object]]]:
    """`create`, within a limit; what is made after that is removed again."""
    return await bounded(f"making cgroup `{path}`", lambda: create(path, owner), late=lambda: _unmake(path, owner))


def _unmake(path: str, owner: str) -> None:
    for hierarchy in hierarchies():
        directory = hierarchy.point + path
        if owner_of(directory) == owner and not pids(directory):
            try:
                os.rmdir(directory)
            except OSError:
                continue
            _remove_parents(directory, hierarchy.point)


def find(path: str, owner: str) -> list[dict[str, object]]:
    """Where cgroup `path` exists now, as `create` lists it."""
    there = [(hierarchy.name, hierarchy.point + path) for hierarchy in hierarchies()]
    return [
        {"hierarchy": name, "path": directory, "created": owner_of(directory) == owner}
        for name, directory in there
        if os.path.isdir(directory)
    ]


def attach(directories: list[str], pid: int) -> list[dict[str, str]]:
    """Move process `pid` into each of those cgroup directories. Answers what refused: [{"path", "error"}]."""
    refused = []
    for directory in directories:
        try:
            _write(f"{directory}/{_PROCS}", str(pid))
        except OSError as error:
            refused.append({"path": directory, "error": error.strerror or str(error)})
    return refused


def pids(directory: str) -> list[int]:
    """The processes in a cgroup directory and below it; none for one that is gone."""
    found: list[int] = []
    for where, _, _ in os.walk(directory):
        try:
            found += [int(line) for line in _read(f"{where}/{_PROCS}").split()]
        except OSError:
            continue
    return found


async def remove(path: str, owner: str) -> dict[str, list[str]]:
    """Remove cgroup `path` wherever it bears the mark of `owner`, and parents of ours that became empty.

    This process leaves at once, for the root: an engine may be about to remove the parent. Others still inside get
    `CGROUP_EMPTY_S` seconds to leave and are then moved to a parent. Answers {"removed", "foreign" (there before us, left
    alone)}. Raises EffectError when one of ours stays. Repeatable.
    """
    ours, foreign = await bounded(f"leaving cgroup `{path}`", lambda: _left(path, owner))
    with trio.move_on_after(limits.CGROUP_EMPTY_S):
        while await bounded(f"looking into cgroup `{path}`", lambda: any(pids(directory) for directory, _ in ours)):
            await trio.sleep(limits.CGROUP_POLL_S)
    for directory, hierarchy in ours:
        await remove_marked(directory, hierarchy.point)
    return {"removed": [directory for directory, _ in ours], "foreign": foreign}


async def bounded(what: str, work: Callable[[], T], *, late: Callable[[], object] | None = None) -> T:
    """Look at cgroups or change them, in a thread with a limit: the kernel has one lock for all of them."""
    return await Bounded("cgroup", what).run(work, late=late)


def _left(path: str, owner: str) -> tuple[list[tuple[str, Hierarchy]], list[str]]:
    """The directories of `path` that are `owner`'s, and the others, after this process has left them."""
    ours, foreign = [], []
    for hierarchy in hierarchies():
        directory = hierarchy.point + path
        if not os.path.isdir(directory):
            _remove_parents(directory, hierarchy.point)
        elif owner_of(directory) == owner:
            ours.append((directory, hierarchy))
        else:
            foreign.append(directory)
    for directory in [each for each, _ in ours] + foreign:
        _leave(directory, root_of(directory))
    return ours, foreign


def root_of(directory: str) -> str:
    """The mount point of the hierarchy that a cgroup directory lies in; empty for none."""
    return next((each.point for each in hierarchies() if directory.startswith(each.point + "/")), "")


def _leave(directory: str, root: str) -> None:
    """Move this process from `directory` to the root; one that does not take it (cgroups(7): in v2 a container's has only
    children) leaves it to `_evict`."""
    if os.getpid() in pids(directory):
        try:
            _write(f"{root}/{_PROCS}", str(os.getpid()))
        except OSError:
            pass


async def remove_marked(directory: str, root: str) -> None:
    """Remove one cgroup directory of ours in the hierarchy at `root`, at once. Raises EffectError when it stays. A process
    that just left may keep it busy for a moment longer."""
    with trio.move_on_after(limits.CGROUP_EMPTY_S):
        while not await bounded(f"removing cgroup `{directory}`", lambda: _removed(directory, root)):
            await trio.sleep(limits.CGROUP_POLL_S)
        return
    raise errors.EffectError(
        "cgroup", f"cannot remove `{directory}`: it is still busy", evidence={"pids": list(pids(directory))}
    )


def _removed(directory: str, root: str) -> bool:
    """Empty `directory`, remove it with what is below it, and parents of ours that are empty; False while it is busy."""
    _evict(directory, root)
    try:
        _rmdirs(directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise errors.EffectError("cgroup", f"cannot remove `{directory}`: {error.strerror}") from error
    _remove_parents(directory, root)
    return True


def _rmdirs(directory: str) -> None:
    for where, _, _ in os.walk(directory, topdown=False):
        os.rmdir(where)


def _evict(directory: str, root: str) -> None:
    """Move what is inside to the nearest parent that stays and takes it. In v2 only the root always does (cgroups(7))."""
    for pid in pids(directory):
        parent = os.path.dirname(directory)
        while len(parent) >= len(root):
            try:
                if parent == root or owner_of(parent) is None:
                    _write(f"{parent}/{_PROCS}", str(pid))
                    break
            except ProcessLookupError:
                break
            except OSError:
                pass
            parent = os.path.dirname(parent)


def _remove_parents(directory: str, root: str) -> None:
    """Remove the parents that bear our mark, from below, as far as they are empty."""
    parent = os.path.dirname(directory)
    while len(parent) > len(root) and (owner_of(parent) is not None or not os.path.isdir(parent)):
        try:
            os.rmdir(parent)
        except FileNotFoundError:
            pass
        except OSError:
            return
        parent = os.path.dirname(parent)
