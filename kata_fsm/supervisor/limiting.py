# SPDX-License-Identifier: Apache-2.0
"""Which limits a pod has on the host, and which disks, as functions of the folded pod; and what an update of a container
makes of the limits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kata_fsm.effects.hypervisor.settings import HypervisorSettings
from kata_fsm.limits import HOST_MEMORY_OVERHEAD_MIB
from kata_fsm.machines import container
from kata_fsm.oci import hosting, sandbox
from kata_fsm.oci.devices import Wanted, wanted_by

if TYPE_CHECKING:
    from kata_fsm.machines import Pod
    from kata_fsm.machines.pod import Unit


def limits_of(pod: Pod) -> hosting.Limits:
    """The limits of its living containers together. The first one counts before anything is done, as its machine is born."""
    config = pod.sandbox.facts.get("config") or {}
    living = {
        subject: asked_by(unit)
        for subject, unit in pod.containers.items()
        if unit.state in container.LIVING or (subject == pod.id and unit.state == container.DECLARED)
    }
    holder = living.pop(pod.id, {}) if config.get("kind") == sandbox.SANDBOX else {}
    overhead = config.get("memory_overhead_mib")
    return hosting.for_pod(
        living.values(),
        memory_mib=int((config.get("hypervisor") or {}).get("memory_mib") or HypervisorSettings().memory_mib),
        overhead_mib=HOST_MEMORY_OVERHEAD_MIB if overhead is None else int(overhead),
        holder=holder,
    )


def disks_of(pod: Pod) -> frozenset[Wanted]:
    """The block devices of its living containers together."""
    living = (unit for unit in pod.containers.values() if unit.state in container.LIVING)
    return frozenset(each for unit in living for each in wanted_by(unit.facts.get("config") or {}))


def concerning(asked: hosting.Asked, unheld: Iterable[str]) -> list[str]:
    """Of the lines about limits that the host does not hold, those about what one container asks for."""
    fields = [f"`{hosting.FIELDS[name]}`" for name in asked if name in hosting.FIELDS]
    return [line for line in unheld if line.startswith(tuple(fields))]


def asked_by(unit: Unit) -> hosting.Asked:
    """What a container asks for now: as the last update left it, or as it was created."""
    known = unit.facts.get("limits")
    return dict(known if known is not None else unit.facts.get("config", {}).get("limits") or {})
