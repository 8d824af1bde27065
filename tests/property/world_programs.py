# SPDX-License-Identifier: Apache-2.0
"""Programs in the simulated world that are more than random: the commonest ones, whole families, and found ones."""

from __future__ import annotations

from kata_fsm.effects.fake.faults import BOUNDARIES, CALL_FAULTS, EFFECT_FAULTS
from kata_fsm.testing.sim.ops import EFFECTS, METHODS, Op

Program = list[Op]

_RUNNING: Program = [("create", 0), ("start", 0, 0)]
_FAIL_LAUNCH = ("fault", EFFECTS.index("hypervisor.launch"), EFFECT_FAULTS.index("half"))

COMMONEST: dict[str, Program] = {
    "a whole life": [*_RUNNING, ("exit", 0, 0, 7), ("wait", 200), ("delete", 0, 0)],
    "killed and deleted": [*_RUNNING, ("kill", 0, 0, 0), ("wait", 200), ("delete", 0, 0)],
    "an exec": [*_RUNNING, ("exec", 0, 0), ("exit", 0, 1, 3), ("wait", 50), ("exit", 0, 0, 0), ("wait", 9), ("force", 0, 0)],
    "output": [*_RUNNING, ("write", 0, 0, 300), ("write", 0, 0, 111), ("exit", 0, 0, 1), ("wait", 50), ("delete", 0, 0)],
    "paused and resumed": [*_RUNNING, ("pause", 0, 0), ("resume", 0, 0), ("exit", 0, 0, 2), ("wait", 200), ("delete", 0, 0)],
    "a further container": [*_RUNNING, ("add", 0, 1), ("start", 0, 1), ("exit", 0, 1, 4), ("wait", 200), ("delete", 0, 1)],
    "deleted by force": [*_RUNNING, ("add", 0, 1), ("force", 0, 1), ("force", 0, 0)],
    "a creation that fails": [_FAIL_LAUNCH, ("create", 0)],
    "its machine is killed": [*_RUNNING, ("exec", 0, 0), ("qemu", 0), ("wait", 1500), ("delete", 0, 0)],
    "its file server is killed": [*_RUNNING, ("virtiofsd", 0), ("wait", 1500), ("delete", 0, 0)],
}  # fmt: skip

AMID: dict[str, tuple[Program, Program]] = {
    "create": ([], [("create", 0), ("start", 0, 0), ("wait", 1000)]),
    "start": ([("create", 0)], [("start", 0, 0), ("wait", 1000)]),
    "exec": (_RUNNING, [("exec", 0, 0), ("wait", 1000)]),
    "pause": (_RUNNING, [("pause", 0, 0), ("wait", 1000)]),
    "resume": ([*_RUNNING, ("pause", 0, 0)], [("resume", 0, 0), ("wait", 1000)]),
    "add": (_RUNNING, [("add", 0, 1), ("start", 0, 1), ("force", 0, 1)]),
    "force": ([*_RUNNING, ("add", 0, 1), ("start", 0, 1)], [("force", 0, 1), ("wait", 1000)]),
    "delete": ([*_RUNNING, ("exit", 0, 0, 0)], [("wait", 1000), ("delete", 0, 0)]),
}
"""(before, after): a fault is planned in between."""


def with_each_fault(before: Program, after: Program) -> list[Program]:
    """The program with every fault of every effect, and of every call to the agent, planned before `after`."""
    planned: list[Op] = [("fault", e, f) for e in range(len(EFFECTS)) for f in range(len(EFFECT_FAULTS))]
    planned += [("call", m, f) for m in range(len(METHODS)) for f in range(len(CALL_FAULTS))]
    return [[*before, fault, *after] for fault in planned]


def dying_at(program: Program, boundary: str, count: int) -> Program:
    """The program, its supervisor dying at that boundary."""
    return [("doom", 0, BOUNDARIES.index(boundary), count), *program]


def _fault(effect: str, fault: str) -> Op:
    return ("fault", EFFECTS.index(effect), EFFECT_FAULTS.index(fault))


def _call(method: str, fault: str) -> Op:
    return ("call", METHODS.index(method), CALL_FAULTS.index(fault))


FOUND: dict[str, Program] = {
    "a pause whose answer was lost was said to have failed": [
        *_RUNNING,
        _fault("container.pause", "lost"),
        ("pause", 0, 0),
    ],
    "so was one whose connection broke": [*_RUNNING, _call("PauseContainer", "broken-after"), ("pause", 0, 0)],
    "a resumption, too": [*_RUNNING, ("pause", 0, 0), _call("ResumeContainer", "unanswered"), ("resume", 0, 0)],
    "an exec whose answer was lost ran on unknown": [*_RUNNING, _call("ExecProcess", "unanswered"), ("exec", 0, 0)],
    "an exec ran on unknown when it could not be seen at the first look either": [
        *_RUNNING,
        _call("QueryState", "refused"),
        _fault("process.exec", "after"),
        ("exec", 0, 0),
    ],
    "nor when the first look was lost": [
        *_RUNNING,
        _call("QueryState", "unheard"),
        _fault("process.exec", "after"),
        ("exec", 0, 0),
    ],
    "nor when the connection broke under it": [
        *_RUNNING,
        _call("QueryState", "broken"),
        _fault("process.exec", "after"),
        ("exec", 0, 0),
    ],
    "what had ended before it was started was said to run": [("create", 0), ("exit", 0, 0, 0), ("start", 0, 0)],
    "a shim that lost the last supervisor was never told": [("doom", 0, 1, 45), *COMMONEST["a whole life"]],
    "nor one of a sandbox deleted by force": [("doom", 0, 1, 87), *COMMONEST["deleted by force"]],
}
"""Programs that have found something."""
