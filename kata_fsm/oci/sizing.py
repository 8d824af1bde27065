# SPDX-License-Identifier: Apache-2.0
"""How large a sandbox's virtual machine has to be for the limits in its first bundle. Pure.

As in Kata, a memory limit comes on top of what the configuration gives: the guest's kernel, the agent and the page cache of
the share need room beside the workload. A limit of processor time gives as many processors as it can keep busy; without one,
a set of the host's processors gives as many as are in it. What cannot be had on this host is cut to what can: a limit is a
bound, not a reservation, and engines write limits above any machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kata_fsm.oci import cpusets
from kata_fsm.oci.spec import Resources

_MIB = 1 << 20
# containerd's CRI tells the size of the pod, since its sandbox's own container has no limits (pkg/cri/annotations).
_POD = "io.kubernetes.cri.sandbox-"


class Wanted(NamedTuple):
    """`memory_mib` on top of the configured memory; `vcpus` at least."""

    memory_mib: int
    vcpus: int


def wanted(resources: Resources | None, annotations: Mapping[str, str]) -> Wanted:
    """What the limits ask for; zeros where there are none."""
    memory = (resources.memory.limit if resources and resources.memory else None) or _number(annotations, "memory")
    quota = (resources.cpu.quota if resources and resources.cpu else None) or _number(annotations, "cpu-quota")
    period = (resources.cpu.period if resources and resources.cpu else None) or _number(annotations, "cpu-period")
    cpus = -(-quota // period) if quota > 0 and period > 0 else len(_processors(resources))
    return Wanted(-(-memory // _MIB) if memory > 0 else 0, cpus)


def sized(want: Wanted, *, memory_mib: int, vcpus: int, host_mib: int, host_cpus: int) -> dict[str, int]:
    """{"memory_mib", "vcpus"} of the machine, from the configured ones. The configuration is never gone below."""
    return {
        "memory_mib": max(memory_mib, min(memory_mib + want.memory_mib, host_mib)),
        "vcpus": max(vcpus, min(want.vcpus, host_cpus)),
    }


def _processors(resources: Resources | None) -> frozenset[int]:
    given = resources.cpu.cpus if resources and resources.cpu else None
    return cpusets.parse(given) if given else frozenset()


def _number(annotations: Mapping[str, str], name: str) -> int:
    text = annotations.get(_POD + name, "")
    return int(text) if text.isascii() and text.isdigit() else 0
