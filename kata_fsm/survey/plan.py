# SPDX-License-Identifier: Apache-2.0
"""Believed, observed, steps: what recovery would do with one sandbox. Pure.

The steps are not a second opinion beside the machines: what was observed is given to `decide`, every outstanding effect
is taken to succeed, and what the machines then ask for is what is listed.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from kata_fsm.errors import IllegalTransition, NotFoundError
from kata_fsm.machines import Pod, agent, container, decide, events_of, fold, outstanding, process, sandbox
from kata_fsm.machines.intents import ACQUIRING
from kata_fsm.machines.vocab import Command, Drained, EffectDone, EffectFailed, Input, Observation
from kata_fsm.recovery import expiry, retries, stuck
from kata_fsm.survey.sight import GONE, SILENT, WATCHED, Sight

FINE = "fine"
UNSUPERVISED = "unsupervised"
UNANSWERING = "unanswering"
STUCK = "stuck"
EXPIRED = "expired"
UNREADABLE = "unreadable"

UNKNOWN_KINDS = frozenset({UNSUPERVISED, UNANSWERING, EXPIRED, UNREADABLE})
"""Kinds whose state in the world the journal does not know."""

_STEPS_MAX = 200  # a pod of many containers has a few effects each; a bound all the same


class Plan(msgspec.Struct, frozen=True):
    """What is believed of a sandbox, what was observed, and what would be done. `fine` plans have no steps."""

    stream: str
    sandbox: str
    uid: str
    kind: str
    state: str
    believed: str
    observed: str
    steps: tuple[str, ...] = ()
    ends: str = ""

    @property
    def pending(self) -> bool:
        """Whether there is anything to do."""
        return self.kind != FINE


def kind_of(pod: Pod, sight: Sight) -> str:
    """Which sort of trouble a sandbox is in, if any."""
    if pod.sandbox.state in (sandbox.ABSENT, sandbox.DELETED):
        return FINE
    if sight.supervisor == SILENT:
        return UNANSWERING
    if sight.supervisor == GONE and (pod.sandbox.state in sandbox.LIVE or outstanding(pod)):
        return UNSUPERVISED
    if stuck(pod) and not outstanding(pod):
        return STUCK
    ended = pod.sandbox.state in sandbox.ENDED
    return EXPIRED if sight.rebooted and ended and sight.supervisor == GONE else FINE


def make(stream: str, pod: Pod, sight: Sight, seen: Iterable[Observation] = ()) -> Plan:
    """The plan of one sandbox; `seen` is what `recovery.observe` found changed behind its back."""
    uid = str(pod.sandbox.facts.get("uid") or stream.rpartition("@")[2])
    kind = kind_of(pod, sight)
    plan = Plan(stream, pod.id, uid, kind, pod.sandbox.state, believed(pod), observed(pod, sight))
    if kind == FINE:
        return plan
    first = {UNANSWERING: ["end the supervisor that does not answer"], STUCK: ["try again"]}.get(kind, [])
    first += ["start a supervisor"] if sight.supervisor != WATCHED else []
    steps, after = foresee(pod, list(seen), sight)
    return msgspec.structs.replace(plan, steps=(*first, *steps), ends=ends(after))


def foresee(pod: Pod, seen: list[Observation], sight: Sight) -> tuple[list[str], Pod]:
    """What `seen` leads to if every effect succeeds: the steps in words, and the pod at its end."""
    steps: list[str] = []
    commands: list[Command] = retries(pod, "recovery")
    for observation in seen:
        pod = _given(pod, observation)
        cause = getattr(observation, "cause", None)
        steps.append(f"record {_name(observation)}" + (f" ({cause.kind})" if cause is not None else ""))
    for command in [*commands, *(expiry(pod) if sight.rebooted else [])]:
        pod = _given(pod, command)
    if sight.rebooted:
        steps.append("free its ids")
    for intent in outstanding(pod):
        if intent.kind in ACQUIRING and pod.sandbox.state == sandbox.STOPPING:
            pod = _given(pod, EffectFailed(intent.kind, intent.subject, "recovery", ""))
    for _ in range(_STEPS_MAX):
        wanted = outstanding(pod)
        unread = [subject for subject, unit in pod.processes.items() if unit.state == process.EXITED]
        if not wanted and unread and pod.agent.state in agent.OVER:
            pod = _given(pod, Drained(unread[0]))  # nobody can read what was in a guest that is gone
            continue
        if not wanted:
            break
        steps.append(f"{wanted[0].kind} {wanted[0].subject}".strip())
        pod = _given(pod, EffectDone(wanted[0].kind, wanted[0].subject))
    return steps, pod


def _name(observation: Observation) -> str:
    return str(observation.__struct_config__.tag)


def _given(pod: Pod, given: Input) -> Pod:
    try:
        return fold(events_of(decide(pod, given)), pod)
    except (IllegalTransition, NotFoundError):
        return pod  # an earlier one has done it


def believed(pod: Pod) -> str:
    """`ready, container web running`, `stopping, under way: hypervisor.stop`, `stopping, vm stuck: ...`."""
    words = [pod.sandbox.state]
    for subject, unit in pod.containers.items():
        if unit.state != container.DELETED:
            words.append(f"container {subject} {unit.state}")
    under_way = [f"{intent.kind} {intent.subject}".strip() for intent in outstanding(pod)]
    words += [f"under way: {', '.join(under_way)}"] if under_way else []
    words += [f"{what} stuck: {why}" for what, why in stuck(pod)]
    return ", ".join(words)


def observed(pod: Pod, sight: Sight) -> str:
    """`nobody supervises it, qemu (pid 9120) lives`, ..."""
    words = {
        GONE: ["nobody supervises it"] if pod.sandbox.state in sandbox.LIVE or outstanding(pod) else [],
        SILENT: ["its supervisor does not answer"],
    }.get(sight.supervisor, ["its supervisor is at work"])
    words = list(words)
    if sight.rebooted:
        words.append("the host was started anew since")
    words += [text for text in (sight.vm, sight.share) if text]
    held, alive = sight.shims
    if alive:
        words.append(f"{held} of {alive} shims live")
    told = {True: "was done", False: "was not done", None: "cannot be told"}
    words += [f"{name} {told[done]}" for name, done in sight.open.items()]
    if pod.sandbox.state in sandbox.ENDED:
        words += [trace.describe() for trace in sight.traces if trace.kind not in ("directory", "cgroup")]
    return ", ".join(words) or "nothing of it runs"


def ends(pod: Pod) -> str:
    """What it comes to."""
    match pod.sandbox.state:
        case sandbox.DELETED:
            return "deleted: its ids are free"
        case sandbox.STOPPED | sandbox.FAILED:
            return f"`{pod.sandbox.state}`: it can be deleted"
        case sandbox.STOPPING:
            waits = any(unit.state == process.EXITED for unit in pod.processes.values())
            return "`stopping`" + (": somebody has yet to read the output that is left" if waits else "")
    return f"it goes on: `{pod.sandbox.state}`"
