# SPDX-License-Identifier: Apache-2.0
"""The network: the sandbox's network namespace, what joins its interfaces to the VM, and the guest's NICs.

Theory of operation. `attaching` makes the namespace (or checks and scans the one that the caller gave) and joins each of
its interfaces to a tap, beside the boot of the VM; `plugging` gives the guest a NIC for each once the agent answers, and
tells it names, addresses and routes. With the model `none` there is nothing to plug: `attached` is where it stays.
`changing` brings guest and namespace together again while the pod runs: interfaces that came or went, routes that somebody
gave. It can fail without harm to what was there before. A plugging that fails leaves the network `broken`, and its sandbox
ends; `detaching` undoes everything on the host, also after an attach that failed half way, once no VM uses it.
"""

from __future__ import annotations

from kata_fsm.machines.table import Table

ABSENT = "absent"
ATTACHING = "attaching"
ATTACHED = "attached"
PLUGGING = "plugging"
PLUGGED = "plugged"
CHANGING = "changing"
BROKEN = "broken"
DETACHING = "detaching"
STUCK = "stuck"
DETACHED = "detached"

USABLE = frozenset({ATTACHED, PLUGGING, PLUGGED, CHANGING})
"""The namespace is there, and whoever belongs in it can enter it."""

TABLE = Table(
    "network",
    initial=ABSENT,
    rows=[
        (ABSENT, "attach", ATTACHING),
        (ATTACHING, "attached", ATTACHED),
        (ATTACHING, "failed", DETACHING),
        (ATTACHED, "plug", PLUGGING),
        (ATTACHED, "detach", DETACHING),
        (PLUGGING, "plugged", PLUGGED),
        (PLUGGING, "failed", BROKEN),
        (PLUGGED, "change", CHANGING),
        (PLUGGED, "detach", DETACHING),
        (CHANGING, "changed", PLUGGED),
        (CHANGING, "failed", PLUGGED),
        (BROKEN, "detach", DETACHING),
        (DETACHING, "detached", DETACHED),
        (DETACHING, "failed", STUCK),
        (STUCK, "detach", DETACHING),
        (STUCK, "abandon", DETACHED),
    ],
    effects={
        ATTACHING: "network.attach",
        PLUGGING: "network.plug",
        CHANGING: "network.change",
        DETACHING: "network.detach",
    },
    terminal=frozenset({DETACHED}),
)
