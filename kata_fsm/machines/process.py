# SPDX-License-Identifier: Apache-2.0
"""A process of a container: its init, or one added by exec.

Theory of operation. A process is first `declared`; then a shim attaches, which is the host pid that callers know it by.
An init process is created and run with its container; an added one has an effect of its own (`spawning`). `exited` holds
the exit code and cause while output that the guest still has is handed over; `closed` is the end: everything delivered,
the shim told. A shim may attach again at any time (a new supervisor makes it do so).
"""

from __future__ import annotations

from kata_fsm.machines.table import Table

ABSENT = "absent"
DECLARED = "declared"
CREATED = "created"
SPAWNING = "spawning"
RUNNING = "running"
EXITED = "exited"
CLOSED = "closed"

ALIVE = frozenset({CREATED, SPAWNING, RUNNING})
OVER = frozenset({CLOSED, ABSENT})
"""Of one that there was: a pod forgets closed execs (`pod.EXECS_REMEMBERED`)."""

TABLE = Table(
    "process",
    initial=ABSENT,
    rows=[
        (ABSENT, "declare", DECLARED),
        (DECLARED, "attach", DECLARED),
        (DECLARED, "create", CREATED),
        (DECLARED, "spawn", SPAWNING),
        (DECLARED, "abort", CLOSED),
        (CREATED, "attach", CREATED),
        (CREATED, "run", RUNNING),
        (CREATED, "exited", EXITED),
        (SPAWNING, "attach", SPAWNING),
        (SPAWNING, "spawned", RUNNING),
        (SPAWNING, "failed", CLOSED),
        (SPAWNING, "abort", CLOSED),
        (RUNNING, "attach", RUNNING),
        (RUNNING, "exited", EXITED),
        (EXITED, "attach", EXITED),
        (EXITED, "drained", CLOSED),
    ],
    effects={SPAWNING: "process.exec"},
    terminal=frozenset({CLOSED}),
)
