# SPDX-License-Identifier: Apache-2.0
"""A normal life of a sandbox: everything that is asked of it and that happens to it, given when it is ready for it.

What comes next is a function of the pod and of what has been asked before, so that a life can be taken up at any point.
"""

from __future__ import annotations

from collections.abc import Callable, Set

from kata_fsm.machines import Cause, Pod, container, network, process, sandbox
from kata_fsm.machines import vocab as v
from kata_fsm.runtime import Runtime
from tests.support.stage import BOX, SUBJECT, create_box, ourselves

EXEC = f"{BOX}/e1"
CODE = 7


def next_input(pod: Pod, asked: Set[str]) -> v.Input | None:
    """What happens next; None while effects are under way, and after the end."""
    if pod.sandbox.state == sandbox.ABSENT:
        return create_box()
    for step in (_process, _exec, _container):
        given = step(pod, asked)
        if given is not None:
            return given
    return None


def _process(pod: Pod, _: Set[str]) -> v.Input | None:
    """The streams of a process that has ended are handed over at once."""
    for subject, unit in pod.processes.items():
        if unit.state == process.EXITED:
            return v.Drained(subject, {"stdout": 5, "stderr": 0})
    return None


def _exec(pod: Pod, _: Set[str]) -> v.Input | None:
    unit = pod.unit("process", EXEC)
    if unit.state == process.DECLARED and "shim" not in unit.facts:
        return v.AttachShim(EXEC, ourselves())
    if unit.state == process.RUNNING:
        return v.ProcessExited(EXEC, 3, Cause("exited", "exited with code 3", {"code": 3}))
    return None


def _container(pod: Pod, asked: Set[str]) -> v.Input | None:
    unit, init = pod.unit("container", BOX), pod.unit("process", SUBJECT)
    if unit.state == container.PREPARED and pod.network.state == network.ATTACHED and "shim" not in init.facts:
        return v.AttachShim(SUBJECT, ourselves())
    if unit.state == container.PAUSED:
        return v.Resume(BOX)
    if unit.state == container.CREATED:
        return v.Start(BOX)
    if unit.state == container.RUNNING:
        if "pause" not in asked:
            return v.Pause(BOX)
        if "exec" not in asked:
            return v.Exec(BOX, EXEC, {"args": ["true"]})
        if pod.unit("process", EXEC).state == process.CLOSED and init.state == process.RUNNING:
            return v.ProcessExited(SUBJECT, CODE, Cause("exited", f"exited with code {CODE}", {"code": CODE}))
    if pod.sandbox.state in (sandbox.STOPPED, sandbox.FAILED) and "delete" not in asked:
        return v.Delete(BOX)
    return None


async def live(
    runtime: Runtime, until: Callable[[Pod], bool] = lambda pod: pod.sandbox.state == sandbox.DELETED
) -> Pod:
    """Live on until `until` holds, which is asked between two things that happen."""
    recorded = runtime.journal.read_stream(runtime.stream)
    asked = {r.type for r in recorded if r.kind == "command" and r.data.get("container") == BOX}

    def due(pod: Pod) -> bool:
        return until(pod) or next_input(pod, asked) is not None

    while True:
        pod = await runtime.until(due)
        if until(pod):
            return pod
        given = next_input(runtime.pod, asked)
        if given is not None:
            step = await runtime.submit(given)
            asked.add(step.records[0].type)
