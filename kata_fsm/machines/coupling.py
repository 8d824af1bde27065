# SPDX-License-Identifier: Apache-2.0
"""How the machines of a pod drive each other: the joint-state table.

Theory of operation. A `Rule` says: while the machines named in `when` are in the given states (and `also` holds), fire
`trigger` on `machine`. Rules are tried in order; the first that applies is fired, and trying starts again, until none
applies. Bring-up order, tear-down order and what a failure means stand in this file and nowhere else; no machine calls
another.

A rule over `container` or `process` applies to each of them by itself. Every rule's trigger leaves the states that its
`when` names, so a rule cannot fire for ever; a bound guards against an oversight all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

import msgspec

from kata_fsm.errors import Bug
from kata_fsm.limits import COUPLING_ROUNDS_MAX
from kata_fsm.machines import agent, container, network, process, sandbox, share, vm
from kata_fsm.machines.pod import POD_MACHINES, TABLES, Pod, Unit, adopt, container_of, init_of, own
from kata_fsm.machines.vocab import CLEAN_ENDINGS, EXIT_UNKNOWN, Cause, Facts, Moved

Also = Callable[[Pod, str], bool]
Teach = Callable[[Pod, str], Facts]


class Rule(msgspec.Struct, frozen=True):
    """One row of the joint-state table. `why` is for people: replay prints the name, the docs print both."""

    name: str
    when: Mapping[str, frozenset[str]]
    machine: str
    trigger: str
    why: str
    also: Also | None = None
    facts: Teach | None = None


def _s(*states: str) -> frozenset[str]:
    return frozenset(states)


_STARTING_UP = _s(sandbox.CREATING)
_SERVING = _s(sandbox.CREATING, sandbox.READY)
_GOING_DOWN = _s(sandbox.STOPPING)
_OVER = _s(sandbox.STOPPED, sandbox.FAILED)

_VM_USELESS = _s(vm.EXITED, vm.STOPPING, vm.STUCK, vm.GONE)
_NETWORK_USELESS = _s(network.BROKEN, network.DETACHING, network.STUCK, network.DETACHED)
_SHARE_USELESS = _s(share.BROKEN, share.RELEASING, share.STUCK, share.RELEASED)


# --- conditions that are not a joint state ----------------------------------------------------------------------------


def _network_has_model(pod: Pod, _: str) -> bool:
    return bool(pod.sandbox.facts.get("config", {}).get("network_model", "none") != "none")


def _guest_has_network(pod: Pod, subject: str) -> bool:
    return pod.network.state == network.PLUGGED or not _network_has_model(pod, subject)


def _shim_attached_to_init(pod: Pod, subject: str) -> bool:
    return "shim" in pod.unit("process", init_of(subject)).facts


def _shim_attached(pod: Pod, subject: str) -> bool:
    return "shim" in pod.unit("process", subject).facts


def _is_init(pod: Pod, subject: str) -> bool:
    return subject == init_of(container_of(subject))


def _init_over(pod: Pod, subject: str) -> bool:
    return pod.unit("process", init_of(subject)).state in (process.EXITED, process.CLOSED)


def _is_sandbox_container_done(pod: Pod, subject: str) -> bool:
    return subject == pod.id and _all_closed(pod, subject)


def _all_closed(pod: Pod, subject: str) -> bool:
    return all(unit.state == process.CLOSED for _, unit in pod.processes_of(subject))


def _condemned_by_force(pod: Pod, subject: str) -> bool:
    return pod.unit("container", subject).facts.get("condemned") == "force"


def _condemned_or_never_created(pod: Pod, subject: str) -> bool:
    """Its name may go. The sandbox's own container goes last: by its name a failed clean-up can be asked for again."""
    facts = pod.unit("container", subject).facts
    if subject == pod.id and pod.sandbox.state not in _OVER:
        return False
    return ("condemned" in facts or "created" not in facts) and not facts.get("discard_failed")


def _container_ended(pod: Pod, subject: str) -> bool:
    return pod.unit("container", container_of(subject)).state in _CONTAINER_ENDED


_CONTAINER_ENDED = _s(
    container.STOPPED, container.REMOVING, container.UNSTAGING, container.STUCK, container.DEAD, container.DISCARDING,
    container.DELETED,
)  # fmt: skip


def _no_output_waits(pod: Pod, _: str) -> bool:
    return bool(pod.sandbox.facts.get("force")) or all(u.state != process.EXITED for u in pod.processes.values())


def _end_is_forced(pod: Pod, subject: str) -> bool:
    return bool(pod.sandbox.facts.get("force")) or _condemned_by_force(pod, container_of(subject))


def _no_guest_effect(pod: Pod, _: str) -> bool:
    """No container effect is under way in the guest: let each end before the agent is dismissed, unless forced."""
    busy = (container.CREATING, container.STARTING, container.PAUSING, container.RESUMING)
    return bool(pod.sandbox.facts.get("force")) or all(u.state not in busy for u in pod.containers.values())


def _guest_is_quiet(pod: Pod, subject: str) -> bool:
    return _no_output_waits(pod, subject) and _no_guest_effect(pod, subject)


def _containers_released(pod: Pod, _: str) -> bool:
    return all(unit.state in container.RELEASED for unit in pod.containers.values())


def _containers_deleted(pod: Pod, _: str) -> bool:
    return all(unit.state == container.DELETED for unit in pod.containers.values())


def _settled(pod: Pod, _: str) -> bool:
    return (
        pod.vm.state in (vm.ABSENT, vm.GONE)
        and pod.agent.state in (agent.ABSENT, agent.LOST, agent.CLOSED)
        and pod.network.state in (network.ABSENT, network.DETACHED)
        and pod.share.state in (share.ABSENT, share.RELEASED)
        and _containers_released(pod, "")
    )


def _settled_cleanly(pod: Pod, subject: str) -> bool:
    return _settled(pod, subject) and pod.sandbox.facts.get("cause", {}).get("kind") in CLEAN_ENDINGS


def _resolved(pod: Pod, _: str) -> bool:
    return "resolved" in pod.sandbox.facts


def _discard_failed_and_resolved(pod: Pod, subject: str) -> bool:
    return bool(pod.unit("container", subject).facts.get("discard_failed")) and _resolved(pod, subject)


# --- what a coupled transition teaches --------------------------------------------------------------------------------


def _cause(cause: Cause) -> Facts:
    return {"cause": msgspec.to_builtins(cause)}


def _cause_of(unit: Unit, kind: str, message: str) -> Facts:
    known = unit.facts.get("cause")
    return {"cause": known} if known else _cause(Cause(kind, message))


def _from_vm(pod: Pod, _: str) -> Facts:
    return _cause_of(pod.vm, "create_failed", "the virtual machine could not be started")


def _from_agent(pod: Pod, _: str) -> Facts:
    return _cause_of(pod.agent, "agent_lost", "the agent is gone")


def _from_share(pod: Pod, _: str) -> Facts:
    return _cause_of(pod.share, "virtiofsd_lost", "the shared directory tree is gone")


def _from_network(pod: Pod, _: str) -> Facts:
    return _cause_of(pod.network, "create_failed", "the network could not be attached")


def _from_sandbox(pod: Pod, _: str) -> Facts:
    return _cause_of(pod.sandbox, "sandbox_stopped", "the sandbox was stopped")


def _from_sandbox_container(pod: Pod, subject: str) -> Facts:
    unit = pod.unit("container", subject)
    if "cause" in unit.facts and "created" not in unit.facts:
        return {"cause": unit.facts["cause"]}
    ended = pod.unit("process", init_of(subject)).facts
    inner = ended.get("cause", {})
    evidence = {"container": subject, "exit_code": ended.get("exit_code"), "why": inner.get("kind", "unknown")}
    return _cause(Cause("workload_exited", str(inner.get("message", "")), evidence))


def exit_with_guest(pod: Pod, _: str) -> Facts:
    """How a process ended that ended because its guest did."""
    cause = pod.agent.facts.get("cause") or pod.sandbox.facts.get("cause")
    if cause is None or cause.get("kind") in CLEAN_ENDINGS:
        cause = msgspec.to_builtins(Cause("sandbox_stopped", "its sandbox was stopped under it"))
    return {"exit_code": EXIT_UNKNOWN, "cause": cause}


def _abort_cause(pod: Pod, _: str) -> Facts:
    source = pod.agent if "cause" in pod.agent.facts else pod.sandbox
    return _cause_of(source, "create_failed", "the sandbox ended first")


def _unwanted(pod: Pod, _: str) -> Facts:
    source = pod.agent if "cause" in pod.agent.facts else pod.sandbox
    return _cause_of(source, "create_failed", "its deletion was forced before it was created")


def _never_ran(pod: Pod, subject: str) -> Facts:
    unit = pod.unit("container", container_of(subject))
    return {"exit_code": EXIT_UNKNOWN, **_cause_of(unit, "container_stopped", "its container ended before it began")}


def _given_up(pod: Pod, _: str) -> Facts:
    return {"undelivered": True}


def _left(unit: Unit) -> Facts:
    return {"left": (unit.facts.get("error") or {}).get("message", "")}


def _left_of(machine: str) -> Teach:
    return lambda pod, subject: _left(pod.unit(machine, subject))


RULES: tuple[Rule, ...] = (
    # -- bring-up: the three slow things side by side ------------------------------------------------------------------
    Rule("boot", {"sandbox": _STARTING_UP, "vm": _s(vm.ABSENT)}, "vm", "launch",
         "the boot is the slowest step: start it first"),
    Rule("join-network", {"sandbox": _STARTING_UP, "network": _s(network.ABSENT)}, "network", "attach",
         "the namespace is ready long before the guest"),
    Rule("serve-files", {"sandbox": _STARTING_UP, "share": _s(share.ABSENT)}, "share", "prepare",
         "virtiofsd starts while the guest boots"),
    Rule("call-agent", {"sandbox": _STARTING_UP, "vm": _s(vm.RUNNING), "agent": _s(agent.ABSENT)}, "agent", "connect",
         "the agent answers when the guest has booted"),
    Rule("plug-share", {"sandbox": _STARTING_UP, "agent": _s(agent.CONNECTED), "share": _s(share.READY)}, "share", "plug",
         "devices of the sandbox are plugged after the agent answers, so that a cloned VM takes the same path"),
    Rule("plug-network",
         {"sandbox": _STARTING_UP, "agent": _s(agent.CONNECTED, agent.CONFIGURING, agent.READY),
          "network": _s(network.ATTACHED)}, "network", "plug",
         "a guest sees a NIC only some time after it is plugged: beside everything else", also=_network_has_model),
    Rule("configure-guest",
         {"sandbox": _STARTING_UP, "agent": _s(agent.CONNECTED), "share": _s(share.PLUGGED), "network": network.USABLE},
         "agent", "configure", "everything the guest must be told is there"),
    Rule("sandbox-ready",
         {"sandbox": _STARTING_UP, "agent": _s(agent.READY), "network": _s(network.ATTACHED, network.PLUGGED)},
         "sandbox", "ready", "the guest can hold containers, and has its network", also=_guest_has_network),
    # -- containers on their way up ------------------------------------------------------------------------------------
    Rule("prepare-container", {"sandbox": _SERVING, "share": share.USABLE, "container": _s(container.DECLARED)},
         "container", "prepare", "the host side needs only the shared tree"),
    Rule("create-container", {"sandbox": _s(sandbox.READY), "agent": _s(agent.READY), "container": _s(container.PREPARED)},
         "container", "create", "the guest is ready and somebody holds its stdio", also=_shim_attached_to_init),
    Rule("init-created", {"container": container.IN_GUEST, "process": _s(process.DECLARED)}, "process", "create",
         "the init process exists with its container", also=_is_init),
    Rule("init-running", {"container": _s(container.RUNNING), "process": _s(process.CREATED)}, "process", "run",
         "the init process runs with its container", also=_is_init),
    Rule("spawn", {"agent": _s(agent.READY), "container": _s(container.RUNNING), "process": _s(process.DECLARED)},
         "process", "spawn", "the container runs and somebody holds the stdio", also=_shim_attached),
    # -- something we stand on is gone: the sandbox ends -----------------------------------------------------------------
    Rule("vm-gone-agent-lost", {"vm": _VM_USELESS, "agent": agent.ALIVE}, "agent", "lose",
         "there is no agent without a guest", facts=_from_vm),
    Rule("vm-gone-stop", {"sandbox": _SERVING, "vm": _VM_USELESS}, "sandbox", "stop",
         "there is no sandbox without a guest", facts=_from_vm),
    Rule("share-gone-stop", {"sandbox": _SERVING, "share": _SHARE_USELESS}, "sandbox", "stop",
         "the containers' files are gone", facts=_from_share),
    Rule("network-gone-stop", {"sandbox": _SERVING, "network": _NETWORK_USELESS}, "sandbox", "stop",
         "the sandbox could not be given its network", facts=_from_network),
    Rule("agent-gone-stop", {"sandbox": _SERVING, "agent": agent.OVER}, "sandbox", "stop",
         "a guest that cannot be told anything is of no use", facts=_from_agent),
    Rule("guest-gone-process", {"agent": agent.OVER, "process": _s(process.CREATED, process.RUNNING)}, "process",
         "exited", "a process does not outlive its guest", facts=exit_with_guest),
    Rule("guest-gone-spawn", {"agent": agent.OVER, "process": _s(process.SPAWNING)}, "process", "abort",
         "a process cannot be added to a guest that is gone", facts=exit_with_guest),
    Rule("guest-gone-effect",
         {"agent": agent.OVER,
          "container": _s(container.CREATING, container.STARTING, container.PAUSING, container.RESUMING,
                          container.KILLING, container.REMOVING)},
         "container", "abort", "no answer will come from a guest that is gone", facts=_abort_cause),
    # -- ends ----------------------------------------------------------------------------------------------------------
    Rule("init-exited",
         {"container": _s(container.CREATED, container.RUNNING, container.PAUSED, container.ENDING)},
         "container", "exited", "a container ends with its init process", also=_init_over),
    Rule("orphan-process", {"process": _s(process.DECLARED)}, "process", "abort",
         "its container ended before it began", also=_container_ended, facts=_never_ran),
    Rule("give-up-output", {"process": _s(process.EXITED)}, "process", "drained",
         "the end was forced: output that nobody reads is not waited for", also=_end_is_forced, facts=_given_up),
    Rule("condemned", {"container": _s(container.CREATED, container.RUNNING, container.PAUSED),
                       "agent": _s(agent.READY), "sandbox": _s(sandbox.READY)},
         "container", "kill", "its deletion was forced", also=_condemned_by_force),
    Rule("condemned-early", {"container": _s(container.DECLARED, container.PREPARED)}, "container", "abort",
         "its deletion was forced before it was created", also=_condemned_by_force, facts=_unwanted),
    Rule("sandbox-container-ended", {"sandbox": _SERVING, "container": _CONTAINER_ENDED}, "sandbox", "stop",
         "the sandbox lives as long as the container that made it", also=_is_sandbox_container_done,
         facts=_from_sandbox_container),
    # -- tear-down, in reverse -----------------------------------------------------------------------------------------
    Rule("abort-container", {"sandbox": _GOING_DOWN, "container": _s(container.DECLARED, container.PREPARED)},
         "container", "abort", "the sandbox is going down", facts=_abort_cause),
    Rule("stop-calling", {"sandbox": _GOING_DOWN, "agent": _s(agent.CONNECTING, agent.CONNECTED, agent.CONFIGURING)},
         "agent", "lose", "the sandbox is going down before the guest was ready", facts=_from_sandbox),
    Rule("dismiss-agent", {"sandbox": _GOING_DOWN, "agent": _s(agent.READY)}, "agent", "close",
         "all output has been handed over", also=_guest_is_quiet,
         facts=_from_sandbox),
    Rule("stop-vm",
         {"sandbox": _GOING_DOWN, "agent": _s(agent.ABSENT, agent.LOST, agent.CLOSED), "vm": _s(vm.RUNNING, vm.EXITED)},
         "vm", "stop", "the guest is of no more use; files of a VMM that died are removed the same way"),
    Rule("remove-container",
         {"sandbox": _s(sandbox.READY), "agent": _s(agent.READY), "container": _s(container.STOPPED)},
         "container", "remove", "the pod goes on without it", also=_all_closed),
    Rule("unstage-container",
         {"sandbox": _GOING_DOWN, "vm": _s(vm.ABSENT, vm.GONE, vm.STUCK), "container": _s(container.STOPPED)},
         "container", "unstage", "no guest uses its files any more", also=_all_closed),
    Rule("release-share",
         {"sandbox": _GOING_DOWN, "vm": _s(vm.ABSENT, vm.GONE), "share": _s(share.READY, share.PLUGGED, share.BROKEN)},
         "share", "release", "neither guest nor container uses it", also=_containers_released),
    Rule("leave-network",
         {"sandbox": _GOING_DOWN, "vm": _s(vm.ABSENT, vm.GONE),
          "network": _s(network.ATTACHED, network.PLUGGED, network.BROKEN)},
         "network", "detach", "no guest uses it"),
    Rule("give-up-vm", {"vm": _s(vm.STUCK)}, "vm", "abandon",
         "somebody resolved the sandbox: what cannot be released is given up", also=_resolved, facts=_left_of("vm")),
    Rule("give-up-network", {"network": _s(network.STUCK)}, "network", "abandon",
         "somebody resolved the sandbox", also=_resolved, facts=_left_of("network")),
    Rule("give-up-share", {"share": _s(share.STUCK)}, "share", "abandon",
         "somebody resolved the sandbox", also=_resolved, facts=_left_of("share")),
    Rule("give-up-container", {"container": _s(container.STUCK)}, "container", "abandon",
         "somebody resolved the sandbox", also=_resolved, facts=_left_of("container")),
    Rule("give-up-discard", {"container": _s(container.DEAD)}, "container", "abandon",
         "somebody resolved the sandbox", also=_discard_failed_and_resolved, facts=_left_of("container")),
    Rule("sandbox-stopped", {"sandbox": _GOING_DOWN}, "sandbox", "stopped",
         "everything is released, and somebody wanted this end", also=_settled_cleanly),
    Rule("sandbox-failed", {"sandbox": _GOING_DOWN}, "sandbox", "fail",
         "everything is released, and nobody wanted this end", also=_settled),
    Rule("discard-container", {"container": _s(container.DEAD)}, "container", "discard",
         "it was deleted, or never came to be", also=_condemned_or_never_created),
    Rule("sandbox-deleted", {"sandbox": _OVER}, "sandbox", "delete", "its last container was deleted",
         also=_containers_deleted),
)  # fmt: skip


class _Open(NamedTuple):
    """A rule that the pod's own machines leave open, and what is left to be looked at for it."""

    rule: Rule
    containers: frozenset[str] | None
    processes: frozenset[str] | None


def _may_hold(rule: Rule, states: Mapping[str, str]) -> bool:
    """Whether the machines that a pod has one of are in the rule's states."""
    return all(states[name] in wanted for name, wanted in rule.when.items() if name in states)


@lru_cache(maxsize=4096)
def _candidates(*states: str) -> tuple[_Open, ...]:
    """The rules that these states of `POD_MACHINES` leave open. Some hundred combinations occur, each of them often."""
    known = dict(zip(POD_MACHINES, states, strict=True))
    return tuple(
        _Open(rule, rule.when.get("container"), rule.when.get("process")) for rule in RULES if _may_hold(rule, known)
    )


def _subjects(pod: Pod, candidate: _Open) -> Iterable[str]:
    """The subjects that the rule's joint state holds for."""
    _, containers, processes = candidate
    if processes is not None:
        found = [subject for subject, unit in pod.processes.items() if unit.state in processes]
        if containers is None:
            return found
        return [s for s in found if pod.unit("container", container_of(s)).state in containers]
    if containers is not None:
        return [subject for subject, unit in pod.containers.items() if unit.state in containers]
    return _THE_POD


_THE_POD = ("",)


def next_move(pod: Pod) -> Moved | None:
    """The first coupled transition that is due, or None at the fixed point."""
    containers = {unit.state for unit in pod.containers.values()}
    for candidate in _candidates(pod.sandbox.state, pod.vm.state, pod.agent.state, pod.network.state, pod.share.state):
        rule, wanted, _ = candidate
        if wanted is not None and containers.isdisjoint(wanted):
            continue
        for subject in _subjects(pod, candidate):
            if rule.also is None or rule.also(pod, subject):
                target = subject if rule.machine in ("container", "process") else ""
                source = pod.unit(rule.machine, target).state
                dest = TABLES[rule.machine].fire(source, rule.trigger, subject=target)
                facts = rule.facts(pod, subject) if rule.facts is not None else {}
                return Moved(rule.machine, rule.trigger, source, dest, target, facts, rule.name)
    return None


def settle(pod: Pod) -> tuple[Pod, list[Moved]]:
    """Fires coupled transitions until none is due: the pod at its fixed point, and what moved."""
    moves: list[Moved] = []
    for _ in range(COUPLING_ROUNDS_MAX):
        move = next_move(pod)
        if move is None:
            return pod, moves
        if not moves:
            pod = own(pod)
        moves.append(move)
        adopt(pod, move)
    raise Bug(f"the coupling table found no fixed point within {COUPLING_ROUNDS_MAX} rounds: {moves[-3:]}")
