# SPDX-License-Identifier: Apache-2.0
"""How a container stands, as far as a verb waits for it. Pure: each is asked of a pod."""

from __future__ import annotations

from kata_fsm.effects.process import Identity
from kata_fsm.machines import Pod, container, network, process, sandbox
from kata_fsm.machines.vocab import Facts

_PREPARED = frozenset({container.PREPARED, container.CREATING}) | container.IN_GUEST
_ENDED_EARLY = frozenset(
    {container.STOPPED, container.REMOVING, container.UNSTAGING, container.STUCK, container.DEAD, container.DISCARDING,
     container.DELETED}
)  # fmt: skip


def host_side_ready(pod: Pod, container_id: str) -> bool:
    """Everything on the host is there: a shim can be asked for."""
    return pod.unit("container", container_id).state in _PREPARED and pod.network.state in network.USABLE


def over(pod: Pod, container_id: str) -> bool:
    """It will not be created any more."""
    return (
        pod.sandbox.state not in (sandbox.CREATING, sandbox.READY)
        or pod.unit("container", container_id).state in _ENDED_EARLY
    )


def created(pod: Pod, container_id: str) -> bool:
    """The guest holds it."""
    return bool(pod.unit("container", container_id).facts.get("created"))


def undone(pod: Pod, container_id: str) -> bool:
    """What a failed creation has begun is undone, or cannot be."""
    if container_id == pod.id:
        return pod.sandbox.state == sandbox.DELETED or stuck(pod, container_id)
    return pod.unit("container", container_id).state == container.DELETED or stuck(pod, container_id)


def stuck(pod: Pod, container_id: str) -> bool:
    """Whether a clean-up that the container's deletion waits for has failed."""
    unit = pod.unit("container", container_id)
    own = unit.state == container.STUCK or (unit.state == container.DEAD and bool(unit.facts.get("discard_failed")))
    return own or (container_id == pod.id and "stuck" in (pod.vm.state, pod.network.state, pod.share.state))


def has_unread_output(pod: Pod, container_id: str) -> bool:
    """A process of it has ended whose output nobody has read."""
    return any(unit.state == process.EXITED for _, unit in pod.processes_of(container_id))


def shims_of(pod: Pod, container_id: str) -> list[Identity]:
    """The shims that have stood for its processes."""
    found = [Identity.from_dict(unit.facts.get("shim", {})) for _, unit in pod.processes_of(container_id)]
    return [identity for identity in found if identity is not None]


def stuck_error(pod: Pod) -> tuple[str, str]:
    """Which clean-up failed, of what, and what to do about it."""
    for machine, subject, unit in pod.units():
        error = unit.facts.get("error")
        if error and (unit.state == "stuck" or unit.facts.get("discard_failed")):
            where = f"{machine} `{subject}`" if subject else machine
            return f"{where}: {error.get('message')}", "delete it again to retry"
    return "a clean-up failed", "delete it again to retry"


def error_of(pod: Pod, container_id: str) -> tuple[str, str | None]:
    """Why a container did not come to be: its own error first, then its sandbox's."""
    found: Facts
    for found in (
        pod.unit("container", container_id).facts,
        pod.vm.facts,
        pod.share.facts,
        pod.network.facts,
        pod.agent.facts,
        pod.sandbox.facts,
    ):
        error = found.get("error")
        if error:
            return str(error.get("message", "")), error.get("hint")
    cause = pod.sandbox.facts.get("cause") or pod.unit("container", container_id).facts.get("cause") or {}
    return str(cause.get("message") or cause.get("kind") or "the cause is unknown"), None
