# SPDX-License-Identifier: Apache-2.0
"""A container.

Theory of operation. The host side (`preparing`: cgroup, binds into the shared tree) comes before the guest side
(`creating`), and is undone after it. Whatever ends a container leads to `stopped`; from there its guest side is removed
if the guest still lives (`removing`), its binds are unmounted (`unstaging`), and it rests in `dead`, holding nothing but
its name and exit code, until somebody deletes it. A container that never came to be takes the same way down and is
deleted at once.

`condemn` records that deletion was asked for while the container was still on its way down; `kill` is the forced way
there. `limit` records what the container is limited to from now on.

While an effect is outstanding an end of the init process waits for that effect's outcome, so that each
transitional state has exactly one way to be left per outcome; `abort` leaves them when the guest is gone.
"""

from __future__ import annotations

from kata_fsm.machines.table import Row, Table

ABSENT = "absent"
DECLARED = "declared"
PREPARING = "preparing"
PREPARED = "prepared"
CREATING = "creating"
CREATED = "created"
STARTING = "starting"
RUNNING = "running"
PAUSING = "pausing"
PAUSED = "paused"
RESUMING = "resuming"
KILLING = "killing"
ENDING = "ending"
STOPPED = "stopped"
REMOVING = "removing"
UNSTAGING = "unstaging"
STUCK = "stuck"
DEAD = "dead"
DISCARDING = "discarding"
DELETED = "deleted"

IN_GUEST = frozenset({CREATED, STARTING, RUNNING, PAUSING, PAUSED, RESUMING, KILLING, ENDING})
"""The guest holds it and its init process may be alive."""

LIVING = frozenset({PREPARING, PREPARED, CREATING, STOPPED, REMOVING}) | IN_GUEST
"""From its first effect to its last but one: what it is limited to counts, and is seen to when it begins and ends to."""

RELEASED = frozenset({DEAD, DISCARDING, DELETED})
"""Nothing of it is left in the guest or in the shared tree."""

SIGNALABLE = frozenset({CREATED, STARTING, RUNNING, PAUSING, PAUSED, RESUMING, KILLING, ENDING})

OCI_STATUS: dict[str, str] = {
    DECLARED: "creating",
    PREPARING: "creating",
    PREPARED: "creating",
    CREATING: "creating",
    CREATED: "created",
    STARTING: "created",
    RUNNING: "running",
    PAUSING: "running",
    PAUSED: "paused",
    RESUMING: "paused",
    KILLING: "running",
    ENDING: "running",
    STOPPED: "stopped",
    REMOVING: "stopped",
    UNSTAGING: "stopped",
    STUCK: "stopped",
    DEAD: "stopped",
    DISCARDING: "stopped",
}
"""The OCI word for each state (`paused` is the extension all engines know). `absent` and `deleted` have none."""

_CONDEMNABLE = (
    DECLARED,
    PREPARING,
    PREPARED,
    CREATING,
    CREATED,
    STARTING,
    RUNNING,
    PAUSING,
    PAUSED,
    RESUMING,
    KILLING,
    ENDING,
    STOPPED,
    REMOVING,
    UNSTAGING,
    STUCK,
    DEAD,
    DISCARDING,
)

_ROWS: list[Row] = [
    (ABSENT, "declare", DECLARED),
    (DECLARED, "prepare", PREPARING),
    (DECLARED, "abort", DEAD),
    (PREPARING, "prepared", PREPARED),
    (PREPARING, "failed", UNSTAGING),
    (PREPARED, "create", CREATING),
    (PREPARED, "abort", UNSTAGING),
    (CREATING, "created", CREATED),
    (CREATING, "failed", STOPPED),
    (CREATING, "abort", STOPPED),
    (CREATED, "start", STARTING),
    (CREATED, "kill", KILLING),
    (CREATED, "exited", STOPPED),
    (STARTING, "started", RUNNING),
    (STARTING, "failed", KILLING),
    (STARTING, "abort", STOPPED),
    (RUNNING, "pause", PAUSING),
    (RUNNING, "kill", KILLING),
    (RUNNING, "exited", STOPPED),
    (PAUSING, "paused", PAUSED),
    (PAUSING, "failed", RUNNING),
    (PAUSING, "abort", STOPPED),
    (PAUSED, "resume", RESUMING),
    (PAUSED, "kill", KILLING),
    (PAUSED, "exited", STOPPED),
    (RESUMING, "resumed", RUNNING),
    (RESUMING, "failed", PAUSED),
    (RESUMING, "abort", STOPPED),
    (KILLING, "killed", ENDING),
    (KILLING, "failed", ENDING),
    (KILLING, "abort", STOPPED),
    (ENDING, "exited", STOPPED),
    (ENDING, "kill", KILLING),
    (STOPPED, "remove", REMOVING),
    (STOPPED, "unstage", UNSTAGING),
    (REMOVING, "removed", UNSTAGING),
    (REMOVING, "failed", UNSTAGING),
    (REMOVING, "abort", UNSTAGING),
    (UNSTAGING, "unstaged", DEAD),
    (UNSTAGING, "failed", STUCK),
    (STUCK, "unstage", UNSTAGING),
    (STUCK, "abandon", DEAD),
    (DEAD, "discard", DISCARDING),
    (DISCARDING, "discarded", DELETED),
    (DISCARDING, "failed", DEAD),
    (DEAD, "abandon", DELETED),
]

TABLE = Table(
    "container",
    initial=ABSENT,
    rows=[
        *_ROWS,
        *((state, "condemn", state) for state in _CONDEMNABLE),
        *((state, "limit", state) for state in _CONDEMNABLE if state in IN_GUEST),
    ],
    effects={
        PREPARING: "container.prepare",
        CREATING: "container.create",
        STARTING: "container.start",
        PAUSING: "container.pause",
        RESUMING: "container.resume",
        KILLING: "container.kill",
        REMOVING: "container.remove",
        UNSTAGING: "container.unstage",
        DISCARDING: "container.discard",
    },
    terminal=frozenset({DELETED}),
)
