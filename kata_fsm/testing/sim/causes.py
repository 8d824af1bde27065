# SPDX-License-Identifier: Apache-2.0
"""What was done to each sandbox of a program, and which recorded causes that justifies.

A recorded cause must be something that happened: a machine whose guest panicked was not killed, and a sandbox that nobody
asked to end was not ended by an operator. Where the world cannot tell two deeds apart, both justify the cause.
"""

from __future__ import annotations

from collections.abc import Mapping

from kata_fsm.effects.fake.faults import Faults
from kata_fsm.machines import Pod

HOST = ""
"""In the place of a uid: what was done to all of them."""

DEAF = ("silenced", "call", "line broken")
"""After these the agent may not be heard: told to be silent, a call that met a fault, a connection that broke."""

JUSTIFIED: Mapping[str, frozenset[str]] = {
    "guest_panic": frozenset({"panicked"}),
    "guest_shutdown": frozenset({"powered off"}),
    "host_oom": frozenset({"qemu oom"}),
    "vm_crashed": frozenset({"qemu crashed"}),
    # Whoever has not started QEMU is not told its wait status: killed or crashed, one cannot tell.
    "vm_killed": frozenset({"qemu killed", "qemu crashed"}),
    "vm_exited": frozenset(),
    "virtiofsd_lost": frozenset({"virtiofsd killed"}),
    "agent_lost": frozenset({*DEAF, "lied"}),
    "host_reboot": frozenset({"rebooted"}),
    "operator": frozenset({"delete", "recover"}),
    "resolved": frozenset({"resolve"}),
    "timeout": frozenset({"silenced", "call", "effect hang", "effect lost"}),
    "create_failed": frozenset({*DEAF, "effect", "supervisor died", "shim killed", "caller left", "delete", "resolve"}),
    "start_failed": frozenset({*DEAF, "effect", "lied", "workload ended", "workload oom", "kill", "delete", "resolve"}),
    "client_gone": frozenset({"caller left", "shim killed", "supervisor died"}),
    "supervisor_failed": frozenset(),
    "guest_oom": frozenset({"workload oom"}),
}
"""Of each cause, the deeds of which one at least must have been done. Causes that are not here follow from others."""


class Deeds:
    """Who did what to which sandbox (by its uid)."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._done: dict[str, set[str]] = {}

    def note(self, uid: str, deed: str) -> None:
        """It was done."""
        self._done.setdefault(uid, set()).add(deed)

    def done(self, uid: str) -> set[str]:
        """All that was done to one sandbox. Faults meet whoever comes first, so they count for everybody."""
        return self._done.get(uid, set()) | self._done.get(HOST, set()) | self._faults.met

    def unjustified(self, pod: Pod) -> list[str]:
        """The causes on record for which nobody did anything, each with whose it is."""
        done, found = self.done(str(pod.sandbox.facts.get("uid", ""))), []
        for machine, subject, unit in pod.units():
            cause = unit.facts.get("cause")
            if cause and cause["kind"] in JUSTIFIED and not JUSTIFIED[cause["kind"]] & done:
                found.append(f"{machine} `{subject}` has cause `{cause['kind']}`, but what was done is {sorted(done)}")
        return found
