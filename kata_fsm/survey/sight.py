# SPDX-License-Identifier: Apache-2.0
"""One sandbox as the host shows it. Looks, and changes nothing; each look is bounded."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import trio

from kata_fsm.control import Connection, lock_is_free
from kata_fsm.effects import process, share, storage
from kata_fsm.effects.hypervisor import handler as hypervisor
from kata_fsm.effects.hypervisor.qmp import Monitor
from kata_fsm.effects.hypervisor.settings import from_dict
from kata_fsm.effects.network import handlers as network
from kata_fsm.effects.process import Identity
from kata_fsm.effects.protocols import Handler
from kata_fsm.errors import KataFsmError, SupervisorGone, SupervisorSilent
from kata_fsm.limits import PROBE_S, SUPERVISOR_PING_S
from kata_fsm.machines import Pod, outstanding, sandbox, vm
from kata_fsm.machines import process as processes
from kata_fsm.machines import share as shares
from kata_fsm.survey.traces import Trace
from kata_fsm.world import Paths, World

WATCHED, GONE, SILENT = "watched", "gone", "silent"


class Sight(msgspec.Struct, frozen=True):
    """What was seen. `supervisor` is `watched` (one is there and answers), `silent` (there, and does not) or `gone`.

    `born` and `last` are the boots of the sandbox's first and last event. `vm` and `share` say how its two daemons are;
    `shims` how many of its living processes have theirs. `open` tells of every outstanding effect on the host whether it
    was brought about (None: cannot be told). `traces` is what of it is on the host.
    """

    boot: str
    born: str
    last: str
    supervisor: str = GONE
    vm: str = ""
    share: str = ""
    shims: tuple[int, int] = (0, 0)
    open: dict[str, bool | None] = {}
    traces: tuple[Trace, ...] = ()

    @property
    def rebooted(self) -> bool:
        """Whether the host was started anew since the sandbox was made."""
        return bool(self.born) and self.born != self.boot


def supervisor_of(uid: str) -> str:
    """Whether somebody supervises it: a lock that is held means yes; then it is asked whether it answers."""
    paths = Paths(uid)
    if lock_is_free(paths.supervisor_lock):
        return GONE
    try:
        with Connection(paths.supervisor_sock, timeout_s=SUPERVISOR_PING_S) as connection:
            connection.send({"op": "ping"})
            connection.receive()
    except SupervisorSilent:
        return SILENT
    except SupervisorGone:
        pass  # it is on its way up or down: it will answer, or its lock will be free
    return WATCHED


def daemon(facts: dict[str, Any], name: str) -> str:
    """How the process that a machine's facts name is: `qemu (pid 9120) lives`, `qemu (pid 9120) is gone`, ..."""
    identity = Identity.from_dict(facts)
    if identity is None:
        return ""
    if process.alive(identity):
        return f"{name} (pid {identity.pid}) lives"
    other = process.identify(identity.pid)
    if other is not None and other != identity:
        return f"{name} is gone (pid {identity.pid} is another process now: `{_comm(identity.pid)}`)"
    return f"{name} (pid {identity.pid}) is gone"


def _comm(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "?"


def _handlers(paths: Paths, config: dict[str, Any], monitor: Monitor) -> dict[str, Handler]:
    """The handlers of effects on the host, for probing. What is in the guest is its supervisor's to ask."""
    settings = from_dict(config.get("hypervisor") or {})
    return {
        "hypervisor.launch": hypervisor.HypervisorLaunch(paths, settings, monitor),
        "hypervisor.stop": hypervisor.HypervisorStop(paths, settings, monitor),
        "network.attach": network.NetworkAttach(paths, settings),
        "network.detach": network.NetworkDetach(paths, settings),
        "share.prepare": share.SharePrepare(paths, settings),
        "share.release": share.ShareRelease(paths, settings),
        "container.prepare": storage.ContainerPrepare(paths),
        "container.unstage": storage.ContainerUnstage(paths),
        "container.discard": storage.ContainerDiscard(paths),
    }


def _probe(pod: Pod, paths: Paths) -> dict[str, bool | None]:
    seen: dict[str, bool | None] = {}

    async def probe_all() -> None:
        handlers = _handlers(paths, pod.sandbox.facts.get("config") or {}, Monitor(paths.qmp_sock))
        for intent in outstanding(pod):
            name = f"{intent.kind} {intent.subject}".strip()
            seen[name] = None
            if intent.kind not in handlers:
                continue
            try:
                with trio.move_on_after(PROBE_S):
                    seen[name] = (await handlers[intent.kind].probe(intent)).done
            except (KataFsmError, OSError, ValueError, TypeError, KeyError):
                pass  # it cannot be told

    if outstanding(pod):
        trio.run(probe_all)
    return seen


def look(pod: Pod, world: World, born: str, last: str, traces: tuple[Trace, ...]) -> Sight:
    """Look at the sandbox that `pod` is believed to be."""
    uid = str(pod.sandbox.facts.get("uid", ""))
    paths = Paths(uid)
    alive = [unit.facts["shim"] for unit in pod.processes.values() if _wants_shim(unit)]
    identities = [Identity.from_dict(facts) for facts in alive]
    held = [identity for identity in identities if identity is not None and process.alive(identity)]
    supervisor = supervisor_of(uid)
    daemons = pod.sandbox.state in sandbox.LIVE
    return Sight(
        world.boot_id(),
        born,
        last,
        supervisor,
        daemon(pod.vm.facts, "qemu")
        if daemons and pod.vm.state in (vm.RUNNING, vm.EXITED, vm.STOPPING, vm.STUCK)
        else "",
        daemon(pod.share.facts, "virtiofsd") if daemons and pod.share.state in shares.USABLE else "",
        (len(held), len(alive)),
        {} if supervisor == WATCHED else _probe(pod, paths),
        traces,
    )


def _wants_shim(unit: Any) -> bool:
    return unit.state in (processes.CREATED, processes.RUNNING, processes.EXITED) and "shim" in unit.facts


def left_behind(pod: Pod, traces: tuple[Trace, ...]) -> list[Trace]:
    """What of an ended sandbox is on the host although nothing of its sort may be. One that was not deleted keeps its
    directories, the cgroups of its containers, and a shim that still has output to deliver."""
    allowed = {"directory", "cgroup", "shim", "supervisor"} if pod.sandbox.state != sandbox.DELETED else set()
    return [trace for trace in traces if trace.kind not in allowed and _there(trace)]


def _there(trace: Trace) -> bool:
    """Whether it still is, for what a supervisor may just have been about to remove."""
    return process.alive(trace.identity) if trace.identity is not None else os.path.lexists(trace.name)
