# SPDX-License-Identifier: Apache-2.0
"""What the outcome of each kind of effect means to the machines: three tables."""

from __future__ import annotations

from kata_fsm.machines.vocab import Facts

DONE_TRIGGER: dict[str, tuple[str, str]] = {
    "hypervisor.launch": ("vm", "launched"),
    "hypervisor.stop": ("vm", "gone"),
    "network.attach": ("network", "attached"),
    "network.plug": ("network", "plugged"),
    "network.change": ("network", "changed"),
    "network.detach": ("network", "detached"),
    "share.prepare": ("share", "prepared"),
    "share.plug": ("share", "plugged"),
    "share.release": ("share", "released"),
    "agent.connect": ("agent", "connected"),
    "agent.configure": ("agent", "configured"),
    "agent.disconnect": ("agent", "closed"),
    "container.prepare": ("container", "prepared"),
    "container.create": ("container", "created"),
    "container.start": ("container", "started"),
    "container.pause": ("container", "paused"),
    "container.resume": ("container", "resumed"),
    "container.kill": ("container", "killed"),
    "container.remove": ("container", "removed"),
    "container.unstage": ("container", "unstaged"),
    "container.discard": ("container", "discarded"),
    "process.exec": ("process", "spawned"),
}
"""Which machine an effect's success moves, and by which trigger. Failure is `failed` on the same machine."""

FAILURE_CAUSE: dict[str, str] = {
    "hypervisor.launch": "create_failed",
    "network.attach": "create_failed",
    "network.plug": "create_failed",
    "share.prepare": "create_failed",
    "share.plug": "create_failed",
    "agent.connect": "create_failed",
    "agent.configure": "create_failed",
    "container.prepare": "create_failed",
    "container.create": "create_failed",
    "container.start": "start_failed",
    "process.exec": "exec_failed",
}
"""What the failure of an effect is the cause of. The others end nothing: their failure is an error, but no cause."""

MARKS_DONE: dict[str, Facts] = {
    "container.create": {"created": True},
    "container.start": {"started": True},
    "process.exec": {"spawned": True},
}
