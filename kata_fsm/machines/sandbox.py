# SPDX-License-Identifier: Apache-2.0
"""The sandbox: the pod as a whole.

Theory of operation. The sandbox performs no effect of its own: it names the phase that the other machines are driven
through by the coupling table. In `creating` they are brought up, in `stopping` they are taken down; `ready` means that
containers can be created in the guest. It leaves `stopping` only when everything that was acquired has been released,
into `stopped` when somebody wanted the end, into `failed` when nobody did. Both lead to `deleted` once every container
has been deleted. There is no state from which `deleted` cannot be reached.

`resolve` is the last resort of a person: an end that ended already is `failed` from now on, and what cannot be released is
given up instead of waited for (see the rules `give-up-...` of the coupling table).
"""

from __future__ import annotations

from kata_fsm.machines.table import Table

ABSENT = "absent"
CREATING = "creating"
READY = "ready"
STOPPING = "stopping"
STOPPED = "stopped"
FAILED = "failed"
DELETED = "deleted"

LIVE = frozenset({CREATING, READY, STOPPING})
ENDED = frozenset({STOPPED, FAILED, DELETED})

TABLE = Table(
    "sandbox",
    initial=ABSENT,
    rows=[
        (ABSENT, "create", CREATING),
        (CREATING, "ready", READY),
        (CREATING, "stop", STOPPING),
        (READY, "stop", STOPPING),
        # Asked again, with force: output that nobody reads is no longer waited for.
        (STOPPING, "stop", STOPPING),
        (STOPPING, "stopped", STOPPED),
        (STOPPING, "fail", FAILED),
        (STOPPED, "delete", DELETED),
        (FAILED, "delete", DELETED),
        (STOPPED, "resolve", FAILED),
        (FAILED, "resolve", FAILED),
    ],
    effects={},
    terminal=frozenset({DELETED}),
)
