# SPDX-License-Identifier: Apache-2.0
"""What each operation of a program does in a universe. Numbers are taken modulo what there is, so that every program means
something and shrinks well.

    ("create", s) ("add", s, c) ("start", s, c) ("exec", s, c) ("pause", s, c) ("resume", s, c) ("kill", s, c, signal)
    ("update", s, c) ("delete", s, c) ("force", s, c) ("recover", s, c) ("resolve", s, c)
    ("network", s, change, interface)                       asked of sandbox s, container c, and awaited
    ("go", OP)  ("leave", OP, ms)  ("race", OP, OP)         not awaited; the caller goes away after ms; both at once
    ("wait", ms)
    ("exit", s, p, code) ("oom", s, p) ("deaf", s, p) ("write", s, p, bytes)             what workloads do
    ("lie", s, p, what) ("silent", s) ("break", s) ("panic", s) ("poweroff", s)          what guests do
    ("iface", s, n)                                         an interface comes into the sandbox's namespace, or goes
    ("qemu", s, how) ("virtiofsd", s) ("shim", s, p) ("crash", s)        killed; QEMU may also crash or be the OOM killer's
    ("doom", s, boundary, n)                                the supervisor dies at the n-th such boundary from now
    ("fault", effect, fault) ("call", method, fault) ("disk", fault)           the next such effect, call or append fails
    ("reboot",) ("jump", wall_s, mono_s)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import trio

from kata_fsm.effects.fake.clock import nap
from kata_fsm.effects.fake.faults import BOUNDARIES, CALL_FAULTS, EFFECT_FAULTS, JOURNAL_FAULTS
from kata_fsm.effects.process import Exit
from kata_fsm.machines.intents import PARAMS
from kata_fsm.testing.sim.causes import HOST

if TYPE_CHECKING:
    from kata_fsm.effects.fake.guest import FakeGuest, Workload
    from kata_fsm.testing.sim.universe import Reply, Universe

Op = tuple[Any, ...]

SANDBOXES = 3
CONTAINERS = 3
SIGNALS = (15, 9, 1, 0, 28)
EFFECTS = tuple(PARAMS)
METHODS = ("", "CreateContainer", "StartContainer", "ExecProcess", "SignalProcess", "PauseContainer", "ResumeContainer",
           "RemoveContainer", "CreateSandbox", "DestroySandbox", "Check", "QueryState")  # fmt: skip
LIES = ("exit", "output")
QEMU_ENDS = ((9, "qemu killed"), (11, "qemu crashed"), (9, "qemu oom"))
CHANGES = ("rescan", "add", "remove", "routes")
INTERFACES = 3


class Actor:
    """Performs operations. `current` is the stream that was last created for each sandbox."""

    def __init__(self, universe: Universe) -> None:
        self.universe = universe
        self.current: dict[int, str] = {}
        self.dooms: dict[int, list[tuple[str, int]]] = {}  # of sandboxes that are not there yet
        self._execs = 0

    async def perform(self, op: Op) -> Reply | None:
        """Perform one; the answer, if it was a request."""
        name, *numbers = op
        self.universe.seen[f"op {name}"] += 1
        reply: Reply | None = await _OPS[name](self, *numbers)
        return reply

    # --- what it is about

    def sandbox_id(self, s: int) -> str:
        """The id of a sandbox, and of its first container."""
        return f"s{s % SANDBOXES}"

    def container_id(self, s: int, c: int) -> str:
        """The id of a container."""
        return self.sandbox_id(s) if c % CONTAINERS == 0 else f"{self.sandbox_id(s)}c{c % CONTAINERS}"

    def stream(self, s: int) -> str | None:
        """The stream that a sandbox was last created as."""
        return self.current.get(s % SANDBOXES)

    def guest(self, s: int) -> FakeGuest | None:
        """The guest of a sandbox, if it is on."""
        stream = self.stream(s)
        guest = None if stream is None else self.universe.guest_of(stream)
        return None if guest is None or guest.off else guest

    def workload(self, s: int, p: int) -> tuple[FakeGuest, str, str, Workload] | None:
        """A process that lives in the guest of a sandbox: (guest, container, exec id or "", itself)."""
        guest = self.guest(s)
        if guest is None:
            return None
        living = [
            (guest, owner, name, workload)
            for owner, box in guest.boxes.items()
            for name, workload in box.processes.items()
            if not workload.over
        ]
        return living[p % len(living)] if living else None

    # --- requests

    async def ask(self, container_id: str, request: Reply) -> Reply | None:
        """Ask whoever supervises a container, as a verb does."""
        stream = self.universe.stream_of(container_id)
        if stream is None:
            self.universe.seen[f"{request['op']} of what is not there"] += 1
            return {"error": {"family": "not_found", "message": f"Container ID ({container_id}) does not exist"}}
        self.universe.deeds.note(stream.rpartition("@")[2], str(request["op"]))
        reply = await self.universe.ask(await self.universe.supervised(stream), {**request, "container": container_id})
        self._judge(request, reply)
        return reply

    def _judge(self, request: Reply, reply: Reply | None) -> None:
        op = str(request["op"])
        if reply is None:
            self.universe.seen[f"{op} unanswered"] += 1
        elif "error" in reply:
            family = str(reply["error"]["family"])
            self.universe.seen[f"{op} {family}"] += 1
            if family == "bug":
                self.universe.wrong.append(f"`{op}` was answered with a bug: {reply['error']['message']}")
        else:
            self.universe.seen[f"{op} ok"] += 1

    async def create(self, s: int) -> Reply | None:
        """A sandbox with its first container. An id that is taken is refused before anybody is asked, unless two race."""
        universe, sandbox_id, number = self.universe, self.sandbox_id(s), s % SANDBOXES
        stream = f"{sandbox_id}@{universe.world.draw_uid()}"
        if universe.stream_of(sandbox_id) is not None:
            self.universe.seen["create of what is there"] += 1
            return {"error": {"family": "caller", "message": "ID already in use, unique ID should be provided"}}
        self.current[number] = stream
        for boundary, count in self.dooms.pop(number, []):
            universe.doom(stream, boundary, count)
        request = {
            "op": "create",
            "sandbox": {
                "root": universe.root,
                "id": sandbox_id,
                "uid": stream.rpartition("@")[2],
                "hypervisor": {},
                "network_model": "tcfilter" if number % 2 else "none",
            },
            "container": _container(sandbox_id),
        }
        reply = await universe.ask(await universe.supervised(stream), request)
        self._judge(request, reply)
        if universe.stream_of(sandbox_id) == stream:
            self.current[number] = stream  # of two that raced, the winner
        return reply

    async def add(self, s: int, c: int) -> Reply | None:
        """A further container."""
        stream = self.universe.stream_of(self.sandbox_id(s))
        if stream is None:
            return None
        request = {"op": "create", "container": _container(self.container_id(s, c or 1))}
        reply = await self.universe.ask(await self.universe.supervised(stream), request)
        self._judge(request, reply)
        return reply

    async def exec(self, s: int, c: int) -> Reply | None:
        """A further process. Two of three bring their shim along, one of them by name."""
        self._execs += 1
        container_id = self.container_id(s, c)
        request: Reply = {"op": "exec", "process": {"args": ["x"], "cwd": "/"}}
        stream, shim = self.universe.stream_of(container_id), None
        if self._execs % 3 and stream is not None:
            request["exec_id"] = f"x{self._execs}"
            shim = self.universe.start_shim(stream, container_id, request["exec_id"], early=True)
        if self._execs % 3 == 1 and shim is not None:
            request["shim"] = {"pid": shim.identity.pid, "start_ticks": shim.identity.start_ticks}
        reply = await self.ask(container_id, request)
        if shim is not None and reply is not None and "error" in reply:
            self.universe.host.end(
                shim.identity, Exit(signal=9)
            )  # as the verb does with the shim that it has brought along
        return reply

    async def simple(self, op: str, s: int, c: int, **more: Any) -> Reply | None:
        """A request about one container."""
        return await self.ask(self.container_id(s, c), {"op": op, **more})

    # --- several at once

    async def go(self, op: Op) -> None:
        """Ask, and do not wait."""

        async def run() -> None:
            await self.perform(op)

        self.universe.nursery.start_soon(run)
        await nap(0.001)

    async def leave(self, op: Op, ms: int) -> None:
        """Ask, and go away."""
        with trio.move_on_after(ms / 1000) as limit:
            await self.perform(op)
        if limit.cancelled_caught:
            self.universe.deeds.note(HOST, "caller left")

    async def race(self, one: Op, other: Op) -> None:
        """Two callers at once."""
        replies: list[Reply | None] = []

        async def run(op: Op) -> None:
            replies.append(await self.perform(op))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, one)
            nursery.start_soon(run, other)
        self.raced(one, other, replies)

    def raced(self, one: Op, other: Op, replies: list[Reply | None]) -> None:
        """One winner, one clear error, where only one can win."""
        if one != other or one[0] not in ("create", "add", "start"):
            return
        won = [reply for reply in replies if reply is not None and reply.get("ok")]
        self.universe.seen[f"race {one[0]} {len(won)} won"] += 1
        if len(won) > 1:
            self.universe.wrong.append(f"two callers of `{one[0]}` both won")

    # --- the guest and the host

    def on_workload(self, s: int, p: int, act: Callable[[FakeGuest, str, str, Workload], None]) -> None:
        """Something that a living process does, if there is one."""
        found = self.workload(s, p)
        if found is not None:
            act(*found)

    def note(self, s: int, deed: str) -> None:
        """Something is done to a sandbox."""
        self.universe.deeds.note((self.stream(s) or "").rpartition("@")[2], deed)

    def _end(self, s: int, kind: str, how: Exit, deed: str) -> str:
        """A daemon of a sandbox ends; the sandbox's uid, empty when there was none to end."""
        stream = self.stream(s)
        found = None if stream is None else self.universe.host.find(kind, stream.rpartition("@")[2])
        if found is None:
            return ""
        self.note(s, deed)
        self.universe.host.end(found.identity, how)
        return found.uid

    def kill_virtiofsd(self, s: int) -> None:
        """Somebody kills the file server."""
        self._end(s, "virtiofsd", Exit(signal=9), "virtiofsd killed")

    def kill_qemu(self, s: int, how: int = 0) -> None:
        """Somebody kills QEMU, it crashes, or the host's OOM killer chooses it."""
        signal, deed = QEMU_ENDS[how % len(QEMU_ENDS)]
        stream = self.stream(s)
        if deed == "qemu oom" and stream is not None and self.guest(s) is not None:
            self.universe.host.oom_killed.add(stream.rpartition("@")[2])
        self._end(s, "qemu", Exit(signal=signal), deed)

    def panic(self, s: int) -> None:
        """The guest's kernel panics: QEMU ends."""
        guest = self.guest(s)
        if guest is not None:
            guest.panicked = "Kernel panic - not syncing: simulated"
            self._end(s, "qemu", Exit(code=0), "panicked")

    def power_off(self, s: int) -> None:
        """The guest switches itself off."""
        guest = self.guest(s)
        if guest is not None:
            guest.shutdown = {"guest": True, "reason": "guest-shutdown"}
            self._end(s, "qemu", Exit(code=0), "powered off")

    def silence(self, s: int) -> None:
        """The agent answers no more."""
        guest = self.guest(s)
        if guest is not None:
            self.note(s, "silenced")
            guest.silent = True
            guest.change()

    def break_line(self, s: int) -> None:
        """The connection to the agent ends."""
        life = self.universe.lives.get(self.stream(s) or "")
        if life is not None and life.runtime is not None and life.link.client is not None:
            self.note(s, "line broken")
            life.link.client.close("the connection broke")

    def kill_shim(self, s: int, p: int) -> None:
        """A shim is killed."""
        living = [shim for shim in self.universe.shims if shim.stream == self.stream(s) and shim.alive]
        if living:
            self.note(s, "shim killed")
            self.universe.host.end(living[p % len(living)].identity, Exit(signal=9))

    def crash(self, s: int) -> None:
        """The supervisor is killed."""
        life = self.universe.lives.get(self.stream(s) or "")
        if life is not None:
            self.universe.seen["death by crash"] += 1
            life.die()


def _container(container_id: str) -> Reply:
    """Each is limited in a way of its own, so that the sums tell which ones count. Each has a disk of its own, and one that
    all but the sandbox's first container share."""
    limits = {"shares": 2 ** (3 + sum(container_id.encode()) % 8), "quota": 1000}
    first = "c" not in container_id
    shared = [] if first else [{"major": 7, "minor": 0, "readonly": False, "path": "/dev/shared"}]
    own = {"major": 7, "minor": 1 + sum(container_id.encode()) % 8, "readonly": True, "path": "/dev/own"}
    known = {"id": container_id, "rootfs": "rootfs", "bundle": "bundle", "limits": limits, "disks": [own, *shared]}
    return {**known, "guest_spec": {"hostname": container_id}}


def _lie(actor: Actor, s: int, p: int, what: int) -> None:
    def act(guest: FakeGuest, owner: str, name: str, workload: Workload) -> None:
        actor.note(s, "lied")
        workload.lies = LIES[what % len(LIES)]
        actor.universe.seen[f"lie {workload.lies}"] += 1
        guest.change()

    actor.on_workload(s, p, act)


def _exit(actor: Actor, s: int, p: int, code: int) -> None:
    def act(guest: FakeGuest, owner: str, name: str, workload: Workload) -> None:
        actor.note(s, "workload ended")
        if workload.began:
            guest.end(owner, name, code=code % 256)
        else:  # what waits to be started has no code of its own to end with
            guest.end(owner, name, signal=9)

    actor.on_workload(s, p, act)


def _oom(actor: Actor, s: int, p: int) -> None:
    def act(guest: FakeGuest, owner: str, name: str, workload: Workload) -> None:
        actor.note(s, "workload oom")
        workload.oom_killed = True
        guest.end(owner, name, signal=9)

    actor.on_workload(s, p, act)


def _deafen(actor: Actor, s: int, p: int) -> None:
    actor.on_workload(s, p, lambda guest, owner, name, workload: setattr(workload, "deaf", True))


def _write(actor: Actor, s: int, p: int, count: int) -> None:
    stream = 1 + count % 2
    data = bytes((count + i) % 251 for i in range(1 + count % 300))
    actor.on_workload(s, p, lambda guest, owner, name, _: guest.write(owner, name, stream, data))


def _doom(actor: Actor, s: int, boundary: int, count: int) -> None:
    stream, name = actor.stream(s), BOUNDARIES[boundary % len(BOUNDARIES)]
    if stream is not None:
        actor.universe.doom(stream, name, count)
    else:
        actor.dooms.setdefault(s % SANDBOXES, []).append((name, count))


def _fault(actor: Actor, effect: int, fault: int) -> None:
    actor.universe.faults.plan_effect(EFFECTS[effect % len(EFFECTS)], EFFECT_FAULTS[fault % len(EFFECT_FAULTS)])


def _call_fault(actor: Actor, method: int, fault: int) -> None:
    actor.universe.faults.plan_call(METHODS[method % len(METHODS)], CALL_FAULTS[fault % len(CALL_FAULTS)])


def _disk(actor: Actor, fault: int) -> None:
    actor.universe.faults.plan_append(JOURNAL_FAULTS[fault % len(JOURNAL_FAULTS)])


def _at_once(act: Callable[..., None]) -> Callable[..., Awaitable[None]]:
    async def perform(actor: Actor, *numbers: int) -> None:
        act(actor, *numbers)
        await trio.lowlevel.checkpoint()

    return perform


async def _wait(actor: Actor, ms: int) -> None:
    await nap(ms / 1000)


def _asking(op: str) -> Callable[..., Awaitable[Any]]:
    async def perform(actor: Actor, s: int, c: int) -> Reply | None:
        return await actor.simple(op, s, c)

    return perform


async def _kill(actor: Actor, s: int, c: int, signal: int) -> Reply | None:
    return await actor.simple("kill", s, c, signal=SIGNALS[signal % len(SIGNALS)])


async def _update(actor: Actor, s: int, c: int) -> Reply | None:
    return await actor.simple("update", s, c, resources={"cpu": {"shares": 2}})


async def _recover(actor: Actor, s: int, c: int) -> Reply | None:
    return await actor.simple("recover", s, c, reason="a program")


async def _resolve(actor: Actor, s: int, c: int) -> Reply | None:
    return await actor.simple("resolve", s, c, reason="a program")


async def _network(actor: Actor, s: int, change: int, n: int) -> Reply | None:
    what, interface = CHANGES[change % len(CHANGES)], {"name": f"eth{n % INTERFACES}"}
    wanted = {"rescan": True, "add": interface, "remove": interface, "routes": [{"family": 4, "device": "eth0"}]}
    return await actor.simple("network_change", s, 0, change={what: wanted[what]})


def _interface(actor: Actor, s: int, n: int) -> None:
    stream = actor.stream(s)
    if stream is not None:
        actor.universe.host.toggle_interface(stream.rpartition("@")[2], f"eth{n % INTERFACES}")


async def _force(actor: Actor, s: int, c: int) -> Reply | None:
    return await actor.simple("delete", s, c, force=True)


_OPS: dict[str, Callable[..., Awaitable[Any]]] = {
    "create": Actor.create,
    "add": Actor.add,
    "exec": Actor.exec,
    "start": _asking("start"),
    "pause": _asking("pause"),
    "resume": _asking("resume"),
    "delete": _asking("delete"),
    "force": _force,
    "recover": _recover,
    "resolve": _resolve,
    "network": _network,
    "kill": _kill,
    "update": _update,
    "go": Actor.go,
    "leave": Actor.leave,
    "race": Actor.race,
    "wait": _wait,
    "exit": _at_once(_exit),
    "oom": _at_once(_oom),
    "deaf": _at_once(_deafen),
    "write": _at_once(_write),
    "lie": _at_once(_lie),
    "iface": _at_once(_interface),
    "silent": _at_once(Actor.silence),
    "break": _at_once(Actor.break_line),
    "panic": _at_once(Actor.panic),
    "poweroff": _at_once(Actor.power_off),
    "qemu": _at_once(Actor.kill_qemu),
    "virtiofsd": _at_once(Actor.kill_virtiofsd),
    "shim": _at_once(Actor.kill_shim),
    "crash": _at_once(Actor.crash),
    "doom": _at_once(_doom),
    "fault": _at_once(_fault),
    "call": _at_once(_call_fault),
    "disk": _at_once(_disk),
    "reboot": _at_once(lambda actor: actor.universe.reboot()),
    "jump": _at_once(lambda actor, wall_s, mono_s: actor.universe.world.jump(wall_s, mono_s)),
}

NAMES = tuple(_OPS)
