# SPDX-License-Identifier: Apache-2.0
"""The simulated host: processes, and everything else that a sandbox takes hold of (see `ledger`).

It satisfies `kata_fsm.effects.protocols.Processes`. Things are named as on a real host, by the sandbox's uid first:
`UID` or `UID/CONTAINER`.
"""

from __future__ import annotations

import signal
from typing import Any

import trio

from kata_fsm.effects.fake.clock import FakeWorld
from kata_fsm.effects.fake.faults import Faults
from kata_fsm.effects.fake.guest import FakeGuest
from kata_fsm.effects.fake.ledger import Ledger
from kata_fsm.effects.process import UNKNOWN, Exit, Identity
from kata_fsm.oci.hosting import Limits


class FakeProcess:
    """One process: what it is, whose, and how it ended. `ended` is set when it has."""

    def __init__(self, identity: Identity, kind: str, uid: str, parent: object) -> None:
        self.identity = identity
        self.kind = kind
        self.uid = uid
        self.parent = parent  # who may collect its wait status
        self.exit: Exit | None = None
        self.stopped = False  # it gets signals, and does nothing
        self.ended = trio.Event()


class FakeHost:
    """One host over all its boots."""

    def __init__(self, world: FakeWorld, faults: Faults) -> None:
        self.world = world
        self.faults = faults
        self.ledger = Ledger()
        self.running: dict[int, FakeProcess] = {}
        self.past: dict[Identity, FakeProcess] = {}
        self.guests: dict[str, FakeGuest] = {}  # by uid; kept when the machine is gone, for what it knows
        self.files: dict[str, Any] = {}
        self.limits: dict[str, Limits] = {}  # of the cgroups, by uid
        self.oom_killed: set[str] = set()  # uids of sandboxes whose QEMU the kernel has chosen
        self._interfaces: dict[str, list[str]] = {}
        self._ticks = 0

    def changed(self) -> None:
        """Something of the world is other than before."""
        self.faults.changes += 1

    # --- what is taken and given back

    def take(self, kind: str, name: str) -> None:
        """See `Ledger.take`."""
        self.changed()
        self.ledger.take(kind, name)

    def give_back(self, kind: str, name: str) -> bool:
        """See `Ledger.give_back`."""
        self.changed()
        return self.ledger.give_back(kind, name)

    def give_back_below(self, kind: str, prefix: str) -> list[str]:
        """Everything of that kind whose name begins so, last first."""
        found = self.ledger.names(kind, prefix)[::-1]
        for name in found:
            self.give_back(kind, name)
        return found

    def keep_file(self, path: str, value: Any) -> None:
        """A file of the run directory."""
        self.take("file", path)
        self.files[path] = value

    def drop_file(self, path: str) -> None:
        """Gone, if it was there."""
        if self.give_back("file", path):
            del self.files[path]

    def limit(self, uid: str, limits: Limits) -> None:
        """A sandbox's cgroup is limited so from now on."""
        if self.limits.get(uid, Limits()) != limits:
            self.changed()
        self.limits[uid] = limits

    def disks(self, uid: str) -> list[str]:
        """The serial numbers of the disks that a sandbox's machine has."""
        return [name.partition("/")[2] for name in self.ledger.names("disk", f"{uid}/")]

    # --- what others put into a sandbox's network namespace

    def interfaces(self, uid: str) -> list[str]:
        """The interfaces in it, which are not ours."""
        return self._interfaces.setdefault(uid, ["eth0"])

    def toggle_interface(self, uid: str, name: str) -> None:
        """Somebody puts one in, or takes it out."""
        there = self.interfaces(uid)
        if name in there:
            there.remove(name)
        else:
            there.append(name)
        self.changed()

    # --- processes

    def spawn(self, kind: str, uid: str, parent: object) -> Identity:
        """Start a process. `kind`: qemu, virtiofsd, shim."""
        pid = self.world.next_pid()
        while pid in self.running:
            pid = self.world.next_pid()
        self._ticks += 1
        process = FakeProcess(Identity(pid, self._ticks, self.world.boot_id()), kind, uid, parent)
        self.running[pid] = process
        self.take(kind, f"{uid}/{pid}")
        return process.identity

    def end(self, identity: Identity, how: Exit) -> None:
        """That process ends, and with QEMU its guest."""
        process = self.running.get(identity.pid)
        if process is None or process.identity != identity:
            return
        del self.running[identity.pid]
        self.past[identity] = process
        self.changed()
        self.ledger.lose(process.kind, f"{process.uid}/{identity.pid}")
        process.exit = how
        process.ended.set()
        if process.kind == "qemu" and process.uid in self.guests:
            self.guests[process.uid].power_off()
        if process.kind == "qemu":
            for name in self.disks(process.uid):  # it held them
                self.ledger.lose("disk", f"{process.uid}/{name}")

    def find(self, kind: str, uid: str) -> FakeProcess | None:
        """The oldest of that kind of one sandbox."""
        return next((p for p in self.running.values() if p.kind == kind and p.uid == uid), None)

    def identify(self, pid: int) -> Identity | None:
        process = self.running.get(pid)
        return None if process is None else process.identity

    def alive(self, identity: Identity) -> bool:
        process = self.running.get(identity.pid)
        return process is not None and process.identity == identity

    def kill(self, identity: Identity, number: int) -> bool:
        if not self.alive(identity):
            return False
        process = self.running[identity.pid]
        if number == signal.SIGKILL or not process.stopped:
            self.end(identity, Exit(signal=number))
        return True

    async def wait_exit(self, identity: Identity) -> Exit:
        process = self.running.get(identity.pid)
        if process is not None and process.identity == identity:
            await process.ended.wait()
        else:
            await trio.lowlevel.checkpoint()
        return self.how(identity)

    def how(self, identity: Identity) -> Exit:
        """What really ended it; not everybody on the host can know."""
        process = self.past.get(identity)
        return UNKNOWN if process is None or process.exit is None else process.exit

    def reboot(self) -> None:
        """Everything that does not outlive a boot is gone; who was a process has not been one for a while."""
        for process in list(self.running.values()):
            self.end(process.identity, UNKNOWN)
        for kind, name in list(self.ledger.held):
            self.ledger.lose(kind, name)
        self.files.clear()
        self.limits.clear()
        self.world.reboot()
        self.changed()
