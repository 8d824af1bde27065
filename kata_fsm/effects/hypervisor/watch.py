# SPDX-License-Identifier: Apache-2.0
"""What a dead QEMU leaves behind, read as a cause. Pure but for reading the two logs.

Evidence, best first: the guest's panic (QMP event, or the kernel's last words on the console), the OOM killer's
traces, the wait status, QMP's SHUTDOWN event (QEMU always sends one when it ends in order). A connection that ended
without SHUTDOWN means that QEMU was killed or crashed even when the wait status is unknown, because QEMU is not our
child after a supervisor's restart; which of the two it was is then not known, and said so.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from kata_fsm import limits
from kata_fsm.effects import logs, oom
from kata_fsm.effects.process import UNKNOWN, Exit, Identity
from kata_fsm.world import Paths

PANIC = "Kernel panic - not syncing"
POWER = ("reboot: Power down", "reboot: Restarting system", "reboot: System halted", "reboot: machine restart")
"""What Linux says last of all, before it ends the machine (kernel/reboot.c, arch/x86/kernel/reboot.c)."""
EPITAPH = "init: the agent has ended, wait status 0x"
"""What the guest's init says of its agent, before it switches the machine off (guest/build/init.py)."""
_STATUS_DIGITS = 4


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


def power_line(console: str) -> str:
    """The kernel's word that it switches off or restarts, if it is the last that it said; else empty."""
    line = next((line for line in reversed(console.splitlines()) if line.strip()), "")
    return next((word for word in POWER if word in line), "")


def agent_end(console: str) -> str:
    """How the agent in the guest ended, as its init told on the console; empty if it did not."""
    _, told, rest = console.rpartition(EPITAPH)
    if not told:
        return ""
    try:
        ended = os.waitstatus_to_exitcode(int(rest[:_STATUS_DIGITS], 16))
    except ValueError:
        return UNKNOWN.describe()
    return (Exit(signal=-ended) if ended < 0 else Exit(code=ended)).describe()


def judge(
    ended: Exit,
    shutdown: dict[str, Any] | None,
    *,
    panicked: str,
    heard: bool,
    stderr: str = "",
    told: oom.Testimony = oom.NOTHING,
    powered: str = "",
    agent: str = "",
) -> tuple[str, str]:
    """(cause, message). `heard`: a QMP connection was up until the end, so no SHUTDOWN event means there was none.
    `powered`: as `power_line`. `agent`: as `agent_end`.

    Causes: guest_panic, agent_lost, guest_shutdown, host_oom, vm_exited (in order, or failed by itself), vm_crashed (a
    signal that a program brings upon itself), vm_killed (any other), unknown.
    """
    agent_lost = "agent_lost", f"the agent in the guest {agent}, and its machine was switched off"
    if panicked:
        return "guest_panic", f"the guest's kernel panicked: {panicked}"
    if told.by_oom and shutdown is None:
        return "host_oom", f"the host's OOM killer ended QEMU: {told.by_oom}"
    if ended.signal is not None:
        said = logs.last_line(stderr) if ended.signal in oom.CRASHES else ""
        cause = "vm_crashed" if ended.signal in oom.CRASHES else "vm_killed"
        return cause, f"QEMU {ended.describe()}" + (f": {said}" if said else "")
    if shutdown is not None:
        reason = str(shutdown.get("reason", "unknown"))
        if shutdown.get("guest"):
            if agent:
                return agent_lost
            return "guest_shutdown", f"the guest ended the machine itself (`{reason}`)"
        # host-signal: SIGTERM and the like, which QEMU answers by ending in order.
        cause = "vm_killed" if reason == "host-signal" else "vm_exited"
        return cause, f"QEMU was told to end (`{reason}`)"
    if ended.code is not None:
        said = logs.last_line(stderr)
        return "vm_exited", f"QEMU {ended.describe()}" + (f": {said}" if said else "")
    if agent:
        return agent_lost
    if powered:
        return "guest_shutdown", f"the guest ended the machine itself (`{powered}` stands last on its console)"
    if told.crashed:
        return "vm_crashed", f"QEMU crashed: {told.crashed}"
    if heard:
        return "vm_killed", "QEMU ended without saying so: it was killed or crashed, and its wait status is unknown"
    return "unknown", "QEMU has ended, nobody saw how"


def evidence(
    paths: Paths,
    ended: Exit,
    events: Iterable[dict[str, Any]],
    *,
    heard: bool,
    told: oom.Testimony = oom.NOTHING,
) -> dict[str, Any]:
    """{"cause", "message", "exit", "shutdown" (QMP data or None), "panic" (QMP data), "console", "stderr", what the kernel
    tells}: the tails are bounded."""
    events = list(events)
    console = logs.tail(paths.console_log, limits.CONSOLE_TAIL_BYTES)
    stderr = logs.tail(paths.qemu_log, limits.STDERR_TAIL_BYTES)
    shutdown = _last(events, "SHUTDOWN")
    panicked = panic_line(console)
    panic = _last(events, "GUEST_PANICKED")
    if not panicked and panic is not None:
        panicked = "it told the pvpanic device so"
    cause, message = judge(
        ended,
        shutdown,
        panicked=panicked,
        heard=heard,
        stderr=stderr,
        told=told,
        powered=power_line(console),
        agent=agent_end(console),
    )
    return {
        "cause": cause,
        "message": message,
        "exit": ended.to_dict(),
        "shutdown": shutdown,
        **({"panic": panic} if panic is not None else {}),
        **told.evidence,
        "console": console,
        "stderr": stderr,
    }


def unwatched(paths: Paths, identity: Identity) -> dict[str, Any]:
    """The same for a QEMU that ended while nobody was watching: its logs and the kernel's are all there is. A console
    that ends in a panic is believed: the guest says nothing after it."""
    told = oom.judge(UNKNOWN, oom.Counters(), oom.Counters(), oom.kernel_log(identity))
    return evidence(paths, UNKNOWN, [], heard=False, told=told)
