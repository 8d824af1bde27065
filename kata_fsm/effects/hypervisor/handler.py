# SPDX-License-Identifier: Apache-2.0
"""The effects `hypervisor.launch` and `hypervisor.stop`, and the watch over a running QEMU.

QEMU is started as a process of its own session that outlives us. It is found again by the UUID in its arguments, which
is derived from the sandbox's uid; its pid file is for people. Whether it has come up is asked of its monitor: the
greeting and an answered command mean that the machine was built and the main loop runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import trio

from kata_fsm import errors, limits
from kata_fsm.argv import argv_of
from kata_fsm.effects import logs, oom, process, tree
from kata_fsm.effects.bounded import Bounded
from kata_fsm.effects.hypervisor import argv, host, image, kvm, tsc, watch
from kata_fsm.effects.hypervisor.qmp import Monitor
from kata_fsm.effects.hypervisor.settings import HypervisorSettings, from_dict
from kata_fsm.effects.placement import Placement
from kata_fsm.effects.protocols import Intent, Observed
from kata_fsm.world import Paths


class _Hypervisor:
    def __init__(self, paths: Paths, settings: HypervisorSettings, monitor: Monitor) -> None:
        self.paths = paths
        self.settings = settings
        self.monitor = monitor

    def find(self) -> process.Identity | None:
        """This sandbox's QEMU, if one runs."""
        found = process.find_by_argv(argv.uuid_of(self.paths.uid))
        return found[0] if found else None

    def _remove_files(self) -> None:
        for path in (self.paths.qmp_sock, self.paths.agent_sock, self.paths.qemu_pid):
            tree.unlink(path)

    async def _stop(self) -> dict[str, Any]:
        """End QEMU in order if it answers within the grace, by force if not; then remove its files."""
        identity = self.find()
        if identity is None:
            self._remove_files()
            return {"exit": process.UNKNOWN.to_dict(), "forced": False, "found": False}
        ended = None
        with trio.move_on_after(limits.VM_STOP_GRACE_S):
            try:
                await self.monitor.command("quit", limit_s=limits.VM_STOP_GRACE_S)
            except errors.EffectError:
                pass  # stuck, or already on its way out: the wait below tells which
            ended = await process.wait_exit(identity)
        forced = ended is None
        if ended is None:
            ended = await process.kill_and_wait(identity)
        self._remove_files()
        return {"exit": ended.to_dict(), "forced": forced, "found": True}


class HypervisorLaunch(_Hypervisor):
    """`hypervisor.launch`: starts QEMU, in the sandbox's cgroup, and waits until its monitor answers.

    Params: {"sandbox": id, "settings": dict of HypervisorSettings (optional: those given to the handler)}.
    Result: {"pid", "start_ticks", "boot_id", "argv": [...], "argv_sha256", "accel", "kernel", "cgroups": [directories],
    "warning": str if any}.
    Phases of failure: settings, image, memory, disk, accel, spawn, start, qmp; with QEMU's last words.
    """

    def __init__(
        self, paths: Paths, settings: HypervisorSettings, monitor: Monitor, place: Placement | None = None
    ) -> None:
        super().__init__(paths, settings, monitor)
        self.place = place or Placement(paths.uid, {})

    def _settings(self, params: Mapping[str, Any]) -> HypervisorSettings:
        return from_dict(params["settings"]) if params.get("settings") else self.settings

    async def perform(self, intent: Intent) -> dict[str, Any]:
        """Start it; one that runs already is answered as it is."""
        identity = self.find()
        if identity is not None:
            return self._result(identity, argv_of(identity.pid), {})
        settings = host.fitted(self._settings(intent.params))
        guest = await Bounded("image", "reading the guest's kernel and initrd").run(lambda: image.load(settings))
        self.monitor.warm()
        host.check_paths(self.paths)
        tree.make_directory(self.paths.base)
        tree.make_directory(self.paths.logs)
        host.check_space(self.paths)
        choice = await kvm.choose(settings, guest)
        host.check_memory(settings, choice.accel)
        self._remove_files()
        for log in (self.paths.console_log, self.paths.qemu_log):
            tree.write_file(log, "")
        cgroups = await self.place.enter()
        blind = settings.machine == "microvm" and choice.accel == "tcg"
        khz = await trio.to_thread.run_sync(tsc.host_khz) if blind else 0
        line = argv.build(settings, self.paths, guest, choice.accel, str(intent.params.get("sandbox", "")), tsc_khz=khz)
        identity = process.spawn(line, log_path=self.paths.qemu_log)
        try:
            await self._until_up(identity, choice.accel, _start_limit_s(settings))
        except Exception:
            with trio.CancelScope(shield=True):
                await process.kill_and_wait(identity)
                self._remove_files()
            raise
        extra = {"warning": choice.warning} if choice.warning else {}
        return self._result(identity, line, {"kernel": guest.kernel_version, "cgroups": cgroups, **extra})

    def _result(self, identity: process.Identity, line: list[str], extra: dict[str, Any]) -> dict[str, Any]:
        accel = "kvm" if "kvm" in line else "tcg"
        return {**identity.to_dict(), "argv": line, "argv_sha256": argv.digest(line), "accel": accel, **extra}

    async def _until_up(self, identity: process.Identity, accel: str, limit_s: float) -> None:
        """Wait for the monitor, or for QEMU's early end, whichever comes first."""
        ended: list[process.Exit] = []
        unanswered: errors.EffectError | None = None
        async with trio.open_nursery() as nursery:

            async def died() -> None:
                ended.append(await process.wait_exit(identity))
                nursery.cancel_scope.cancel()

            nursery.start_soon(died)
            try:
                await self.monitor.command("query-status", limit_s=limit_s)
            except errors.EffectError as error:
                # It may be that it hung up because it is dying: give the better message the chance to come.
                unanswered = error
                await trio.sleep(limits.QEMU_LAST_WORDS_S)
            nursery.cancel_scope.cancel()
        if ended:
            raise self._early_end(ended[0], accel)
        if unanswered is not None:
            late = isinstance(unanswered, errors.TimeoutExceeded)
            raise self._failed("qmp", unanswered.message, late=late) from unanswered

    def _early_end(self, ended: process.Exit, accel: str) -> errors.EffectError:
        stderr = logs.tail(self.paths.qemu_log, limits.STDERR_TAIL_BYTES)
        if "invalid accelerator" in stderr:
            return self._failed("accel", f"neither KVM nor emulation runs a guest here: this QEMU has no `{accel}`")
        said = logs.last_line(stderr)
        return self._failed("start", f"QEMU {ended.describe()} at its start" + (f": {said}" if said else ""))

    def _failed(self, phase: str, message: str, *, late: bool = False) -> errors.EffectError:
        stderr = logs.tail(self.paths.qemu_log, limits.STDERR_TAIL_BYTES)
        console = logs.tail(self.paths.console_log, limits.CONSOLE_TAIL_BYTES)
        kind = errors.TimeoutExceeded if late else errors.EffectError
        return kind(phase, message, evidence={"stderr": stderr, "console": console})

    async def probe(self, intent: Intent) -> Observed:
        """Done when this sandbox's QEMU runs."""
        await trio.lowlevel.checkpoint()
        identity = self.find()
        if identity is None:
            return Observed(False)
        return Observed(True, self._result(identity, argv_of(identity.pid), {}))

    async def undo(self, intent: Intent) -> dict[str, Any]:
        """End it and remove its files."""
        return await self._stop()

    async def watch(self, identity: process.Identity) -> dict[str, Any]:
        """Wait for QEMU's end and answer the evidence of its cause (see `watch.evidence`).

        Meanwhile keeps the monitor connected, so that events are heard, and the logs bounded.
        """
        ended = process.UNKNOWN
        witnesses = oom.Watch(identity)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(logs.keep_bounded, self.paths.console_log, self.paths.qemu_log)
            nursery.start_soon(self._listen)
            nursery.start_soon(witnesses.keep_fresh)
            ended = await process.wait_exit(identity)
            heard = await self._last_events()
            nursery.cancel_scope.cancel()
        told = witnesses.testify(ended)
        return watch.evidence(self.paths, ended, self.monitor.seen, heard=heard, told=told)

    async def _listen(self) -> None:
        while True:
            try:
                await self.monitor.connect()
                await self.monitor.lost.wait()
            except errors.EffectError:
                await trio.sleep(limits.QMP_RECONNECT_S)

    async def _last_events(self) -> bool:
        """After QEMU's death, wait until its last events have arrived; whether there was a connection to hear them."""
        if not self.monitor.connections:
            return False
        if self.monitor.connected:  # otherwise all has been heard, and a next connection is already being tried
            with trio.move_on_after(limits.QEMU_LAST_WORDS_S):
                await self.monitor.lost.wait()
        return True


def _start_limit_s(settings: HypervisorSettings) -> float:
    taken = settings.memory_mib / limits.PREALLOC_MIB_PER_S if settings.keeps_memory else 0.0
    return limits.QEMU_START_S + taken


class HypervisorStop(_Hypervisor):
    """`hypervisor.stop`: ends QEMU if it lives and removes its sockets and pid file. No params. Repeatable.

    Result: {"exit": {"code", "signal", "core"} as far as known, "forced": bool, "found": bool}.
    """

    async def perform(self, intent: Intent) -> dict[str, Any]:
        """End it."""
        return await self._stop()

    async def probe(self, intent: Intent) -> Observed:
        """Done when neither process nor file is left."""
        await trio.lowlevel.checkpoint()
        files = (self.paths.qmp_sock, self.paths.agent_sock, self.paths.qemu_pid)
        return Observed(self.find() is None and not any(os.path.lexists(path) for path in files))

    async def undo(self, intent: Intent) -> dict[str, Any]:
        """Nothing to take back: doing it again is always right."""
        return await self._stop()
