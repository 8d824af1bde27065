# SPDX-License-Identifier: Apache-2.0
"""What a supervisor watches, as a function of the folded pod.

A transitional state has an effect; a stable one has watches: a running VM is watched by its pidfd, virtiofsd likewise,
the agent by its connection and a question now and then, each living process by a call that waits for its end and by the
pumps of its stdio. After every step the set is compared with what runs; the difference is started or cancelled. After a
restart the same set comes out again, so watching needs no memory either.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import trio

from kata_fsm.effects import process as host
from kata_fsm.effects.agent.client import EXTENSION, HEALTH, AgentCallError
from kata_fsm.errors import EffectError
from kata_fsm.limits import AGENT_WATCH_ANSWER_S, AGENT_WATCH_EVERY_S, RETRY_S, VM_DEATH_NOTICE_S
from kata_fsm.machines import Cause, Pod, agent, network, process, sandbox, share, vm
from kata_fsm.machines.intents import Watches
from kata_fsm.machines.pod import INIT
from kata_fsm.machines.vocab import EXIT_UNKNOWN, AgentLost, ProcessExited, ShareDied, VmDied
from kata_fsm.recovery import process_of
from kata_fsm.supervisor.session import SIGNAL_MAX, Session

if TYPE_CHECKING:
    from kata_fsm.effects.agent.link import Link
    from kata_fsm.effects.protocols import Processes
    from kata_fsm.runtime import Runtime
    from kata_fsm.supervisor.reading import AgentLied
    from kata_fsm.supervisor.wiring import Wiring

Key = tuple[str, str]

EXIT_CODE_MAX = 255
_SERVED = (network.PLUGGED, network.CHANGING)


class Watcher:
    """Keeps the watches of one pod in step with it. `reconcile` is called after every step."""

    def __init__(self, runtime: Runtime, link: Link, nursery: trio.Nursery, *, processes: Processes = host) -> None:
        self._runtime = runtime
        self._processes = processes
        self._link = link
        self._nursery = nursery
        self.wiring: Wiring | None = None  # known as soon as there is a sandbox
        self.rescan: Callable[[], Awaitable[object]] | None = (
            None  # the pod's network, known as soon as there is a server
        )
        self.blind = False  # watch nothing: the sandbox is being taken down because watching it has failed
        self._tasks: dict[Key, trio.CancelScope] = {}
        self.sessions: dict[str, Session] = {}

    def session(self, subject: str) -> Session:
        """The stdio session of a process, made at first use."""
        found = self.sessions.get(subject)
        if found is None:
            found = self.sessions[subject] = Session(subject, self._runtime, self._link, processes=self._processes)
        return found

    def _wanted(self, pod: Pod) -> dict[Key, None]:
        """In order: what is due at once begins in the same order wherever a simulated run is repeated."""
        wanted: dict[Key, None] = {}
        if self.blind:
            return wanted
        if pod.vm.state == vm.RUNNING:
            wanted[("vm", "")] = None
        if pod.share.state in share.USABLE and pod.vm.state in (vm.ABSENT, vm.LAUNCHING, vm.RUNNING):
            wanted[("share", "")] = None
        if pod.agent.state in (agent.CONNECTED, agent.CONFIGURING, agent.READY):
            wanted[("agent", "")] = None
        if pod.agent.state == agent.READY and pod.network.facts.get("resolver"):
            wanted[("names", "")] = None
        if pod.agent.state == agent.READY and pod.sandbox.state == sandbox.READY:
            wanted[("localhost", "")] = None
            if pod.network.state in _SERVED and pod.sandbox.facts.get("config", {}).get("network_watched"):
                wanted[("network", "")] = None
        watches = Watches(pod)
        for subject in watches.exits:
            wanted[("exit", subject)] = None
        for subject in watches.outputs:
            wanted[("stdio", subject)] = None
        return wanted

    def _watch(self, key: Key) -> Awaitable[None]:
        kind, subject = key
        if kind == "exit":
            return self._exit(subject)
        if kind == "stdio":
            return self.session(subject).run()
        watch: Callable[[], Awaitable[None]] = getattr(self, f"_{kind}")
        return watch()

    def reconcile(self, pod: Pod) -> None:
        """Start the watches that are due and cancel those that are not."""
        if pod.agent.state in agent.OVER:
            self._link.end()
        for subject in [s for s in self.sessions if pod.unit("process", s).state in process.OVER]:
            del self.sessions[subject]  # whoever still tells its shim of the end holds on to it
        wanted = self._wanted(pod)
        for key in [key for key in self._tasks if key not in wanted]:
            self._tasks.pop(key).cancel()
        for key in wanted:
            if key not in self._tasks:
                scope = self._tasks[key] = trio.CancelScope()
                if key[0] == "stdio":
                    self.session(key[1])
                self._nursery.start_soon(self._run, key, scope)

    async def _run(self, key: Key, scope: trio.CancelScope) -> None:
        with scope:
            await self._watch(key)

    async def _vm(self) -> None:
        identity = process_of(self._runtime.pod.vm.facts)
        if identity is None or self.wiring is None:
            cause = Cause("unknown", "the record does not name the VMM's process")
        else:
            cause = await self.wiring.vm_ended(identity)
        await self._runtime.report(VmDied(cause))

    async def _share(self) -> None:
        identity = process_of(self._runtime.pod.share.facts)
        if identity is None or self.wiring is None:
            cause = Cause("unknown", "the record does not name virtiofsd's process")
        else:
            cause = await self.wiring.share_ended(identity)
        # virtiofsd also ends when its QEMU does. Only one that leaves a living VM behind is the cause of anything.
        with trio.move_on_after(VM_DEATH_NOTICE_S):
            await self._runtime.until(lambda pod: pod.vm.state not in (vm.LAUNCHING, vm.RUNNING))
            return
        await self._runtime.report(ShareDied(cause))

    async def _agent(self) -> None:
        """Ask now and then; make a new connection when the old one broke. Give up when neither is answered."""
        from kata_wire import messages

        while True:
            try:
                client = await self._link.ensure(timeout_s=AGENT_WATCH_ANSWER_S)
                with trio.move_on_after(AGENT_WATCH_EVERY_S):
                    await client.closed.wait()
                    await trio.sleep(RETRY_S)  # a guest that hangs up again and again sets our pace at most here
                    continue
                await client.call(HEALTH, "Check", messages.health.CheckRequest(), timeout_s=AGENT_WATCH_ANSWER_S)
            except EffectError as error:
                if self._link.client is None and await self._reconnected():
                    continue
                evidence = {"phase": error.phase, **error.evidence}
                await self._runtime.report(AgentLost(Cause("agent_lost", error.message, evidence)))
                return

    async def _reconnected(self) -> bool:
        try:
            await self._link.ensure(timeout_s=AGENT_WATCH_ANSWER_S)
        except EffectError:
            return False
        return True

    async def _names(self) -> None:
        """The guest's questions for Docker's name server, and its answers."""
        from kata_fsm.supervisor import names

        await names.relay(self._link, str(self._runtime.pod.network.facts.get("netns") or ""))

    async def _localhost(self) -> None:
        """Connections to `localhost` in the pod's namespace on the host."""
        from kata_fsm.supervisor import forward

        if self.wiring is not None:
            held = str(self._runtime.pod.network.facts.get("netns") or "")
            await forward.serve(self._link, self.wiring.doorway(held), self._lied)

    async def _network(self) -> None:
        """What is moved into the pod's namespace, or out of it."""
        from kata_fsm.supervisor import netmon

        if self.wiring is not None and self.rescan is not None:
            await netmon.watch(self.wiring, lambda: self._runtime.pod.network.facts, self.rescan)

    async def _lied(self, lie: AgentLied) -> None:
        await self._runtime.report(AgentLost(Cause("agent_lost", str(lie))))

    async def _exit(self, subject: str) -> None:
        from kata_wire import messages

        container_id, name = subject.rsplit("/", 1)
        exec_id = container_id if name == INIT else name
        request = messages.extension.WaitProcess2Request(container_id=container_id, exec_id=exec_id)
        while True:
            try:
                reply = await self._link.call(EXTENSION, "WaitProcess2", request, timeout_s=None)
            except AgentCallError as error:
                unknown = Cause("unknown", f"the agent does not know how it ended: {error.message}", error.evidence)
                await self._runtime.report(ProcessExited(subject, EXIT_UNKNOWN, unknown))
                return
            except EffectError:
                await trio.sleep(RETRY_S)  # between two connections; whether the agent is lost is decided elsewhere
                continue
            if reply.exited:
                await self._runtime.report(_exited(subject, reply))
                return
            await trio.sleep(RETRY_S)  # it was asked to wait for the end


def _exited(subject: str, reply: Any) -> ProcessExited:
    evidence = {"code": reply.code, "signal": reply.signal, "oom_killed": reply.oom_killed}
    if reply.signal > SIGNAL_MAX or not 0 <= reply.code <= EXIT_CODE_MAX:
        message = f"the agent says that it ended with code {reply.code} and signal {reply.signal}, which cannot be"
        return ProcessExited(subject, EXIT_UNKNOWN, Cause("unknown", message, evidence))
    if not reply.signal:
        cause = Cause("exited", f"exited with code {reply.code}", {"code": reply.code})
        return ProcessExited(subject, reply.code, cause)
    evidence.pop("code")
    if reply.oom_killed:
        cause = Cause("guest_oom", "the guest's OOM killer ended it", evidence)
    else:
        cause = Cause("signaled", f"ended by signal {reply.signal}", evidence)
    return ProcessExited(subject, 128 + reply.signal, cause)
