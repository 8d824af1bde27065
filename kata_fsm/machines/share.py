# SPDX-License-Identifier: Apache-2.0
"""The share: the directory tree that the guest sees, and the virtiofsd that serves it.

Theory of operation. `preparing` makes the tree and starts virtiofsd, beside the boot of the VM; `plugging` adds the
device once the agent answers. QEMU 7.2 cannot reconnect a vhost-user back end, so a virtiofsd that dies leaves the share
`broken` for good, and its sandbox ends. `releasing` ends the daemon, unmounts everything below the tree in reverse order
and removes it.
"""

from __future__ import annotations

from kata_fsm.machines.table import Table

ABSENT = "absent"
PREPARING = "preparing"
READY = "ready"
PLUGGING = "plugging"
PLUGGED = "plugged"
BROKEN = "broken"
RELEASING = "releasing"
STUCK = "stuck"
RELEASED = "released"

USABLE = frozenset({READY, PLUGGING, PLUGGED})

TABLE = Table(
    "share",
    initial=ABSENT,
    rows=[
        (ABSENT, "prepare", PREPARING),
        (PREPARING, "prepared", READY),
        (PREPARING, "failed", RELEASING),
        (READY, "plug", PLUGGING),
        (READY, "died", BROKEN),
        (READY, "release", RELEASING),
        (PLUGGING, "plugged", PLUGGED),
        (PLUGGING, "failed", BROKEN),
        (PLUGGING, "died", BROKEN),
        (PLUGGED, "died", BROKEN),
        (PLUGGED, "release", RELEASING),
        (BROKEN, "release", RELEASING),
        (RELEASING, "released", RELEASED),
        (RELEASING, "failed", STUCK),
        (STUCK, "release", RELEASING),
        (STUCK, "abandon", RELEASED),
    ],
    effects={PREPARING: "share.prepare", PLUGGING: "share.plug", RELEASING: "share.release"},
    terminal=frozenset({RELEASED}),
)
