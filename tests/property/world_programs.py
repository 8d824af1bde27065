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


def _meanwhile(effect: str, asked: Op, *then: Op) -> Program:
    """An effect hangs; meanwhile something else happens."""
    return [_fault(effect, "hang"), ("go", asked), ("wait", 10), *then, ("wait", 3000)]


_PAUSE, _RESUME = ("pause", 0, 0), ("resume", 0, 0)
_BOTH: Program = [*_RUNNING, ("add", 0, 1), ("start", 0, 1)]
_HANGS = _fault("process.exec", "hang")

RARE: dict[str, Program] = {
    "container pausing abort": [*_RUNNING, *_meanwhile("container.pause", _PAUSE, ("qemu", 0))],
    "container pausing condemn": [*_RUNNING, *_meanwhile("container.pause", _PAUSE, ("force", 0, 0))],
    "container resuming abort": [*_RUNNING, _PAUSE, *_meanwhile("container.resume", _RESUME, ("qemu", 0))],
    "container resuming condemn": [*_RUNNING, _PAUSE, *_meanwhile("container.resume", _RESUME, ("force", 0, 0))],
    "container resuming failed": [*_RUNNING, _PAUSE, _fault("container.resume", "before"), _RESUME],
    "container starting abort": [("create", 0), *_meanwhile("container.start", ("start", 0, 0), ("qemu", 0))],
    "container starting condemn": [("create", 0), *_meanwhile("container.start", ("start", 0, 0), ("force", 0, 0))],
    "container creating condemn": [*_RUNNING, *_meanwhile("container.create", ("add", 0, 1), ("force", 0, 1))],
    "container creating abort": [*_RUNNING, *_meanwhile("container.create", ("add", 0, 1), ("qemu", 0))],
    "container removing condemn": [*_BOTH, *_meanwhile("container.remove", ("exit", 0, 1, 0), ("force", 0, 1))],
    "container removing abort": [*_BOTH, *_meanwhile("container.remove", ("exit", 0, 1, 0), ("qemu", 0))],
    "container killing abort": [*_BOTH, *_meanwhile("container.kill", ("force", 0, 1), ("qemu", 0))],
    "container killing condemn": [*_BOTH, *_meanwhile("container.kill", ("force", 0, 1), ("force", 0, 1))],
    "container ending kill": [
        *_BOTH, _fault("container.kill", "before"), ("go", ("force", 0, 1)), ("wait", 900), ("force", 0, 1),
    ],
    "container pausing limit": [*_RUNNING, *_meanwhile("container.pause", _PAUSE, ("update", 0, 0))],
    "container resuming limit": [*_RUNNING, _PAUSE, *_meanwhile("container.resume", _RESUME, ("update", 0, 0))],
    "container starting limit": [("create", 0), *_meanwhile("container.start", ("start", 0, 0), ("update", 0, 0))],
    "container killing limit": [*_BOTH, *_meanwhile("container.kill", ("force", 0, 1), ("update", 0, 1))],
    "container ending limit": [
        *_BOTH, _fault("container.kill", "before"), ("go", ("force", 0, 1)), ("wait", 900), ("update", 0, 1),
    ],
    "process spawning abort": [*_RUNNING, *_meanwhile("process.exec", ("exec", 0, 0), ("qemu", 0))],
    "process spawning attach": [
        *_RUNNING, ("exec", 0, 0), ("exec", 0, 0), _HANGS, _HANGS, ("go", ("exec", 0, 0)), ("wait", 40), ("crash", 0),
        ("wait", 4000),
    ],
    "share plugging died": [
        _fault("share.plug", "hang"), ("go", ("create", 0)), ("wait", 4000), ("virtiofsd", 0), ("wait", 3000),
    ],
    "share ready died": [("go", ("create", 0)), ("wait", 200), ("virtiofsd", 0), ("wait", 3000)],
    "agent configuring lose": [_fault("agent.configure", "hang"), ("go", ("create", 0)), ("wait", 4000), ("force", 0, 0)],
    "vm stuck abandon": [*_RUNNING, _fault("hypervisor.stop", "before"), ("resolve", 0, 0)],
    "network stuck abandon": [*_RUNNING, _fault("network.detach", "before"), ("resolve", 0, 0)],
    "share stuck abandon": [*_RUNNING, _fault("share.release", "before"), ("resolve", 0, 0)],
    "container stuck abandon": [*_RUNNING, _fault("container.unstage", "before"), ("resolve", 0, 0)],
    "container dead abandon": [
        *_BOTH, _fault("container.discard", "before"), _fault("container.discard", "before"), ("force", 0, 1),
        ("resolve", 0, 0),
    ],
    "sandbox failed resolve": [*_RUNNING, ("qemu", 0), ("wait", 3000), ("resolve", 0, 0)],
    "sandbox stopped resolve": [*_RUNNING, ("exit", 0, 0, 0), ("wait", 3000), ("resolve", 0, 0)],
    "network changing failed": [("create", 1), _fault("network.change", "half"), ("network", 1, 0, 0)],
    "network changing changed": [
        ("create", 1), ("iface", 1, 1), ("network", 1, 1, 1), ("network", 1, 2, 0), ("network", 1, 3, 0),
    ],
    **{f"fault network.plug {fault}": [_fault("network.plug", fault), ("create", 1)] for fault in EFFECT_FAULTS},
    **{f"fault network.change {fault}": [("create", 1), ("iface", 1, 2), _fault("network.change", fault),
                                         ("network", 1, 0, 0)]
       for fault in EFFECT_FAULTS},
    **{f"fault container.remove {fault}": [*_BOTH, _fault("container.remove", fault), ("exit", 0, 1, 0), ("wait", 3000)]
       for fault in EFFECT_FAULTS},
}  # fmt: skip
"""What random programs seldom come to, each with a program that does."""
