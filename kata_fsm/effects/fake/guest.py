# SPDX-License-Identifier: Apache-2.0
"""The simulated guest: what our agent answers (see `guest/agent`), and what really became of every process in it.

A request is a protobuf message, an answer anything with the fields that are read of it. Repeated requests are answered as
the first was, as the real agent does. `Workload` is the truth that recorded exits are compared with.
"""

from __future__ import annotations

from math import inf
from types import SimpleNamespace
from typing import Any

from kata_fsm.effects.agent.client import AgentCallError
from kata_fsm.effects.fake.clock import Place, virtual, wake
from kata_fsm.effects.fake.faults import Faults
from kata_wire import envelope

SIGKILL = 9
STOPPING = frozenset({1, 2, 3, 6, 9, 14, 15})
"""Signals that end a workload which does nothing about them, as far as programs send them."""


class Workload:
    """One process in the guest. `code` and `signal` are how it ended; both None while it lives."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.signal: int | None = None
        self.oom_killed = False
        self.dismissed = False  # it was killed because the sandbox ended
        self.began = 0  # how often its program has been let run
        self.deaf = False  # it ignores what can be ignored
        self.outputs = {1: b"", 2: b""}
        self.acknowledged = {1: 0, 2: 0}
        self.lies = ""  # what the agent will answer wrongly about it

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.code is not None or self.signal is not None

    @property
    def status(self) -> int:
        """As a shell has it."""
        return 128 + self.signal if self.signal is not None else self.code or 0


class Box:
    """One container in the guest. `state`: created, running, paused, stopped."""

    def __init__(self, request: bytes) -> None:
        self.state = "created"
        self.request = request
        self.processes: dict[str, Workload] = {"": Workload()}
        self.asked: dict[str, bytes] = {}


class FakeGuest:
    """One virtual machine's inside. `answers_at`: when its agent will first answer (trio's clock)."""

    def __init__(self, faults: Faults, answers_at: float) -> None:
        self.faults = faults
        self.answers_at = answers_at
        self.off = False
        self.silent = False  # nothing is answered any more
        self.panicked = ""
        self.shutdown: dict[str, Any] | None = None
        self.boxes: dict[str, Box] = {}
        self.removed: dict[str, Box] = {}
        self.nics: dict[int, str] = {}  # the interface behind each, by slot
        self.begun: dict[tuple[str, str], int] = {}
        self._waiting: list[Place] = []

    def change(self) -> None:
        """Wake whoever waits for something in here."""
        self.faults.changes += 1
        waiting, self._waiting = self._waiting, []
        for place in waiting:
            wake(place)

    async def changed(self, until: float = inf) -> bool:
        """Wait for the next change; False when there was none until then (trio's clock)."""
        place: Place = []
        self._waiting.append(place)
        return await virtual().wait(place, until)

    def power_off(self) -> None:
        """The machine is gone, and everything in it ends untold."""
        self.off = True
        self.change()

    def find(self, container: str, exec_id: str) -> Workload | None:
        """A process that there is or was. An empty `exec_id`, `init` or the container's own id: its first."""
        box = self.boxes.get(container) or self.removed.get(container)
        name = "" if exec_id in ("", "init", container) else exec_id
        return None if box is None else box.processes.get(name)

    # --- what happens in it

    def end(self, container: str, exec_id: str, *, code: int | None = None, signal: int | None = None) -> None:
        """A process ends; with a container's first, all of them."""
        workload = self.find(container, exec_id)
        if workload is None or workload.over or self.off:
            return
        workload.code, workload.signal = code, signal
        box = self.boxes.get(container)
        if box is not None and workload is box.processes[""]:
            box.state = "stopped"
            for other in box.processes.values():
                if not other.over:
                    other.signal = SIGKILL
        self.change()

    def write(self, container: str, exec_id: str, stream: int, data: bytes) -> None:
        """A process writes."""
        workload = self.find(container, exec_id)
        if workload is not None and not workload.over and not self.off:
            workload.outputs[stream] += data
            self.change()

    # --- what the agent answers

    def _box(self, container: str) -> Box:
        box = self.boxes.get(container)
        if box is None:
            raise AgentCallError("find", envelope.NOT_FOUND, f"there is no container `{container}`")
        return box

    def workload(self, container: str, exec_id: str) -> Workload:
        """A process that there is. Raises AgentCallError."""
        box = self._box(container)
        workload = box.processes.get("" if exec_id == container else exec_id)
        if workload is None:
            raise AgentCallError("find", envelope.NOT_FOUND, f"there is no process `{exec_id}`")
        return workload

    def _refuse(self, message: str) -> AgentCallError:
        return AgentCallError("call", envelope.FAILED_PRECONDITION, message)

    def create(self, request: Any) -> None:
        """`CreateContainer`."""
        asked = request.SerializeToString()
        box = self.boxes.get(request.container_id)
        if box is not None:
            if box.request != asked:
                raise AgentCallError("create", envelope.ALREADY_EXISTS, "it exists with another configuration")
            return
        self.boxes[request.container_id] = Box(asked)
        self.change()

    def start(self, container: str) -> None:
        """`StartContainer`."""
        box = self._box(container)
        if box.processes[""].began:
            return
        if box.state == "stopped":
            raise self._refuse("it has ended before it was started")
        box.state = "running"
        self._begin(container, "", box.processes[""])

    def _begin(self, container: str, name: str, workload: Workload) -> None:
        workload.began += 1
        self.begun[(container, name)] = self.begun.get((container, name), 0) + 1
        self.change()

    def exec(self, request: Any) -> None:
        """`ExecProcess`."""
        box, name, asked = self._box(request.container_id), request.exec_id, request.SerializeToString()
        if name in box.processes:
            if box.asked.get(name) != asked:
                raise AgentCallError("exec", envelope.ALREADY_EXISTS, "it exists, and is another one")
            return
        if box.state not in ("created", "running"):
            raise self._refuse(f"it is `{box.state}`")
        box.processes[name] = Workload()
        box.asked[name] = asked
        self._begin(request.container_id, name, box.processes[name])

    def freeze(self, container: str, frozen: bool) -> None:
        """`PauseContainer`, `ResumeContainer`."""
        box, wanted = self._box(container), "paused" if frozen else "running"
        if box.state == wanted:
            return
        if box.state not in ("running", "paused", "created"):
            raise self._refuse(f"it is `{box.state}`")
        if box.state in ("running", "paused"):
            box.state = wanted
            self.change()

    def signal(self, container: str, exec_id: str, number: int) -> None:
        """`SignalProcess`: to one, or to all of a container."""
        box = self._box(container)
        if exec_id:
            workload = self.workload(container, exec_id)
            if workload.over:
                raise AgentCallError("signal", envelope.NOT_FOUND, "it has ended")
            targets = {"" if exec_id == container else exec_id: workload}
        else:
            targets = dict(box.processes)
        for name, workload in targets.items():
            frozen = box.state == "paused" and number != SIGKILL
            if number in STOPPING and not frozen and (number == SIGKILL or not workload.deaf):
                self.end(container, name, signal=number)

    def remove(self, container: str) -> None:
        """`RemoveContainer`."""
        box = self.boxes.get(container)
        if box is None:
            return
        for name in list(box.processes):
            self.end(container, name, signal=SIGKILL)
        self.removed[container] = self.boxes.pop(container)
        self.change()

    def dismiss(self) -> None:
        """`DestroySandbox`: whatever still runs is killed, and its end may be told before this is answered."""
        for container, box in self.boxes.items():
            for workload in box.processes.values():
                workload.dismissed = workload.dismissed or not workload.over
            for name in box.processes:
                self.end(container, name, signal=SIGKILL)

    def query(self) -> Any:
        """`QueryState`."""
        return SimpleNamespace(
            containers=[
                SimpleNamespace(
                    container_id=name,
                    state=box.state,
                    processes=[
                        SimpleNamespace(exec_id=exec_id, state="exited" if workload.over else "running")
                        for exec_id, workload in box.processes.items()
                    ],
                )
                for name, box in self.boxes.items()
            ]
        )
