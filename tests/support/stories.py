# SPDX-License-Identifier: Apache-2.0
"""Lives of a sandbox, scripted: what the tests of replay tell and check."""

from __future__ import annotations

from collections.abc import Callable

from kata_fsm.machines.vocab import (
    AttachShim,
    Cause,
    CreateSandbox,
    Delete,
    Drained,
    Exec,
    HostRebooted,
    Kill,
    Pause,
    VmDied,
)
from tests.support.pods import NEXT_BOOT_ID, SHIM, Driven


def vm_killed(pod: Driven) -> None:
    """QEMU was killed under a running container; then it was deleted."""
    pod.create().start().vm_killed().delete()


def exited(pod: Driven) -> None:
    """The workload ended by itself with code 3."""
    pod.create().start().exits(3).delete()


def create_failed(pod: Driven) -> None:
    """QEMU did not start."""
    pod.give(CreateSandbox(pod.name, pod.uid, {}, {"args": ["true"]}))
    tail = "warning: old\nqemu: could not open kernel\n"
    pod.failed("hypervisor.launch", "spawn", "qemu exited with code 1", ms=300, stderr_tail=tail, status=1)
    pod.work_off()


def hostile_exec(pod: Driven) -> None:
    """Arguments and messages hold terminal control sequences, an exec fails, and the story ends in the middle."""
    pod.create().start()
    pod.give(Exec(pod.name, f"{pod.name}/e1", {"args": ["sh", "-c", "\x1b]0;owned\x07\x9b2J\u202e"]}), after_ms=15)
    pod.give(AttachShim(f"{pod.name}/e1", {"pid": 9002}), actor=SHIM)
    pod.failed("process.exec", "agent", "no such file: \r\n\x1b[2J", f"{pod.name}/e1", errno=2)
    pod.give(Kill(pod.name, 10, False))
    pod.give(Pause(pod.name), after_ms=12_345)


def deleted_by_force(pod: Driven) -> None:
    """Somebody asked for the end of a running container while it was being paused."""
    pod.create().start()
    pod.give(Pause(pod.name))
    pod.give(Delete(pod.name, True), after_ms=5)
    pod.work_off()


def outcome_too_late(pod: Driven) -> None:
    """QEMU died while a container was being paused: the effect's outcome finds its state left."""
    pod.create().start()
    pod.give(Pause(pod.name))
    pod.give(VmDied(Cause("vm_exited", "qemu ended with code 1", {"code": 1})), after_ms=700)
    pod.failed("container.pause", "cancelled", "its state was left while it was under way", pod.name)
    pod.give(Drained(f"{pod.name}/init"))
    pod.work_off()


def host_rebooted(pod: Driven) -> None:
    """The host was started anew under a running sandbox."""
    pod.create().start()
    pod.host.reboot()
    pod.give(HostRebooted(NEXT_BOOT_ID))
    pod.work_off()


STORIES: list[Callable[[Driven], None]] = [
    vm_killed,
    exited,
    create_failed,
    hostile_exec,
    deleted_by_force,
    outcome_too_late,
    host_rebooted,
]
