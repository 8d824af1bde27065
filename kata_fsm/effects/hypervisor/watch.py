# SPDX-License-Identifier: Apache-2.0
"""What a dead QEMU leaves behind, read as a cause. Pure but for reading the two logs.

Evidence, best first: the guest's panic (QMP event, or the kernel's last words on the console), QMP's SHUTDOWN event
(QEMU always sends one when it ends in order), the wait status. A connection that ended without SHUTDOWN means that
QEMU was killed or crashed even when the wait status is unknown, because QEMU is not our child after a supervisor's
restart.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kata_fsm import limits
from kata_fsm.effects import logs
from kata_fsm.effects.process import Exit
from kata_fsm.world import Paths

PANIC = "Kernel panic - not syncing"


def _last(events: Iterable[dict[str, Any]], name: str) -> dict[str, Any] | None:
    found = None
    for event in events:
        if event["event"] == name:
            found = event["data"]
    return found


def panic_line(console: str) -> str:
    """The kernel's panic message in a console tail, without its time stamp; empty if there is none."""
    for line in reversed(console.splitlines()):
        if PANIC in line:
            return line[line.index(PANIC) :].removesuffix(" ]---").strip()
    return ""


def judge(
    ended: Exit, shutdown: dict[str, Any] | None, *, panicked: str, heard: bool, stderr: str = ""
) -> tuple[str, str]:
    """(cause, message). `heard`: a QMP connection was up until the end, so no SHUTDOWN event means there was none.

    Causes: guest_panic, guest_shutdown, vm_exited (in order, or failed by itself), vm_killed (a signal), unknown.
    """
    if panicked:
        return "guest_panic", f"the guest's kernel panicked: {panicked}"
    if ended.signal is not None:
        return "vm_killed", f"QEMU {ended.describe()}"
    if shutdown is not None:
        reason = str(shutdown.get("reason", "unknown"))
        if shutdown.get("guest"):
            return "guest_shutdown", f"the guest ended the machine itself (`{reason}`)"
        # host-signal: SIGTERM and the like, which QEMU answers by ending in order.
        cause = "vm_killed" if reason == "host-signal" else "vm_exited"
        return cause, f"QEMU was told to end (`{reason}`)"
    if ended.code is not None:
        said = logs.last_line(stderr)
        return "vm_exited", f"QEMU {ended.describe()}" + (f": {said}" if said else "")
    if heard:
        return "vm_killed", "QEMU ended without saying so: it was killed or crashed"
    return "unknown", "QEMU has ended, nobody saw how"


def evidence(paths: Paths, ended: Exit, events: Iterable[dict[str, Any]], *, heard: bool) -> dict[str, Any]:
    """{"cause", "message", "exit", "shutdown" (QMP data or None), "console", "stderr"}: the tails are bounded."""
    events = list(events)
    console = logs.tail(paths.console_log, limits.CONSOLE_TAIL_BYTES)
    stderr = logs.tail(paths.qemu_log, limits.STDERR_TAIL_BYTES)
    shutdown = _last(events, "SHUTDOWN")
    panicked = panic_line(console)
    if not panicked and _last(events, "GUEST_PANICKED") is not None:
        panicked = "it told the pvpanic device so"
    cause, message = judge(ended, shutdown, panicked=panicked, heard=heard, stderr=stderr)
    return {
        "cause": cause,
        "message": message,
        "exit": ended.to_dict(),
        "shutdown": shutdown,
        "console": console,
        "stderr": stderr,
    }
