# SPDX-License-Identifier: Apache-2.0
"""The agent: our connection to the agent in the guest.

Theory of operation. `connecting` waits for the guest to boot and answer; `configuring` hands over what belongs to this
sandbox (clock, entropy, interfaces, file share), after which the guest can hold containers: a VM that was cold-booted and
one that was cloned differ only in how they came to be `connected`. `lost` is final: a guest whose agent is gone cannot
be told anything any more, so its sandbox ends. Its effects touch nothing on the host, so they may be cancelled: leaving
`connecting` or `configuring` by `lose` needs no undo.
"""

from __future__ import annotations

from kata_fsm.machines.table import Table

ABSENT = "absent"
CONNECTING = "connecting"
CONNECTED = "connected"
CONFIGURING = "configuring"
READY = "ready"
CLOSING = "closing"
LOST = "lost"
CLOSED = "closed"

ALIVE = frozenset({CONNECTING, CONNECTED, CONFIGURING, READY, CLOSING})
OVER = frozenset({LOST, CLOSED})

TABLE = Table(
    "agent",
    initial=ABSENT,
    rows=[
        (ABSENT, "connect", CONNECTING),
        (CONNECTING, "connected", CONNECTED),
        (CONNECTING, "failed", LOST),
        (CONNECTING, "lose", LOST),
        (CONNECTED, "configure", CONFIGURING),
        (CONNECTED, "lose", LOST),
        (CONFIGURING, "configured", READY),
        (CONFIGURING, "failed", LOST),
        (CONFIGURING, "lose", LOST),
        (READY, "close", CLOSING),
        (READY, "lose", LOST),
        (CLOSING, "closed", CLOSED),
        (CLOSING, "failed", LOST),
        (CLOSING, "lose", LOST),
    ],
    effects={CONNECTING: "agent.connect", CONFIGURING: "agent.configure", CLOSING: "agent.disconnect"},
    terminal=frozenset({LOST, CLOSED}),
)
