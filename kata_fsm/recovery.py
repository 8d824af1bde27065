# SPDX-License-Identifier: Apache-2.0
"""Believed versus observed: what a supervisor does first when it takes over a stream.

Recovery has three parts, in this order. Was the host started anew? Then nothing that ran can be alive. Do the processes
that the pod believes in still run? Each that does not is recorded as ended, with what can be known about how. Then every
outstanding effect is looked at and finished (`Runtime.resume`). Doing all of it twice changes nothing.
"""

from __future__ import annotations

from kata_fsm.effects.process import Identity, alive
from kata_fsm.machines import Cause, Pod, sandbox, share, vm
from kata_fsm.machines.vocab import HostRebooted, Observation, ShareDied, VmDied
from kata_fsm.runtime import Runtime
from kata_fsm.world import World


def process_of(facts: dict[str, object]) -> Identity | None:
    """The process that a machine's facts name (`pid`, `start_ticks`, `boot_id`)."""
    return Identity.from_dict(facts)


def observe(pod: Pod, world: World, last_boot: str) -> list[Observation]:
    """What has changed in the world behind the pod's back. Looks, and changes nothing."""
    if pod.sandbox.state not in sandbox.LIVE:
        return []
    boot = world.boot_id()
    if last_boot and last_boot != boot:
        return [HostRebooted(boot)]
    seen: list[Observation] = []
    missed = "it ended while no supervisor was watching"
    monitor = process_of(pod.vm.facts)
    if pod.vm.state == vm.RUNNING and (monitor is None or not alive(monitor)):
        seen.append(VmDied(Cause("vm_killed", f"the VMM is gone: {missed}", {"wait_status": "unknown"})))
    daemon = process_of(pod.share.facts)
    if "died" in share.TABLE.legal(pod.share.state) and (daemon is None or not alive(daemon)):
        seen.append(ShareDied(Cause("share_died", f"virtiofsd is gone: {missed}", {"wait_status": "unknown"})))
    return seen


async def recover(runtime: Runtime) -> None:
    """Bring a stream that was left behind to where its outstanding effects run again."""
    for observation in observe(runtime.pod, runtime.world, runtime.last_boot):
        await runtime.report(observation)
    await runtime.resume()
