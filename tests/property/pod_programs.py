# SPDX-License-Identifier: Apache-2.0
"""Programs over the pure machines: data in, a checked life of one pod out.

A program is a list of small tuples, so that a failing one can be printed, shrunk and pasted. `run(program)` plays it
against `decide` the way a supervisor would, with one difference: after every step it checks everything it knows. The
numbers in an operation are taken modulo what there is to choose from, so that every program means something and shrinks
well.

    ("new",)  ("add", c)  ("attach", p)  ("exec", c)  ("start", c) ("pause", c) ("resume", c) ("kill", c) ("update", c)
    ("delete", c)  ("force", c)  ("stop",)  ("stop!",)  ("resolve",)  ("abandon", p)       commands, legal or not
    ("done", n)  ("failed", n)  ("late", n)  ("settle",)  ("settle", n)      outcomes: of one effect, of all, of n of them
    ("vm_died",)  ("agent_lost",)  ("share_died",)  ("rebooted",)  ("exited", p, code)  ("drained", p)
    ("crash",)                                                               forget the live pod, fold the journal again
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from kata_fsm.errors import IllegalTransition, NotFoundError
from kata_fsm.machines import (
    Cause,
    Intent,
    Moved,
    Pod,
    agent,
    check,
    container,
    decide,
    events_of,
    evolve,
    fold,
    network,
    outstanding,
    process,
    sandbox,
    share,
    vm,
)
from kata_fsm.machines import vocab as v
from kata_fsm.machines.coupling import next_move
from kata_fsm.machines.decide import legal_requests
from kata_fsm.machines.intents import CANCELLABLE
from kata_fsm.machines.pod import TABLES, container_of, init_of

Op = tuple[Any, ...]
Program = Sequence[Op]

POD = "pod"
CONTAINERS = (POD, "c1", "c2")
STATUS_RANK = {"creating": 0, "created": 1, "running": 2, "paused": 2, "stopped": 3}
ONCE = ("hypervisor.launch", "network.attach", "network.plug", "share.prepare", "share.plug", "agent.connect",
        "agent.configure", "container.prepare", "container.create", "container.start", "process.exec")  # fmt: skip
"""Effects that bring something into being: performed at most once per subject, whatever happens."""

SETTLE_BOUND = 200
EPILOGUE_BOUND = 400


class Journal:
    """What would be on disk: the bytes of every record's event, and how many records there are."""

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.records = 0

    def append(self, step: v.Step) -> None:
        self.records += len(step.records)
        self.events += [msgspec.json.encode(draft.body) for draft in step.records if draft.kind == "event"]

    def fold(self) -> Pod:
        return fold(msgspec.json.decode(raw, type=Moved) for raw in self.events)


class Life:
    """One pod, its journal, the effects that are being performed, and everything that was ever true of it."""

    def __init__(self, seen: Counter[str] | None = None) -> None:
        self.pod = Pod()
        self.journal = Journal()
        self.pending: dict[tuple[str, str], Intent] = {}
        self.abandoned: list[Intent] = []
        self.begun: Counter[tuple[str, str]] = Counter()
        self.closed: Counter[str] = Counter()
        self.killed: set[str] = set()  # containers whose processes the guest has been told to kill, and has
        self.execs = 0
        self.seen: Counter[str] = Counter() if seen is None else seen

    # --- one step -----------------------------------------------------------------------------------------------------

    def give(self, given: v.Input) -> bool:
        """Decide `given` and adopt the step; False if it was refused. Checks everything."""
        try:
            step = decide(self.pod, given)
        except (IllegalTransition, NotFoundError) as error:
            assert isinstance(given, v.Command), f"only a command may be refused, not {given}"
            self._check_refusal(error)
            return False
        before = self.pod
        self._check_records(step, given)
        self.journal.append(step)
        for event in events_of(step):
            problem = check(self.pod, event)
            assert problem is None, problem
            self._check_event(event)
            self.pod = evolve(self.pod, event)
        self._adopt_effects(step, given)
        self._check_pod(before)
        if isinstance(given, v.HostRebooted | v.ResolveSandbox) or (isinstance(given, v.StopSandbox) and given.force):
            _check_ends_by_itself(self.pod)
        return True

    def _check_refusal(self, error: IllegalTransition | NotFoundError) -> None:
        self.seen[f"refused {type(error).__name__}"] += 1
        assert self.journal.fold() == self.pod, "a refused command changed the pod"
        if isinstance(error, IllegalTransition):
            table = TABLES[error.machine].legal(error.state)
            legal = legal_requests(error.state) if error.machine == "container" else table
            assert error.legal == legal
            for word in (error.machine, error.subject, error.state, error.trigger, *legal):
                assert word in str(error), f"`{word}` is not in `{error}`"

    def _check_records(self, step: v.Step, given: v.Input) -> None:
        kinds = [draft.kind for draft in step.records]
        first = "command" if isinstance(given, v.Command) else "outcome" if isinstance(given, v.Outcome) else "note"
        assert kinds[0] == first
        assert kinds == [first] + ["event"] * kinds.count("event") + ["intent"] * kinds.count("intent")
        for index, draft in enumerate(step.records):
            assert draft.cause <= 0
            assert index + draft.cause >= 0, "a record's cause lies before its step"
            msgspec.json.encode(draft.body)
        written = [(draft.type, draft.body["subject"]) for draft in step.records if draft.kind == "intent"]
        assert written == [intent.key for intent in step.intents]

    def _check_event(self, event: Moved) -> None:
        self.seen[f"{event.machine} {event.source} {event.trigger}"] += 1
        if event.rule:
            self.seen[f"rule {event.rule}"] += 1
        if event.machine == "process" and event.dest == process.CLOSED:
            self.closed[event.subject] += 1
        if event.machine == "container" and event.trigger == "killed":
            self.killed.add(event.subject)

    def _adopt_effects(self, step: v.Step, given: v.Input) -> None:
        if isinstance(given, v.EffectDone | v.EffectFailed):
            late = step.records[0].body.get("late", False)
            assert late == ((given.kind, given.subject) not in self.pending)
            assert not (late and len(step.records) > 1), "a late outcome moved something"
            self.pending.pop((given.kind, given.subject), None)
        wanted = {intent.key for intent in outstanding(self.pod)}
        for key in [key for key in self.pending if key not in wanted]:
            assert key[0] in CANCELLABLE, f"{key} holds something on the host and was abandoned"
            self.abandoned.append(self.pending.pop(key))
        for intent in step.intents:
            assert intent.key not in self.pending, f"{intent.key} was asked for twice"
            self.pending[intent.key] = intent
            self.begun[intent.key] += 1
            if intent.kind in ONCE:
                assert self.begun[intent.key] == 1, f"{intent.key} was performed twice"
        assert wanted == set(self.pending), "the outstanding effects are not those that were asked for and not answered"

    # --- what always holds --------------------------------------------------------------------------------------------

    def _check_pod(self, before: Pod) -> None:
        pod = self.pod
        assert next_move(pod) is None, "a step ended before the fixed point"
        assert len({intent.key for intent in outstanding(pod)}) == len(outstanding(pod))
        check_standing(pod)
        if pod.sandbox.state in sandbox.ENDED:
            check_released(pod)
        elif pod.sandbox.state != sandbox.ABSENT:
            names = [subject for subject, unit in pod.containers.items() if unit.state != container.DELETED]
            assert names, "a sandbox that still holds something has no container by which to delete it"
        for subject, unit in pod.containers.items():
            old = before.containers.get(subject)
            if old is not None and unit.state != container.DELETED:
                ranks = [STATUS_RANK[container.OCI_STATUS[state]] for state in (old.state, unit.state)]
                assert ranks[0] <= ranks[1], f"the status of {subject} went back: {old.state} -> {unit.state}"
        for subject, unit in pod.processes.items():
            _check_ending(subject, unit.state, unit.facts)
            assert self.closed[subject] == (1 if unit.state == process.CLOSED else 0)

    def crash(self) -> None:
        """The supervisor died: what the next one folds is the same pod, with the same work in flight."""
        folded = self.journal.fold()
        assert folded == self.pod
        assert outstanding(folded) == outstanding(self.pod)
        assert {intent.key for intent in outstanding(folded)} == set(self.pending)
        self.pod = folded
        self.abandoned.clear()

    # --- to the end ---------------------------------------------------------------------------------------------------

    def settle(self, most: int = SETTLE_BOUND) -> None:
        """Every effect succeeds, and those that this leads to; or only the first `most` of them."""
        for _ in range(most):
            if not self.pending:
                return
            intent = next(iter(self.pending.values()))
            self.seen[f"done {intent.kind}"] += 1
            self.give(v.EffectDone(intent.kind, intent.subject))
        assert most < SETTLE_BOUND, "the effects have no end"

    def _next_natural(self) -> v.Observation | None:
        """What the guest and the pumps would report next, in a world where nothing goes wrong any more."""
        for subject, unit in self.pod.processes.items():
            if unit.state == process.EXITED:
                return v.Drained(subject)
            owner = container_of(subject)
            init = self.pod.unit("process", init_of(owner)).state
            if unit.state in (process.CREATED, process.RUNNING) and (
                owner in self.killed or (subject != init_of(owner) and init in (process.EXITED, process.CLOSED))
            ):
                return v.ProcessExited(subject, 137, Cause("signaled", "killed"))
        return None

    def finish(self) -> None:
        """Everybody wants the end and nothing fails any more: the pod must come to it."""
        if self.pod.sandbox.state == sandbox.ABSENT:
            return
        asked: Counter[str] = Counter()
        others_first = self.journal.records % 2 == 0  # else the sandbox's own container, which takes the guest with it
        for _ in range(EPILOGUE_BOUND):
            self.settle()
            if self.pod.sandbox.state == sandbox.DELETED:
                break
            natural = self._next_natural()
            if natural is not None:
                self.give(natural)
                continue
            left = [c for c, unit in self.pod.containers.items() if unit.state != container.DELETED]
            subject = left[-1 if others_first else 0]
            asked[subject] += 1
            assert asked[subject] <= 2, f"{subject} cannot be deleted: {self.describe()}"
            assert self.give(v.Delete(subject, force=True)), "a forced deletion was refused"
        assert self.pod.sandbox.state == sandbox.DELETED, self.describe()
        assert not self.pending
        check_released(self.pod)
        assert all(self.closed[subject] == 1 for subject in self.pod.processes)
        self.crash()

    def describe(self) -> str:
        states = [f"{machine} {subject}: {unit.state}" for machine, subject, unit in self.pod.units()]
        return "; ".join(states)


def _check_ends_by_itself(pod: Pod) -> None:
    """After a forced stop, or a new start of the host, nobody can be waited for but the effects."""
    for _ in range(SETTLE_BOUND):
        if pod.sandbox.state in (sandbox.ABSENT, *sandbox.ENDED):
            return
        wanted = outstanding(pod)
        assert wanted, "the sandbox waits for something that will never happen"
        pod = fold(events_of(decide(pod, v.EffectDone(wanted[0].kind, wanted[0].subject))), pod)
    raise AssertionError("the effects have no end")


def check_standing(pod: Pod) -> None:
    """What one machine's state says about the others, at any fixed point."""
    if pod.sandbox.state == sandbox.READY:
        assert (pod.vm.state, pod.agent.state) == (vm.RUNNING, agent.READY)
        assert pod.share.state == share.PLUGGED
        assert pod.network.state in ((network.PLUGGED, network.CHANGING) if has_network(pod) else (network.ATTACHED,))
    if pod.sandbox.state == sandbox.CREATING:
        assert pod.vm.state in (vm.LAUNCHING, vm.RUNNING)
        assert pod.agent.state not in agent.OVER
        waits = pod.network.state in (network.PLUGGING, network.CHANGING)
        assert pod.agent.state != agent.READY or (has_network(pod) and waits)
        assert pod.share.state in (share.PREPARING, *share.USABLE)
        assert pod.network.state in (network.ATTACHING, *network.USABLE)
        assert has_network(pod) or pod.network.state in (network.ATTACHING, network.ATTACHED)
    serving = pod.sandbox.state in (sandbox.CREATING, sandbox.READY)
    assert pod.agent.state not in agent.ALIVE or pod.vm.state == vm.RUNNING, "an agent without a guest"
    if pod.agent.state in agent.OVER:
        assert not [s for s, unit in pod.processes.items() if unit.state in process.ALIVE], "alive without a guest"
        assert not [c for c, unit in pod.containers.items() if unit.state in (*container.IN_GUEST, container.CREATING)]
    if pod.sandbox.state in (sandbox.STOPPED, sandbox.FAILED):
        clean = pod.sandbox.facts["cause"]["kind"] in v.CLEAN_ENDINGS
        assert clean == (pod.sandbox.state == sandbox.STOPPED)
    for subject, unit in pod.containers.items():
        init = pod.unit("process", init_of(subject))
        if unit.state == container.RUNNING:
            assert init.state == process.RUNNING
            waiting = [u for _, u in pod.processes_of(subject) if u.state == process.DECLARED and "shim" in u.facts]
            assert not (waiting and pod.agent.state == agent.READY), "an exec could have been spawned"
        if unit.state == container.PREPARED and pod.sandbox.state == sandbox.READY:
            assert "shim" not in init.facts, "it could have been created"
        if serving and unit.state in (container.DECLARED, container.PREPARED, *container.IN_GUEST):
            waits = unit.facts.get("condemned") == "force" and unit.state not in container.TABLE.effects
            assert not waits or unit.state == container.ENDING, "its deletion was forced, and nothing happens"
        over = all(each.state == process.CLOSED for _, each in pod.processes_of(subject))
        if serving and subject == pod.id:
            assert not (over and container.OCI_STATUS.get(unit.state, "stopped") == "stopped"), "the pod outlives it"


def has_network(pod: Pod) -> bool:
    return pod.sandbox.facts["config"].get("network_model", "none") != "none"


def check_released(pod: Pod) -> None:
    assert pod.vm.state in (vm.ABSENT, vm.GONE)
    assert pod.network.state in (network.ABSENT, network.DETACHED)
    assert pod.share.state in (share.ABSENT, share.RELEASED)
    assert pod.agent.state in (agent.ABSENT, *agent.OVER)
    assert all(unit.state in container.RELEASED for unit in pod.containers.values())
    assert all(unit.state == process.CLOSED for unit in pod.processes.values())
    assert pod.sandbox.facts["cause"]["kind"] in v.CAUSES


def _check_ending(subject: str, state: str, facts: v.Facts) -> None:
    if state not in (process.EXITED, process.CLOSED):
        assert "exit_code" not in facts, f"{subject} has an exit code before its end"
        return
    assert isinstance(facts["exit_code"], int)
    assert facts["cause"]["kind"] in v.CAUSES
    assert facts["exit_code"] != 0 or facts["cause"]["kind"] == "exited", f"{subject}: unknown was taken for success"


# --- operations -------------------------------------------------------------------------------------------------------


def _pick(choices: Sequence[Any], number: int) -> Any:
    return choices[number % len(choices)] if choices else None


def _process(life: Life, number: int) -> str:
    return str(_pick(list(life.pod.processes), number) or init_of(POD))


def _outcome(life: Life, number: int, ok: bool) -> v.Outcome | None:
    intent = _pick(list(life.pending.values()), number)
    if intent is None:
        return None
    life.seen[f"{'done' if ok else 'failed'} {intent.kind}"] += 1
    if ok:
        return v.EffectDone(intent.kind, intent.subject, {"learnt": number})
    return v.EffectFailed(intent.kind, intent.subject, "some_phase", "it did not work", {"errno": 5})


def _late(life: Life, number: int) -> v.Outcome | None:
    intent = _pick(life.abandoned, number)
    if intent is None or intent.key in life.pending:
        return None
    return v.EffectDone(intent.kind, intent.subject)


def _exec(life: Life, number: int) -> v.Input:
    life.execs += 1
    owner = CONTAINERS[number % 3]
    return v.Exec(owner, f"{owner}/e{life.execs}", {"terminal": False})


def _exited(life: Life, number: int, code: int) -> v.Input:
    kind = "exited" if code < 128 else "signaled" if code < 255 else "unknown"
    return v.ProcessExited(_process(life, number), code if code < 255 else 0, Cause(kind))


def _add(number: int) -> v.Input:
    return v.CreateContainer(CONTAINERS[number % 3], {"rootfs": "/r"})


_MAKE: dict[str, Callable[..., v.Input | None]] = {
    "new": lambda life: v.CreateSandbox(POD, "0123456789ab", {"root": "/run/x"}, {"rootfs": "/r", "terminal": True}),
    "net": lambda life: v.CreateSandbox(POD, "0123456789ab", {"network_model": "tcfilter"}, {"rootfs": "/r"}),
    "change": lambda life: v.ChangeNetwork({"rescan": True}),
    "add": lambda life, n: _add(n),
    "attach": lambda life, n: v.AttachShim(_process(life, n), {"pid": 4242 + n}),
    "exec": _exec,
    "start": lambda life, n: v.Start(CONTAINERS[n % 3]),
    "pause": lambda life, n: v.Pause(CONTAINERS[n % 3]),
    "resume": lambda life, n: v.Resume(CONTAINERS[n % 3]),
    "kill": lambda life, n: v.Kill(CONTAINERS[n % 3], 15),
    "update": lambda life, n: v.Update(CONTAINERS[n % 3], {"cpu": {"shares": 2}}, {"shares": 2} if n < 3 else None),
    "delete": lambda life, n: v.Delete(CONTAINERS[n % 3]),
    "force": lambda life, n: v.Delete(CONTAINERS[n % 3], force=True),
    "stop": lambda life: v.StopSandbox(Cause("operator")),
    "stop!": lambda life: v.StopSandbox(Cause("client_gone"), force=True),
    "resolve": lambda life: v.ResolveSandbox("it never ends"),
    "abandon": lambda life, n: v.AbandonProcess(_process(life, n), Cause("client_gone")),
    "done": lambda life, n: _outcome(life, n, True),
    "failed": lambda life, n: _outcome(life, n, False),
    "late": _late,
    "vm_died": lambda life: v.VmDied(Cause("vm_killed", "SIGKILL", {"signal": 9})),
    "agent_lost": lambda life: v.AgentLost(Cause("agent_lost")),
    "share_died": lambda life: v.ShareDied(Cause("share_died")),
    "rebooted": lambda life: v.HostRebooted("another-boot"),
    "exited": _exited,
    "drained": lambda life, n: v.Drained(_process(life, n), {"stdout": n}),
}


def play(life: Life, program: Program) -> None:
    """Perform `program` on `life`, without the epilogue."""
    for name, *numbers in program:
        if name == "crash":
            life.crash()
        elif name == "settle":
            life.settle(*numbers)
        else:
            given = _MAKE[name](life, *numbers)
            if given is not None:
                life.seen[f"op {name}"] += 1
                life.give(given)


def run(program: Program, seen: Counter[str] | None = None) -> Life:
    """Perform `program`, then bring the pod to its end. An assertion that fails carries the program, ready to paste."""
    life = Life(seen)
    try:
        play(life, program)
        life.crash()
        life.finish()
    except Exception as error:
        error.add_note(f"to see it again: run({list(program)!r})")
        raise
    return life
