# SPDX-License-Identifier: Apache-2.0
"""The sandbox's shared directory tree, and the virtiofsd that serves it to the guest.

    <run>/shared        bound on itself, in a peer group of its own: `storage` makes the containers' binds in it
    <run>/served        bound on itself, private
    <run>/served/tree   a read-only slave of `shared`: what virtiofsd serves

On a host whose / is shared (systemd's), whatever is mounted on it appears in every namespace that receives from it, and
would receive our binds there as well. `served` is private so that the view lies on a mount that tells nobody.

Three things follow from that. A bind made in `shared` appears in `served` and, through the slave copies that
virtiofsd's mount namespace has of it, in the running virtiofsd. Nothing that happens in virtiofsd's namespace comes
back. And the guest cannot write into the tree itself (each bind keeps its own writability), so it cannot leave a
symbolic link where the host will make the next container's directory (the attack of CVE-2020-2026 on Kata).

virtiofsd gets its listening socket as a descriptor: QEMU can connect from then on, nothing has to be polled, and no
lock and pid files appear under /run/virtiofsd. It sandboxes itself (its own mount, pid and network namespaces) once
QEMU has connected, and forks to do so: it is found by its arguments, all of its processes at once.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import trio

from kata_fsm import errors, limits
from kata_fsm.argv import argv_of
from kata_fsm.effects import logs, mounts, oom, process, tree
from kata_fsm.effects.bounded import Bounded, Enter
from kata_fsm.effects.hypervisor import hotplug
from kata_fsm.effects.hypervisor.qmp import Monitor
from kata_fsm.effects.hypervisor.settings import HypervisorSettings
from kata_fsm.effects.placement import Placement
from kata_fsm.effects.protocols import Intent, Observed
from kata_fsm.world import Paths

TAG = "kataShared"
PORT = "rp0"
_CAP_SYS_RESOURCE = 24


def served(paths: Paths) -> str:
    """The read-only view of the shared tree that virtiofsd serves."""
    return _private(paths) + "/tree"


def _private(paths: Paths) -> str:
    return paths.base + "/served"


def argv(settings: HypervisorSettings, paths: Paths, listener: int, *, may_raise_limits: bool) -> list[str]:
    """virtiofsd's command line. Pure.

    `announce_submounts` makes each bind a file system of its own in the guest, so that equal inode numbers of two
    hosts' file systems do not meet; `xattr` keeps file capabilities (`ping`) working, and costs little because
    virtiofsd negotiates killpriv_v2. Without CAP_SYS_RESOURCE virtiofsd fails to raise its limit of open files: then
    it is told not to try, and gets the hard limit it has.
    """
    options = (
        f"sandbox={settings.virtiofsd_sandbox},cache={settings.virtiofsd_cache},announce_submounts,xattr,log_level=warn"
    )
    line = [
        settings.virtiofsd,
        f"--fd={listener}",
        "-o",
        source_option(paths),
        "-o",
        options,
        *settings.virtiofsd_arguments,
    ]
    return line if may_raise_limits else [*line, "--rlimit-nofile=0"]


def source_option(paths: Paths) -> str:
    """The argument that tells this sandbox's virtiofsd from every other process."""
    return f"source={served(paths)}"


def _remake_mounts(paths: Paths) -> None:
    shared, view = paths.shared, served(paths)
    for path in (view, shared):
        tree.make_directory(path, tree.PASSABLE)
    try:
        for path in (shared, _private(paths)):
            mounts.mount(path, path, mounts.MS_BIND)
            mounts.mount(None, path, mounts.MS_PRIVATE)  # out of the host's peer group
        mounts.mount(None, shared, mounts.MS_SHARED)
        mounts.mount(shared, view, mounts.MS_BIND)
        mounts.mount(None, view, mounts.MS_SLAVE)
        mounts.mount(None, view, mounts.MS_BIND | mounts.MS_REMOUNT | mounts.MS_RDONLY)
    except OSError as error:
        raise errors.EffectError("tree", f"cannot mount `{error.filename}`: {error.strerror}") from error


def _remove_mounts(paths: Paths, enter: Enter) -> list[str]:
    gone: list[str] = []
    # The view last: unmounting in `shared` empties it too.
    for path in (paths.shared, _private(paths)):
        gone += mounts.unmount_below(path, enter)
    for path in (paths.shared, _private(paths)):
        tree.remove_tree(path)
    return gone


def _listen(path: str) -> socket.socket:
    tree.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(1)
    except OSError as error:
        listener.close()
        raise errors.EffectError("socket", f"cannot listen on `{path}`: {error.strerror}") from error
    return listener


class _ShareHandler:
    def __init__(self, paths: Paths, settings: HypervisorSettings) -> None:
        self.paths = paths
        self.settings = settings

    def _daemons(self) -> list[process.Identity]:
        return process.find_by_argv(source_option(self.paths))

    async def _release(self) -> dict[str, Any]:
        ended = process.UNKNOWN
        for identity in self._daemons():
            status = await process.kill_and_wait(identity)
            ended = status if status.known else ended
        # The one that forked may have had its child only now visible to us: look again until none is left.
        for identity in self._daemons():
            await process.kill_and_wait(identity)
        task = Bounded("unmount", "unmounting the shared tree")
        unmounted = await task.run(lambda: _remove_mounts(self.paths, task.enter))
        tree.unlink(self.paths.virtiofsd_sock)
        tree.unlink(self.paths.virtiofsd_pid)
        return {"unmounted": unmounted, "exit": ended.to_dict()}


class SharePrepare(_ShareHandler):
    """`share.prepare`: the tree, its served view, and virtiofsd listening, in the sandbox's cgroup. No params.

    Result: {"pid", "start_ticks", "boot_id", "argv", "socket", "tag"}.
    """

    def __init__(self, paths: Paths, settings: HypervisorSettings, place: Placement | None = None) -> None:
        super().__init__(paths, settings)
        self.place = place or Placement(paths.uid, {})

    async def perform(self, intent: Intent) -> dict[str, Any]:
        """Make the tree and start virtiofsd; from then on QEMU can connect to `paths.virtiofsd_sock`."""
        await self._release()
        try:
            tree.make_directory(self.paths.logs)
            await trio.to_thread.run_sync(_remake_mounts, self.paths)
            await self.place.enter()
            return self._start()
        except errors.EffectError:
            await self._release()
            raise

    def _start(self) -> dict[str, Any]:
        tree.unlink(self.paths.virtiofsd_log)
        with _listen(self.paths.virtiofsd_sock) as listener:
            may_raise = process.has_capability(_CAP_SYS_RESOURCE)
            line = argv(self.settings, self.paths, listener.fileno(), may_raise_limits=may_raise)
            identity = process.spawn(line, log_path=self.paths.virtiofsd_log, pass_fds=[listener.fileno()])
        process.raise_file_limit(identity)
        tree.write_file(self.paths.virtiofsd_pid, f"{identity.pid}\n")
        return self._result(identity, line)

    def _result(self, identity: process.Identity, line: list[str]) -> dict[str, Any]:
        return {**identity.to_dict(), "argv": line, "socket": self.paths.virtiofsd_sock, "tag": TAG}

    async def probe(self, intent: Intent) -> Observed:
        """Done when the mounts are there and virtiofsd runs."""
        await trio.lowlevel.checkpoint()
        daemons = self._daemons()
        if not daemons or not mounts.at(self.paths.shared) or not mounts.at(served(self.paths)):
            return Observed(False)
        return Observed(True, self._result(daemons[0], argv_of(daemons[0].pid)))

    async def undo(self, intent: Intent) -> dict[str, Any]:
        """End virtiofsd and remove the tree."""
        return await self._release()

    async def watch(self, identity: process.Identity) -> dict[str, Any]:
        """Wait for virtiofsd's end, its log bounded. Answers {"cause": "virtiofsd_lost", "message", "exit",
        "stderr", what the kernel tells}."""
        witnesses = oom.Watch(identity)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(logs.keep_bounded, self.paths.virtiofsd_log)
            nursery.start_soon(witnesses.keep_fresh)
            ended = await process.wait_exit(identity)
            nursery.cancel_scope.cancel()
        stderr = logs.tail(self.paths.virtiofsd_log, limits.STDERR_TAIL_BYTES)
        said = logs.last_line(stderr)
        told = witnesses.testify(ended)
        why = f" by the host's OOM killer: {told.by_oom}" if told.by_oom else f": {said}" if said else ""
        message = f"virtiofsd {ended.describe()}{why}"
        evidence = {"exit": ended.to_dict(), "stderr": stderr, **told.evidence}
        return {"cause": "virtiofsd_lost", "message": message, **evidence}


class SharePlug:
    """`share.plug`: the device that shows the tree to the guest, once its agent answers. No params.

    Result: {"tag", "device", "bus", "plugged": False when it was there already}.
    """

    def __init__(self, paths: Paths, settings: HypervisorSettings, monitor: Monitor) -> None:
        self.paths = paths
        self.settings = settings
        self.monitor = monitor

    async def perform(self, intent: Intent) -> dict[str, Any]:
        """Plug it; one that is there is fine."""
        try:
            plugged = await hotplug.plug_share(
                self.monitor,
                socket=self.paths.virtiofsd_sock,
                tag=TAG,
                bus=PORT,
                queue_size=self.settings.share_queue_size,
            )
        except errors.EffectError as error:
            raise self._with_last_words(error) from error
        return {"tag": TAG, "device": hotplug.SHARE_DEVICE, "bus": PORT, "plugged": plugged}

    def _with_last_words(self, error: errors.EffectError) -> errors.EffectError:
        """QEMU only sees that its peer hung up; why, virtiofsd has written down."""
        stderr = logs.tail(self.paths.virtiofsd_log, limits.STDERR_TAIL_BYTES)
        said = logs.last_line(stderr)
        stopped = [each for each in process.find_by_argv(source_option(self.paths)) if process.is_stopped(each)]
        message = f"{error.message}; virtiofsd said: {said}" if said else error.message
        message += f"; virtiofsd (pid {stopped[0].pid}) is stopped" if stopped else ""
        kind = errors.TimeoutExceeded if isinstance(error, errors.TimeoutExceeded) else errors.EffectError
        return kind(error.phase, message, evidence={**error.evidence, "virtiofsd": stderr})

    async def probe(self, intent: Intent) -> Observed:
        """Done when QEMU has the device; unknown when QEMU does not answer."""
        try:
            there = await hotplug.has_device(self.monitor, hotplug.SHARE_DEVICE)
        except errors.EffectError:
            return Observed(None)
        return Observed(there, {"tag": TAG, "device": hotplug.SHARE_DEVICE, "bus": PORT, "plugged": False})

    async def undo(self, intent: Intent) -> dict[str, Any]:
        """Unplug it."""
        return {"unplugged": await hotplug.unplug_share(self.monitor)}


class ShareRelease(_ShareHandler):
    """`share.release`: ends virtiofsd and removes the tree with whatever is still bound in it. No params.

    Result: {"unmounted": [paths], "exit": {"code", "signal", "core"} of virtiofsd as far as known}.
    """

    async def perform(self, intent: Intent) -> dict[str, Any]:
        """Kill, unmount, remove."""
        return await self._release()

    async def probe(self, intent: Intent) -> Observed:
        """Done when no virtiofsd, directory or socket is left."""
        await trio.lowlevel.checkpoint()
        left = [self.paths.shared, _private(self.paths), self.paths.virtiofsd_sock, self.paths.virtiofsd_pid]
        return Observed(not self._daemons() and not any(os.path.lexists(path) for path in left))

    async def undo(self, intent: Intent) -> dict[str, Any]:
        """Nothing to take back: doing it again is always right."""
        return await self._release()
