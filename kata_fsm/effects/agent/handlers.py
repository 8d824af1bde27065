# SPDX-License-Identifier: Apache-2.0
"""Handlers of the effects that the agent performs.

All of them are idempotent by the agent's own rules: a duplicate request is answered as the first was. `probe` asks the
agent for its state (an extension of ours); against a stock Kata agent it cannot tell, and `perform` is repeated.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from kata_fsm.effects.agent.client import AGENT, EXTENSION, AgentCallError, AgentUnreachable, one_line
from kata_fsm.effects.protocols import Observed
from kata_fsm.errors import EffectError, TimeoutExceeded
from kata_fsm.limits import AGENT_CALL_TIMEOUT_S, BOOT_TIMEOUT_S
from kata_wire import envelope

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kata_fsm.effects.agent.link import Link
    from kata_fsm.machines.vocab import Intent
    from kata_fsm.world import World

SHARE_TAG = "kataShared"
SHARE_MOUNT = "/run/kata-containers/shared/containers"
SHM_MOUNT = "/run/kata-containers/sandbox/shm"
SHM_BYTES_DEFAULT = 64 << 20  # what container engines give a container that asks for nothing
SIGKILL = 9
DISCONNECT_S = 3.0
REMOVE_S = 10.0
_RESEED_BYTES = 64

Result = dict[str, Any]


class AgentHandler:
    """What the handlers share: the link, and a probe that cannot tell."""

    def __init__(self, link: Link, world: World) -> None:
        self.link = link
        self.world = world

    def load(self, path: object) -> dict[str, Any]:
        """The configuration that was kept for the guest at `path`. Raises EffectError."""
        return _load(path)

    async def probe(self, intent: Intent) -> Observed:
        """Nothing can be seen from outside."""
        return Observed(None)

    async def undo(self, intent: Intent) -> Result:
        """Nothing to undo on the host; the guest's side goes with the guest."""
        return {}


class AgentConnect(AgentHandler):
    """Wait for the guest to boot and its agent to answer."""

    def __init__(self, link: Link, world: World, boot_timeout_s: float = BOOT_TIMEOUT_S) -> None:
        super().__init__(link, world)
        self.boot_timeout_s = boot_timeout_s

    async def perform(self, intent: Intent) -> Result:
        """Connect; answers the agent's version."""
        from kata_wire import messages

        client = await self.link.ensure(timeout_s=self.boot_timeout_s)
        version = await client.call("grpc.Health", "Version", messages.health.CheckRequest())
        return {"agent_version": one_line(version.agent_version)}


class AgentConfigure(AgentHandler):
    """Tell the guest what belongs to this sandbox: clock, entropy, host name, file share, shared memory."""

    def __init__(self, link: Link, world: World, kernel_modules: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(link, world)
        self.kernel_modules = kernel_modules

    async def perform(self, intent: Intent) -> Result:
        """The calls in Kata's order (virtcontainers/kata_agent.go startSandbox)."""
        from kata_wire import messages

        call, params = self.link.call, intent.params
        wall = self.world.wall_ns()
        await call(
            AGENT,
            "SetGuestDateTime",
            messages.agent.SetGuestDateTimeRequest(Sec=wall // 10**9, Usec=wall % 10**9 // 1000),
        )
        await call(
            AGENT, "ReseedRandomDev", messages.agent.ReseedRandomDevRequest(data=self.world.random_bytes(_RESEED_BYTES))
        )
        size = params.get("shm_size") or SHM_BYTES_DEFAULT
        storages = [
            messages.agent.Storage(driver="virtio-fs", source=SHARE_TAG, fstype="virtiofs", mount_point=SHARE_MOUNT),
            messages.agent.Storage(
                driver="ephemeral",
                source="shm",
                fstype="tmpfs",
                options=["noexec", "nosuid", "nodev", "mode=1777", f"size={size}"],
                mount_point=SHM_MOUNT,
            ),
        ]
        request = messages.agent.CreateSandboxRequest(
            hostname=params.get("hostname", "")[:64],
            dns=params.get("dns", []),
            storages=storages,
            sandbox_pidns=bool(params.get("sandbox_pidns")),
            sandbox_id=params.get("sandbox", ""),
            kernel_modules=[
                messages.agent.KernelModule(name=each["name"], parameters=each["parameters"])
                for each in self.kernel_modules
            ],
        )
        await call(AGENT, "CreateSandbox", request)
        return {}


class AgentDisconnect(AgentHandler):
    """Dismiss the agent: it flushes what it holds. A guest that does not answer is not waited for: the VM ends next."""

    async def perform(self, intent: Intent) -> Result:
        """Best effort within `DISCONNECT_S` seconds."""
        from kata_wire import messages

        try:
            await self.link.call(
                AGENT, "DestroySandbox", messages.agent.DestroySandboxRequest(), timeout_s=DISCONNECT_S
            )
        except EffectError as error:
            return {"unanswered": error.message}
        return {}


class ContainerCreate(AgentHandler):
    """Make the container in the guest, its init process waiting to be started."""

    def __init__(self, link: Link, world: World, timeout_s: float = AGENT_CALL_TIMEOUT_S) -> None:
        super().__init__(link, world)
        self.timeout_s = timeout_s

    async def perform(self, intent: Intent) -> Result:
        """Sends the adapted OCI configuration whole, in the extension field. Of block devices, which are plugged by now, the
        serial number; their numbers on the host are in the configuration, and the agent puts the guest's in their place."""
        from kata_fsm.oci.devices import wanted_by
        from kata_wire import messages

        disks = intent.params.get("disks") or []
        message = messages.oci.Spec(raw_json=_as_json(self.load(intent.params.get("spec_file"))))
        request = messages.agent.CreateContainerRequest(
            container_id=intent.subject,
            exec_id=intent.subject,
            OCI=message,
            sandbox_pidns=bool(intent.params.get("sandbox_pidns")),
            devices=[
                messages.agent.Device(
                    id=wanted_by({"disks": [each]})[0].serial, type="blk", container_path=each["path"]
                )
                for each in disks
            ],
        )
        await self.link.call(AGENT, "CreateContainer", request, timeout_s=self.timeout_s)
        return {}

    async def probe(self, intent: Intent) -> Observed:
        """Asks the agent whether it holds the container."""
        return await _probe_container(self.link, intent.subject, ("created", "running", "paused", "stopped"))


class ContainerStart(AgentHandler):
    """Let the init process run the workload."""

    async def perform(self, intent: Intent) -> Result:
        """`StartContainer`."""
        from kata_wire import messages

        await self.link.call(AGENT, "StartContainer", messages.agent.StartContainerRequest(container_id=intent.subject))
        return {}

    async def probe(self, intent: Intent) -> Observed:
        """Asks the agent whether it runs. One that has ended may have done so before it was started: asking to start it
        again tells."""
        return await _probe_container(self.link, intent.subject, ("running", "paused"), perhaps=("stopped",))


class ContainerPause(AgentHandler):
    """Freeze the container's cgroup in the guest."""

    async def perform(self, intent: Intent) -> Result:
        """`PauseContainer`."""
        from kata_wire import messages

        await self.link.call(AGENT, "PauseContainer", messages.agent.PauseContainerRequest(container_id=intent.subject))
        return {}

    async def probe(self, intent: Intent) -> Observed:
        """Asks the agent whether it is frozen."""
        return await _probe_container(self.link, intent.subject, ("paused",))


class ContainerResume(AgentHandler):
    """Thaw the container's cgroup in the guest."""

    async def perform(self, intent: Intent) -> Result:
        """`ResumeContainer`."""
        from kata_wire import messages

        await self.link.call(
            AGENT, "ResumeContainer", messages.agent.ResumeContainerRequest(container_id=intent.subject)
        )
        return {}

    async def probe(self, intent: Intent) -> Observed:
        """Asks the agent whether it runs."""
        return await _probe_container(self.link, intent.subject, ("running",))


class ContainerKill(AgentHandler):
    """SIGKILL every process of the container."""

    async def perform(self, intent: Intent) -> Result:
        """A container that is no more is as good as killed."""
        await signal_process(self.link, intent.subject, "", SIGKILL)
        return {}


class ContainerRemove(AgentHandler):
    """Remove the stopped container from the guest."""

    async def perform(self, intent: Intent) -> Result:
        """`RemoveContainer`; idempotent."""
        from kata_wire import messages

        request = messages.agent.RemoveContainerRequest(container_id=intent.subject, timeout=int(REMOVE_S))
        await self.link.call(AGENT, "RemoveContainer", request, timeout_s=2 * REMOVE_S)
        return {}


class ProcessExec(AgentHandler):
    """Add a process to a running container."""

    async def perform(self, intent: Intent) -> Result:
        """`ExecProcess` with the whole OCI process."""
        from kata_wire import messages

        params = intent.params
        process = messages.oci.Process(raw_json=_as_json(self.load(params.get("process_file"))))
        request = messages.agent.ExecProcessRequest(
            container_id=params["container"], exec_id=params["exec"], process=process
        )
        await self.link.call(AGENT, "ExecProcess", request)
        return {}

    async def probe(self, intent: Intent) -> Observed:
        """Asks the agent whether it knows the process."""
        state = await _query(self.link)
        if isinstance(state, Observed):
            return state
        for container in state.containers:
            if container.container_id == intent.params["container"]:
                return Observed(any(p.exec_id == intent.params["exec"] for p in container.processes))
        return Observed(False)


async def signal_process(link: Link, container_id: str, exec_id: str, number: int) -> bool:
    """Send signal `number`; an empty `exec_id` means every process. False when there was nothing to signal."""
    from kata_wire import messages

    request = messages.agent.SignalProcessRequest(container_id=container_id, exec_id=exec_id, signal=number)
    try:
        await link.call(AGENT, "SignalProcess", request)
    except AgentCallError as error:
        if error.code == envelope.NOT_FOUND:
            return False
        raise
    return True


async def _query(link: Link) -> Any:
    """The agent's answer; an `Observed` when there is none."""
    try:
        return await link.call(EXTENSION, "QueryState")
    except AgentCallError as error:
        if error.code == envelope.UNIMPLEMENTED:
            return Observed(None)
        raise
    except (AgentUnreachable, TimeoutExceeded):
        return Observed(None, later=True)


async def _probe_container(
    link: Link, container_id: str, states: tuple[str, ...], *, perhaps: tuple[str, ...] = ()
) -> Observed:
    state = await _query(link)
    if isinstance(state, Observed):
        return state
    found = next((container.state for container in state.containers if container.container_id == container_id), "")
    return Observed(None if found in perhaps else found in states)


def _as_json(config: dict[str, Any]) -> bytes:
    """For the extension field `raw_json`. Whoever echoed HELLO is our agent and reads only that; Kata's own fields beside it
    (`kata_wire.spec`) would be decoded in the guest for nothing, some milliseconds of every exec under emulation."""
    return json.dumps(config, separators=(",", ":")).encode()


def _load(path: object) -> dict[str, Any]:
    if not isinstance(path, str):
        raise EffectError("spec", "the configuration for the guest was not kept")
    try:
        with open(path, "rb") as file:
            loaded = json.load(file)
    except (OSError, ValueError) as error:
        raise EffectError("spec", f"the configuration for the guest cannot be read: {error}") from error
    if not isinstance(loaded, dict):
        raise EffectError("spec", "the configuration for the guest is not an object")
    return loaded
