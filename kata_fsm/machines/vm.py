# SPDX-License-Identifier: Apache-2.0
"""The virtual machine: the VMM process and what it left on the host.

Theory of operation. `launching` starts QEMU; `running` watches its pid. Its death, whenever it comes, is `died`, with the
wait status as evidence. `stopping` is both the wanted end and the clean-up after an unwanted one: it ends the process if
it lives and removes its files, and can be repeated. If that fails the machine is `stuck`: nothing is forgotten, and the
next request to delete or recover tries again. Only somebody who resolves the sandbox by hand has it abandoned.
"""

from __future__ import annotations

from kata_fsm.machines.table import Table

ABSENT = "absent"
LAUNCHING = "launching"
RUNNING = "running"
EXITED = "exited"
STOPPING = "stopping"
STUCK = "stuck"
GONE = "gone"

TABLE = Table(
    "vm",
    initial=ABSENT,
    rows=[
        (ABSENT, "launch", LAUNCHING),
        (LAUNCHING, "launched", RUNNING),
        (LAUNCHING, "failed", STOPPING),
        (RUNNING, "died", EXITED),
        (RUNNING, "stop", STOPPING),
        (EXITED, "stop", STOPPING),
        (STOPPING, "gone", GONE),
        (STOPPING, "failed", STUCK),
        (STUCK, "stop", STOPPING),
        (STUCK, "abandon", GONE),
    ],
    effects={LAUNCHING: "hypervisor.launch", STOPPING: "hypervisor.stop"},
    terminal=frozenset({GONE}),
)
