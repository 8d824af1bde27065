# SPDX-License-Identifier: Apache-2.0
"""Believed versus observed: what a supervisor does first when it takes over a stream.

Recovery has three parts, in this order. Was the host started anew? Then nothing that ran can be alive. Do the processes
that the pod believes in still run? Each that does not is recorded as ended, with what can be known about how. Then every
outstanding effect is looked at and finished (`Runtime.resume`). Doing all of it twice changes nothing.

A supervisor that fails in a way of its own (a bug of ours, a journal that refuses it) ends, as if it had been killed: that
is the one way of starting afresh that is exact and tested. It leaves a note of what it failed of, and whoever needs a
supervisor starts the next. So that this does not go on for ever, the notes are counted: one that finds too many of its
sandbox's supervisors failed of late takes the sandbox down by force, watching nothing, with that as the cause.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from journal import Journal, JournalError, NewRecord, Stamp
from kata_fsm.effects import process
from kata_fsm.effects.hypervisor import watch
from kata_fsm.effects.process import Identity
from kata_fsm.effects.protocols import Processes
from kata_fsm.limits import SUPERVISOR_FAILURE_RECORDS, SUPERVISOR_FAILURES_MAX, SUPERVISOR_FAILURES_S
from kata_fsm.machines import Cause, Pod, container, sandbox, share, vm
from kata_fsm.machines.process import EXITED
from kata_fsm.machines.vocab import Command, Delete, HostRebooted, Observation, ShareDied, StopSandbox, VmDied
from kata_fsm.runtime import Runtime
from kata_fsm.world import Paths, World

PostMortem = Callable[[Pod, Identity | None], Cause]
"""How a VMM ended that nobody watched, by what it and the kernel have written."""

FAILED = "supervisor_failed"
MISSED = "it ended while no supervisor was watching"
_NOTE_CHARS_MAX = 8192


def journal_owner(world: World) -> tuple[str, Stamp] | None:
    """Who writes the journal, as `Journal.open` wants it; None on a host that has nothing to tell it from others."""
    host = world.host_id()
    return (host, stamp_of(world)) if host else None


def stamp_of(world: World) -> Stamp:
    """Now, for a record."""
    return Stamp(wall_ns=world.wall_ns(), mono_ns=world.mono_ns(), boot_id=world.boot_id())


def process_of(facts: dict[str, object]) -> Identity | None:
    """The process that a machine's facts name (`pid`, `start_ticks`, `boot_id`)."""
    return Identity.from_dict(facts)


def observe(
    pod: Pod,
    world: World,
    last_boot: str,
    processes: Processes = process,
    post_mortem: PostMortem | None = None,
) -> list[Observation]:
    """What has changed in the world behind the pod's back. Looks, and changes nothing."""
    if pod.sandbox.state not in sandbox.LIVE:
        return []
    boot = world.boot_id()
    if last_boot and last_boot != boot:
        return [HostRebooted(boot)]
    seen: list[Observation] = []
    monitor = process_of(pod.vm.facts)
    if pod.vm.state == vm.RUNNING and (monitor is None or not processes.alive(monitor)):
        seen.append(VmDied((post_mortem or _missed_end)(pod, monitor)))
    daemon = process_of(pod.share.facts)
    if "died" in share.TABLE.legal(pod.share.state) and (daemon is None or not processes.alive(daemon)):
        seen.append(ShareDied(Cause("virtiofsd_lost", f"virtiofsd is gone: {MISSED}", {"wait_status": "unknown"})))
    return seen


def _missed_end(pod: Pod, monitor: Identity | None) -> Cause:
    """How a VMM ended that was not watched. Its wait status is lost; what it and the kernel have written is not."""
    message, evidence = f"the VMM is gone: {MISSED}", {"wait_status": "unknown"}
    if monitor is None:
        return Cause("unknown", "the record does not name the VMM's process", evidence)
    found = watch.unwatched(Paths(str(pod.sandbox.facts.get("uid", ""))), monitor)
    kind = str(found.pop("cause"))
    if kind == "unknown":  # it did not end by our hand, and there is nothing else that it could have been ended by
        return Cause(
            "vm_killed",
            message,
            {
                **found,
                **evidence,
            },
        )
    return Cause(kind, f"{found.pop('message')} ({MISSED})", {**found, **evidence})


def stuck(pod: Pod) -> list[tuple[str, str]]:
    """Every clean-up that has failed and is waited for: (of what, why)."""
    found = []
    for machine, subject, unit in pod.units():
        if unit.state == "stuck" or (unit.state == container.DEAD and unit.facts.get("discard_failed")):
            why = (unit.facts.get("error") or {}).get("message") or "it failed"
            found.append((f"{machine} `{subject}`" if subject else machine, str(why)))
    return found


def unread(pod: Pod) -> list[str]:
    """Processes of a sandbox that is going down whose output is not handed over yet: it waits for them, by no effect."""
    if pod.sandbox.state != sandbox.STOPPING:
        return []
    return [subject for subject, unit in pod.processes.items() if unit.state == EXITED]


def retries(pod: Pod, reason: str) -> list[Command]:
    """The commands that make every failed clean-up be tried again."""
    if not stuck(pod):
        return []
    if pod.sandbox.state in sandbox.LIVE:
        return [StopSandbox(Cause("operator", reason))]
    failed = [subject for subject, unit in pod.containers.items() if unit.facts.get("discard_failed")]
    return [Delete(subject, pod.containers[subject].facts.get("condemned") == "force") for subject in failed]


def expiry(pod: Pod) -> list[Command]:
    """The commands that free what a former boot of the host left: no engine knows of its containers any more."""
    return [Delete(subject, force=True) for subject, unit in pod.containers.items() if unit.state != container.DELETED]


def note_failure(journal: Journal, stream: str, world: World, error: BaseException) -> None:
    """Leave a note of what a supervisor of `stream` failed of, if there is anything to supervise. Never raises."""
    trace = "".join(traceback.format_exception(error))
    text = f"{type(error).__name__}: {error}"
    body = {name: _recordable(value) for name, value in (("error", text), ("traceback", trace))}
    try:
        rev = journal.rev(stream)
        if rev:
            journal.append(stream, [NewRecord("note", FAILED, body)], stamp=stamp_of(world), expected_rev=rev)
    except JournalError as reason:
        print(f"supervisor: its failure cannot be noted: {reason}", file=sys.stderr)


def _recordable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()[-_NOTE_CHARS_MAX:]


def failed_too_often(runtime: Runtime) -> Cause | None:
    """The cause to take the sandbox down with, if its supervisors have failed too often of late."""
    since = runtime.world.mono_ns() - int(SUPERVISOR_FAILURES_S * 1e9)
    first = max(1, runtime.rev - SUPERVISOR_FAILURE_RECORDS)
    failures = [
        str(record.data.get("error", ""))
        for record in runtime.journal.read_stream(runtime.stream, from_rev=first)
        if record.type == FAILED and record.boot_id == runtime.world.boot_id() and record.mono_ns >= since
    ]
    if len(failures) < SUPERVISOR_FAILURES_MAX:
        return None
    message = f"its supervisor failed {len(failures)} times within {SUPERVISOR_FAILURES_S:g} s: {failures[-1]}"
    return Cause("supervisor_failed", message, {"bug": True, "failures": failures[-SUPERVISOR_FAILURES_MAX:]})


async def recover(
    runtime: Runtime,
    processes: Processes = process,
    *,
    end: Cause | None = None,
    post_mortem: PostMortem | None = None,
) -> None:
    """Bring a stream that was left behind to where its outstanding effects run again; with `end`, take it down for that."""
    for observation in observe(runtime.pod, runtime.world, runtime.last_boot, processes, post_mortem):
        await runtime.report(observation)
    if end is not None and runtime.pod.sandbox.state in sandbox.LIVE and not runtime.pod.sandbox.facts.get("force"):
        await runtime.submit(StopSandbox(end, force=True))
    await runtime.resume()
