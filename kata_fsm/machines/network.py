# SPDX-License-Identifier: Apache-2.0
"""The network: the sandbox's network namespace and what joins it to the VM.

Theory of operation. `attaching` makes the namespace (or checks the one that the caller gave) and what the network model
needs in it; `detaching` undoes exactly that, also after an attach that failed half way.
"""

from __future__ import annotations

from kata_fsm.machines.table import Table

ABSENT = "absent"
ATTACHING = "attaching"
ATTACHED = "attached"
DETACHING = "detaching"
STUCK = "stuck"
DETACHED = "detached"

TABLE = Table(
    "network",
    initial=ABSENT,
    rows=[
        (ABSENT, "attach", ATTACHING),
        (ATTACHING, "attached", ATTACHED),
        (ATTACHING, "failed", DETACHING),
        (ATTACHED, "detach", DETACHING),
        (DETACHING, "detached", DETACHED),
        (DETACHING, "failed", STUCK),
        (STUCK, "detach", DETACHING),
        (STUCK, "abandon", DETACHED),
    ],
    effects={ATTACHING: "network.attach", DETACHING: "network.detach"},
    terminal=frozenset({DETACHED}),
)
