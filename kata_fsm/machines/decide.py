# SPDX-License-Identifier: Apache-2.0
"""What an input does to a pod: `decide(pod, input) -> Step`. Pure.

An illegal command raises and nothing has happened. An outcome for a state that has been left in the meantime is recorded
as late and moves nothing. Every other input yields, in this order: one record for the input itself, the transitions it
fires, the coupled transitions up to the fixed point, and the intents of every transitional state that was entered.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kata_fsm.errors import IllegalTransition, NotFoundError
from kata_fsm.machines import agent, container, coupling, network, process, sandbox, share, vm
from kata_fsm.machines.intents import intent_of
from kata_fsm.machines.outcomes import DONE_TRIGGER as _DONE_TRIGGER
from kata_fsm.machines.outcomes import FAILURE_CAUSE as _FAILURE_CAUSE
from kata_fsm.machines.outcomes import MARKS_DONE
from kata_fsm.machines.pod import TABLES, Pod, container_of, evolve, init_of
from kata_fsm.machines.vocab import (
    CLEAN_ENDINGS,
    EXIT_KILLED,
    EXIT_UNKNOWN,
    AbandonProcess,
    AgentLost,
    AttachShim,
    Cause,
    ChangeNetwork,
    Command,
    CreateContainer,
    CreateSandbox,
    Delete,
    Draft,
    Drained,
    EffectDone,
    EffectFailed,
    Exec,
    Facts,
    HostRebooted,
    Input,
    Intent,
    Kill,
    Moved,
    Pause,
    ProcessExited,
    ResolveSandbox,
    Resume,
    ShareDied,
    Start,
    Step,
    StopSandbox,
    Update,
    UpdateUndone,
    VmDied,
)


class _Draw:
    """A step under construction: the pod so far and the records so far."""

    def __init__(self, pod: Pod, kind: str, type_: str, body: Facts) -> None:
        self.pod = pod
        self.records: list[Draft] = [Draft(kind, type_, body)]
        self.entered: dict[tuple[str, str], int] = {}  # unit -> the record of its last transition

    def fire(self, machine: str, trigger: str, subject: str = "", facts: Facts | None = None) -> None:
        source = self.pod.unit(machine, subject).state
        dest = TABLES[machine].fire(source, trigger, subject=subject or self.pod.id)
        self._add(Moved(machine, trigger, source, dest, subject, facts or {}))

    def _add(self, move: Moved) -> None:
        body = msgspec.to_builtins(move)
        # Linked to the record that led to it: the step's first for what the input fired, the one before for couplings.
        back = -1 if move.rule else -len(self.records)
        self.records.append(Draft("event", f"{move.machine}.{move.trigger}", body, back))
        self.pod = evolve(self.pod, move)
        if move.source != move.dest:
            self.entered[(move.machine, move.subject)] = len(self.records) - 1

    def finish(self) -> Step:
        self.pod, moves = coupling.settle(self.pod)
        settled = self.pod
        for move in moves:
            self.records.append(
                Draft("event", f"{move.machine}.{move.trigger}", msgspec.to_builtins(move), -1 if self.records else 0)
            )
            self.entered[(move.machine, move.subject)] = len(self.records) - 1
        intents: list[Intent] = []
        for (machine, subject), at in self.entered.items():
            intent = intent_of(settled, machine, subject)
            if intent is not None:
                intents.append(intent)
                body = {"subject": intent.subject, "params": intent.params}
                self.records.append(Draft("intent", intent.kind, body, at - len(self.records)))
        return Step(tuple(self.records), tuple(intents))


def _plain(value: Any) -> Facts:
    built: Facts = msgspec.to_builtins(value)
    return built


def _declare(draw: _Draw, container_id: str, config: Facts) -> None:
    draw.fire("container", "declare", container_id, {"config": config})
    draw.fire("process", "declare", init_of(container_id), {"config": {"terminal": bool(config.get("terminal"))}})


def _require_container(pod: Pod, container_id: str) -> str:
    unit = pod.containers.get(container_id)
    if unit is None or unit.state == container.DELETED:
        raise NotFoundError(f"Container ID ({container_id}) does not exist")
    return unit.state


def _illegal(machine: str, subject: str, state: str, trigger: str, message: str) -> IllegalTransition:
    return IllegalTransition(machine, subject, state, trigger, TABLES[machine].legal(state), message=message)


def _create_sandbox(draw: _Draw, command: CreateSandbox) -> None:
    facts = {"id": command.sandbox, "uid": command.uid, "config": command.config}
    draw.fire("sandbox", "create", facts=facts)
    _declare(draw, command.sandbox, command.container)


def _create_container(draw: _Draw, command: CreateContainer) -> None:
    state = draw.pod.sandbox.state
    if state not in (sandbox.CREATING, sandbox.READY):
        raise _illegal(
            "sandbox",
            draw.pod.id,
            state,
            "create_container",
            f"sandbox `{draw.pod.id}` cannot take a further container",
        )
    if command.container in draw.pod.containers:
        unit = draw.pod.containers[command.container]
        if unit.state != container.DELETED:
            raise _illegal(
                "container", command.container, unit.state, "declare", "ID already in use, unique ID should be provided"
            )
        raise _illegal("container", command.container, unit.state, "declare", "the id was used in this sandbox before")
    _declare(draw, command.container, command.config)


def _start(draw: _Draw, command: Start) -> None:
    _require_container(draw.pod, command.container)
    draw.fire("container", "start", command.container)


def _pause(draw: _Draw, command: Pause) -> None:
    _require_container(draw.pod, command.container)
    draw.fire("container", "pause", command.container)


def _resume(draw: _Draw, command: Resume) -> None:
    _require_container(draw.pod, command.container)
    draw.fire("container", "resume", command.container)


def _exec(draw: _Draw, command: Exec) -> None:
    state = _require_container(draw.pod, command.container)
    if state != container.RUNNING:
        raise _illegal("container", command.container, state, "exec", f"Container {command.container} is not running")
    draw.fire("process", "declare", command.process, {"config": command.config})
    if command.shim:
        draw.fire("process", "attach", command.process, {"shim": command.shim})


def _attach(draw: _Draw, command: AttachShim) -> None:
    if command.process not in draw.pod.processes:
        raise NotFoundError(f"process `{command.process}` does not exist")
    draw.fire("process", "attach", command.process, {"shim": command.shim})


def _kill(draw: _Draw, command: Kill) -> None:
    state = _require_container(draw.pod, command.container)
    init = draw.pod.unit("process", init_of(command.container)).state
    if state not in container.SIGNALABLE or init not in (process.CREATED, process.RUNNING):
        raise _illegal("container", command.container, state, "kill", "container not running")


def _update(draw: _Draw, command: Update) -> None:
    state = _require_container(draw.pod, command.container)
    if state not in container.SIGNALABLE:
        raise _illegal("container", command.container, state, "update", f"Container {command.container} is not running")
    if command.limits is not None:
        draw.fire("container", "limit", command.container, {"limits": command.limits})


def _delete(draw: _Draw, command: Delete) -> None:
    state = _require_container(draw.pod, command.container)
    status = container.OCI_STATUS[state]
    if status in ("running", "paused") and not command.force:
        raise _illegal("container", command.container, state, "delete", "Container still running, should be stopped")
    force = command.force or status in ("creating", "created")  # as runc: what never ran needs no force
    draw.fire(
        "container", "condemn", command.container, {"condemned": "force" if force else "plain", "discard_failed": False}
    )
    pod = draw.pod
    if pod.sandbox.state in sandbox.LIVE and command.container == pod.id and force:
        already = pod.sandbox.facts.get("cause") if pod.sandbox.state == sandbox.STOPPING else None
        cause = {} if already else {"cause": _plain(Cause("operator", "its deletion was forced"))}
        draw.fire("sandbox", "stop", facts={**cause, "force": True})
    if draw.pod.unit("container", command.container).state == container.ENDING and draw.pod.agent.state == agent.READY:
        draw.fire("container", "kill", command.container)  # the last one failed, or did not help
    _retry_stuck(draw)


def _retry_stuck(draw: _Draw) -> None:
    """Whoever asks for the end again makes every failed clean-up be tried again."""
    for machine, state, trigger in (
        ("vm", vm.STUCK, "stop"),
        ("network", network.STUCK, "detach"),
        ("share", share.STUCK, "release"),
    ):
        if draw.pod.unit(machine, "").state == state:
            draw.fire(machine, trigger)
    for subject, unit in list(draw.pod.containers.items()):
        if unit.state == container.STUCK:
            draw.fire("container", "unstage", subject)


def _change_network(draw: _Draw, command: ChangeNetwork) -> None:
    pod = draw.pod
    if pod.sandbox.state not in (sandbox.CREATING, sandbox.READY) or pod.network.state != network.PLUGGED:
        what = f"the network of sandbox `{pod.id}` cannot be changed"
        raise _illegal("network", pod.id, pod.network.state, "change", what)
    draw.fire("network", "change", facts={"change": command.change})


def _stop_sandbox(draw: _Draw, command: StopSandbox) -> None:
    facts: Facts = {"force": True} if command.force else {}
    if "cause" not in draw.pod.sandbox.facts:
        facts["cause"] = _plain(command.cause)
    draw.fire("sandbox", "stop", facts=facts)
    _retry_stuck(draw)


def _resolve_sandbox(draw: _Draw, command: ResolveSandbox) -> None:
    """Everything is tried once more; the coupling table gives up what fails again."""
    facts: Facts = {"resolved": command.reason}
    live = draw.pod.sandbox.state in sandbox.LIVE
    if live:
        facts["force"] = True
    known = draw.pod.sandbox.facts.get("cause")
    if known is None or known.get("kind") in CLEAN_ENDINGS:  # what nobody wanted stays the cause
        facts["cause"] = _plain(Cause("resolved", command.reason, {"before": known} if known else {}))
    draw.fire("sandbox", "stop" if live else "resolve", facts=facts)
    _retry_stuck(draw)
    for subject, unit in list(draw.pod.containers.items()):
        if unit.state == container.DEAD and unit.facts.get("discard_failed"):
            draw.fire("container", "condemn", subject, {"discard_failed": False})


def _abandon(draw: _Draw, command: AbandonProcess) -> None:
    state = draw.pod.unit("process", command.process).state
    if state != process.DECLARED or command.process == init_of(container_of(command.process)):
        # One that is being spawned may be alive in the guest, and an init process ends with its container only.
        raise _illegal("process", command.process, state, "abandon", "only a declared exec can be abandoned")
    facts = {"exit_code": EXIT_UNKNOWN, "cause": _plain(command.cause)}
    draw.fire("process", "abort", command.process, facts)


_COMMANDS: dict[type[Any], Any] = {
    CreateSandbox: _create_sandbox,
    CreateContainer: _create_container,
    Start: _start,
    Pause: _pause,
    Resume: _resume,
    Exec: _exec,
    AttachShim: _attach,
    Kill: _kill,
    Update: _update,
    Delete: _delete,
    ChangeNetwork: _change_network,
    StopSandbox: _stop_sandbox,
    ResolveSandbox: _resolve_sandbox,
    AbandonProcess: _abandon,
}


def _decide_command(pod: Pod, command: Command) -> Step:
    body = _plain(command)
    name = body.pop("do")
    draw = _Draw(pod, "command", name, body)
    try:
        _COMMANDS[type(command)](draw, command)
    except IllegalTransition as error:
        if error.machine == "container":
            raise error.with_legal(legal_requests(error.state)) from error
        raise
    return draw.finish()


def legal_requests(state: str) -> tuple[str, ...]:
    """What may be asked of a container in `state`, in the words of those who ask."""
    status = container.OCI_STATUS.get(state)
    if status is None:
        return ()
    own = {container.CREATED: ("start",), container.RUNNING: ("exec", "pause"), container.PAUSED: ("resume",)}
    signals = ("kill", "update") if state in container.SIGNALABLE else ()
    plain = ("delete",) if status in ("creating", "created", "stopped") else ()
    return (*own.get(state, ()), *signals, *plain, "delete --force")


def _decide_outcome(pod: Pod, outcome: EffectDone | EffectFailed) -> Step:
    body = _plain(outcome)
    body["ok"] = body.pop("outcome") == "done"
    kind = body.pop("kind")
    machine, trigger = _DONE_TRIGGER[kind]
    unit = pod.unit(machine, outcome.subject)
    if TABLES[machine].effects.get(unit.state) != kind:
        return Step((Draft("outcome", kind, {**body, "late": True}),), ())
    draw = _Draw(pod, "outcome", kind, body)
    if isinstance(outcome, EffectDone):
        over = {"error": None} if unit.facts.get("error") else {}  # what failed before has succeeded now
        draw.fire(machine, trigger, outcome.subject, {**outcome.result, **MARKS_DONE.get(kind, {}), **over})
    else:
        draw.fire(machine, "failed", outcome.subject, _failure_facts(kind, unit.facts, outcome))
    return draw.finish()


def _failure_facts(kind: str, known: Facts, outcome: EffectFailed) -> Facts:
    evidence = {"effect": kind, "phase": outcome.phase, **outcome.evidence}
    facts: Facts = {"error": {"message": outcome.message, **evidence}}
    if kind in _FAILURE_CAUSE and "cause" not in known:
        cause = Cause("timeout" if outcome.evidence.get("timeout") else _FAILURE_CAUSE[kind], outcome.message, evidence)
        facts["cause"] = _plain(cause)
    if kind == "process.exec":
        facts["exit_code"] = EXIT_UNKNOWN
    if kind == "container.discard":
        facts["discard_failed"] = True
    return facts


def _decide_observation(pod: Pod, seen: Any) -> Step:
    body = _plain(seen)
    name = body.pop("saw")
    draw = _Draw(pod, "note", name, body)
    match seen:
        case VmDied(cause) if pod.vm.state == vm.RUNNING:
            draw.fire("vm", "died", facts={"cause": _plain(cause)})
        case ShareDied(cause) if "died" in share.TABLE.legal(pod.share.state):
            draw.fire("share", "died", facts={"cause": _plain(cause)})
        case AgentLost(cause) if "lose" in TABLES["agent"].legal(pod.agent.state):
            draw.fire("agent", "lose", facts={"cause": _plain(cause)})
        case ProcessExited(subject, code, cause) if pod.unit("process", subject).state in (
            process.CREATED,
            process.RUNNING,
        ):
            draw.fire("process", "exited", subject, _end_of(pod, subject, code, cause))
        case Drained(subject, counted) if pod.unit("process", subject).state == process.EXITED:
            draw.fire("process", "drained", subject, {"delivered": counted} if counted else {})
        case UpdateUndone(subject, limits) if "limit" in TABLES["container"].legal(
            pod.unit("container", subject).state
        ):
            draw.fire("container", "limit", subject, {"limits": limits})
        case HostRebooted() if pod.sandbox.state in sandbox.LIVE:
            _reboot(draw)
    return draw.finish()


def _end_of(pod: Pod, subject: str, code: int, cause: Cause) -> Facts:
    """What is recorded of a process that ended in the guest.

    An agent that is dismissed kills what still runs. Whether it comes to tell us of that before it is gone is chance: such
    a process ended with its sandbox, and by the sandbox's cause, either way.
    """
    killed = cause.kind == "signaled" and code == EXIT_KILLED
    if pod.agent.state == agent.CLOSING and (killed or cause.kind == "unknown"):
        return coupling.exit_with_guest(pod, subject)
    # Only a process that is known to have ended by itself can have succeeded: unknown is never success.
    believed = EXIT_UNKNOWN if code == 0 and cause.kind != "exited" else code
    return {"exit_code": believed, "cause": _plain(cause)}


def _reboot(draw: _Draw) -> None:
    """Nothing that ran can be alive: everything in the guest ends, what is left on disk is released as usual."""
    cause = {"cause": _plain(Cause("host_reboot", "the host was started anew"))}
    pod = draw.pod
    # Also one that was on its way down: the output that it still waited for is gone with the guest.
    known = "cause" in pod.sandbox.facts
    draw.fire("sandbox", "stop", facts={**({} if known else cause), "force": True})
    if "lose" in TABLES["agent"].legal(pod.agent.state):
        draw.fire("agent", "lose", facts=cause)
    if pod.vm.state == vm.RUNNING:
        draw.fire("vm", "died", facts=cause)
    if "died" in share.TABLE.legal(pod.share.state):
        draw.fire("share", "died", facts=cause)
    _retry_stuck(draw)  # what could not be released may be free now


def decide(pod: Pod, given: Input) -> Step:
    """The records and intents that `given` leads to. Raises `IllegalTransition` or `NotFoundError` and changes nothing."""
    if isinstance(given, (EffectDone, EffectFailed)):
        return _decide_outcome(pod, given)
    if type(given) in _COMMANDS:
        return _decide_command(pod, given)  # type: ignore[arg-type]
    return _decide_observation(pod, given)


def events_of(step: Step) -> list[Moved]:
    """The transitions among a step's records."""
    return [msgspec.convert(draft.body, Moved) for draft in step.records if draft.kind == "event"]
