# SPDX-License-Identifier: Apache-2.0
"""What one container shows the guest: its root file system and bind mounts, bound into the sandbox's shared tree.

    <shared>/<container>/rootfs    the root file system, with what is mounted below it
    <shared>/<container>/m<N>      bind mount N of the spec: a directory, or a file

The tree propagates what we bind into virtiofsd's view (see `share`), and nothing propagates back to the host. The guest
sees the tree read-only, each bind as writable as its mount is.

Intent params of all handlers here: {"container": name in the tree, "rootfs": host path, "mounts": [{"index": N,
"source": host path, "readonly": bool, "recursive": bool, "options": [OCI mount options]}], "cgroups_path":
`linux.cgroupsPath` or "", "systemd_cgroup": True if systemd has made it}. Only "container" and the last two matter for
taking away.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any, NamedTuple

import trio

from kata_fsm import errors, systemd
from kata_fsm.effects import cgroup, mounts, tree
from kata_fsm.effects.bounded import Bounded, Enter
from kata_fsm.effects.placement import Placement
from kata_fsm.effects.protocols import Intent, Observed
from kata_fsm.world import Paths

_FOLLOWING = frozenset({"slave", "rslave", "shared", "rshared"})


class Bind(NamedTuple):
    """One bind to make."""

    source: str
    target: str
    recursive: bool = True
    readonly: bool = False
    readonly_recursive: bool = False
    follow_source: bool = False


def plan(top: str, params: Mapping[str, Any]) -> list[Bind]:
    """The binds that `params` ask for below `top`, in order. Pure.

    Propagation: what is mounted later below a source shows up only if the spec asks for `rslave` or `rshared`;
    `rshared` gives no more than `rslave`, because a mount made in the guest cannot appear on the host.
    """
    binds = [Bind(str(params["rootfs"]), f"{top}/rootfs")]
    for entry in params.get("mounts", ()):
        options = set(entry.get("options", ()))
        bind = Bind(
            source=str(entry["source"]),
            target=f"{top}/m{int(entry['index'])}",
            recursive=bool(entry.get("recursive", True)),
            readonly=bool(entry.get("readonly", False)) or "ro" in options,
            readonly_recursive="rro" in options,
            follow_source=bool(_FOLLOWING & options),
        )
        binds.append(bind)
    return binds


def _top(paths: Paths, intent: Intent) -> str:
    return paths.container_tree(tree.checked_name(str(intent.params["container"]), "container"))


def _bind_one(bind: Bind, enter: Enter) -> dict[str, object]:
    enter(bind.source)
    try:
        mode = os.stat(bind.source).st_mode
    except OSError as error:
        raise errors.EffectError(
            "bind",
            f"cannot bind `{bind.source}` on `{bind.target}`: {error.strerror}",
            evidence={"source": bind.source, "target": bind.target},
        ) from error
    enter(bind.source)
    directory = stat.S_ISDIR(mode)
    if bind.target.endswith("/rootfs") and not directory:
        raise errors.EffectError("bind", f"the root file system `{bind.source}` is not a directory")
    tree.make_place(bind.target, directory=directory)
    mounts.bind(
        bind.source,
        bind.target,
        recursive=bind.recursive,
        readonly=bind.readonly,
        readonly_recursive=bind.readonly_recursive,
        follow_source=bind.follow_source,
    )
    return {"source": bind.source, "target": bind.target, "directory": directory, "readonly": bind.readonly}


def _anywhere(place: str) -> None:
    """An `Enter` that nobody listens to."""


def stage(top: str, params: Mapping[str, Any], enter: Enter = _anywhere) -> list[dict[str, object]]:
    """Make every bind below `top`, or none: what was made is taken away again on the first error. Blocks."""
    unstage(top)
    try:
        tree.make_directory(top, tree.PASSABLE)
        return [_bind_one(bind, enter) for bind in plan(top, params)]
    except errors.EffectError:
        unstage(top)
        raise


def unstage(top: str, enter: Enter = _anywhere) -> list[str]:
    """Unmount everything below `top`, last first, and remove the empty places. Answers the mount points. Blocks."""
    gone = mounts.unmount_below(top, enter)
    tree.remove_tree(top)
    return gone


def staged(top: str, params: Mapping[str, Any]) -> bool:
    """Whether every bind of `params` is mounted. Blocks."""
    points = {entry.point for entry in mounts.below(top)}
    real = os.path.realpath(os.path.dirname(top)) + "/" + os.path.basename(top)
    return all(bind.target in points for bind in plan(real, params))


def _let_go(unit: str) -> str:
    """Tell systemd that a scope of ours is over. It notices by itself when a cgroup becomes empty, unless that is removed
    before it has looked; then the unit would stay for ever. Answers the unit, or why systemd was not told."""
    try:
        systemd.stop_unit(unit)
    except errors.WorldError as error:  # nothing of ours is in it any more
        return error.message
    return unit


def _seen(bind: Bind, enter: Enter) -> dict[str, object]:
    """A bind that is there, as `_bind_one` answers it."""
    enter(bind.target)
    directory = os.path.isdir(bind.target)
    return {"source": bind.source, "target": bind.target, "directory": directory, "readonly": bind.readonly}


class _ContainerHandler:
    def __init__(self, paths: Paths, place: Placement | None = None) -> None:
        self.paths = paths
        self.place = place or Placement(paths.uid, {})

    def _cgroup(self, intent: Intent) -> str:
        container = str(intent.params["container"])
        return cgroup.resolve(str(intent.params.get("cgroups_path") or ""), container, self.paths.uid)

    async def _unstage(self, intent: Intent) -> dict[str, Any]:
        top = _top(self.paths, intent)
        task = Bounded("unmount", f"unmounting what container `{intent.params['container']}` was shown")
        return {"unmounted": await task.run(lambda: unstage(top, task.enter))}

    async def _discard(self, intent: Intent) -> dict[str, Any]:
        result = await self._unstage(intent)
        try:
            path = self._cgroup(intent)
        except errors.EffectError:
            return result  # a path that was refused when it was asked for: nothing was made
        removed = await cgroup.remove(path, self.paths.uid)
        scope = cgroup.scope_of(str(intent.params["cgroups_path"])) if intent.params.get("systemd_cgroup") else None
        if scope is None or removed["foreign"]:
            return {**result, "cgroups": removed}
        return {**result, "cgroups": removed, "scope": await trio.to_thread.run_sync(_let_go, scope[1])}


class ContainerPrepare(_ContainerHandler):
    """`container.prepare`: host cgroups, the pod's limits with this container, and the binds. Needs `share.prepare` done.

    Result: {"tree": directory, "binds": [{"source", "target", "directory", "readonly"}], "cgroups": [{"hierarchy",
    "path", "created"}], "refused": [{"hierarchy", "error"}], "limited" and "unheld" as `Placement.limit` answers them};
    `cgroup.attach` puts a pid into those paths.
    """

    async def perform(self, intent: Intent) -> dict[str, Any]:
        """Make cgroups and binds, or nothing."""
        path = self._cgroup(intent)
        top = _top(self.paths, intent)
        if not mounts.at(self.paths.shared):
            raise errors.EffectError("share", f"the shared tree `{self.paths.shared}` is not there")
        cgroups = await cgroup.created(path, self.paths.uid)
        try:
            limited = await self.place.limit()
            task = Bounded("bind", f"binding what container `{intent.params['container']}` is to be shown")
            binds = await task.run(lambda: stage(top, intent.params, task.enter), late=lambda: unstage(top))
        except errors.EffectError:
            await cgroup.remove(path, self.paths.uid)
            raise
        return {"tree": top, "binds": binds, **cgroups, **limited}

    async def probe(self, intent: Intent) -> Observed:
        """Done when every bind is mounted, for that comes last."""
        top = _top(self.paths, intent)
        task = Bounded("probe", f"looking at what container `{intent.params['container']}` is shown")

        def look() -> list[dict[str, Any]] | None:
            if not staged(top, intent.params):
                return None
            return [_seen(bind, task.enter) for bind in plan(top, intent.params)]

        binds = await task.run(look)
        if binds is None:
            return Observed(False)
        path = self._cgroup(intent)
        cgroups = await cgroup.bounded(f"looking at cgroup `{path}`", lambda: cgroup.find(path, self.paths.uid))
        return Observed(True, {"tree": top, "binds": binds, "cgroups": cgroups, "refused": []})

    async def undo(self, intent: Intent) -> dict[str, Any]:
        """Take away binds and cgroups."""
        return await self._discard(intent)


class ContainerUnstage(_ContainerHandler):
    """`container.unstage`: the binds go, and its part of the pod's limits; the cgroups stay (the shim is in them).

    Result: {"unmounted": [paths]}, and what `Placement.limit` answers.
    """

    async def perform(self, intent: Intent) -> dict[str, Any]:
        """Unmount in reverse and remove the places."""
        try:
            limited = await self.place.limit()
        except errors.EffectError as error:  # limits that are too wide for the rest are no reason to keep this one
            limited = {"limiting_failed": error.message}
        return {**await self._unstage(intent), **limited}

    async def probe(self, intent: Intent) -> Observed:
        """Done when the container's tree is gone, and the pod is limited without it."""
        await trio.lowlevel.checkpoint()
        return Observed(self.place.holds() and not os.path.lexists(_top(self.paths, intent)))

    async def undo(self, intent: Intent) -> dict[str, Any]:
        """Nothing to take back: doing it again is always right."""
        return await self._unstage(intent)


class ContainerDiscard(_ContainerHandler):
    """`container.discard`: whatever is left of the container on the host. Result: {"unmounted", "cgroups": {"removed",
    "foreign"}}."""

    async def perform(self, intent: Intent) -> dict[str, Any]:
        """Remove binds, places and cgroups."""
        return await self._discard(intent)

    async def probe(self, intent: Intent) -> Observed:
        """Done when neither tree nor cgroup of ours is there."""
        await trio.lowlevel.checkpoint()
        if os.path.lexists(_top(self.paths, intent)):
            return Observed(False)
        try:
            path = self._cgroup(intent)
        except errors.EffectError:
            return Observed(True)
        found = await cgroup.bounded(f"looking at cgroup `{path}`", lambda: cgroup.find(path, self.paths.uid))
        return Observed(not any(each["created"] for each in found))

    async def undo(self, intent: Intent) -> dict[str, Any]:
        """Nothing to take back: doing it again is always right."""
        return await self._discard(intent)
