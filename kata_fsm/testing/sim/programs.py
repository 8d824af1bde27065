# SPDX-License-Identifier: Apache-2.0
"""Random programs from a seed, and programs as text.

A program begins somewhere (nothing, a sandbox, one with a running, a paused, a further container), and goes on with what
callers ask, workloads do and the world does to them. How much goes wrong is `trouble`, in percent of the operations.
"""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Callable, Sequence

from kata_fsm.effects.fake.dice import Dice
from kata_fsm.effects.fake.faults import BOUNDARIES, CALL_FAULTS, EFFECT_FAULTS, JOURNAL_FAULTS
from kata_fsm.errors import UsageError
from kata_fsm.testing.sim.ops import CHANGES, EFFECTS, INTERFACES, METHODS, NAMES, QEMU_ENDS, SIGNALS, Op

Program = list[Op]

_ASKED = (
    "start",
    "start",
    "exec",
    "exec",
    "pause",
    "resume",
    "kill",
    "delete",
    "force",
    "update",
    "add",
    "add",
    "create",
    "recover",
    "recover",
    "resolve",
    "network",
)
_CODES = (0, 0, 1, 7, 137)
_WAITS_MS = (1, 3, 10, 40, 200, 1000, 4000, 15000)

_CREATED: Program = [("create", 0)]
_RUNNING: Program = [("create", 0), ("start", 0, 0)]
_PAUSED: Program = [*_RUNNING, ("pause", 0, 0)]
_TWO: Program = [*_RUNNING, ("add", 0, 1), ("start", 0, 1)]
BEGINNINGS: tuple[Program, ...] = ([], _CREATED, _CREATED, _RUNNING, _RUNNING, _PAUSED, _TWO, _TWO)


def draw(dice: Dice, steps: int = 12, trouble: int = 40) -> Program:
    """A program of at most `steps` operations after its beginning; `trouble` percent of them are."""
    program: Program = []
    beginning = dice.pick(BEGINNINGS)
    if dice.chance(trouble):  # something is already on its way to go wrong
        program.append(_doom(dice) if dice.chance(20) else _planned(dice))
    program += beginning
    for _ in range(1 + dice.below(steps)):
        if dice.chance(trouble // 5):
            program += _aimed(dice)
        else:
            program.append(operation(dice, trouble))
    return program


_MEETS: dict[str, tuple[Op, ...]] = {
    "container.create": (("add", 0, 1), ("create", 1)),
    "container.prepare": (("add", 0, 2), ("create", 1)),
    "container.start": (("start", 0, 0), ("start", 0, 1)),
    "container.pause": (("pause", 0, 0), ("pause", 0, 1)),
    "container.resume": (("resume", 0, 0), ("resume", 0, 1)),
    "container.kill": (("force", 0, 1),),
    "container.remove": (("force", 0, 1), ("exit", 0, 1, 0)),
    "container.unstage": (("force", 0, 1), ("force", 0, 0)),
    "container.discard": (("force", 0, 1), ("delete", 0, 1), ("force", 0, 0)),
    "process.exec": (("exec", 0, 0), ("exec", 0, 1)),
    "network.change": (("network", 1, 0, 0), ("network", 1, 1, 1), ("network", 1, 2, 0), ("network", 1, 3, 0)),
}
"""By what each effect is asked for; the others belong to the beginning or the end of a sandbox."""

_LETTING_GO = ("hypervisor.stop", "network.detach", "share.release", "container.unstage", "container.discard")

_BEGINNING = ("hypervisor.launch", "network.attach", "share.prepare", "share.plug", "agent.connect", "agent.configure")


def _aimed(dice: Dice) -> Program:
    """A fault, and what will meet it; if it hangs there, perhaps something else meanwhile."""
    kind = dice.pick(EFFECTS)
    asked = dice.pick(_MEETS.get(kind, (("create", 0), ("create", 1)) if kind in _BEGINNING else (("force", 0, 0),)))
    fault = dice.below(len(EFFECT_FAULTS))
    planned: Op = ("fault", EFFECTS.index(kind), fault)
    if kind == "network.change":
        return [("create", 1), ("iface", 1, dice.below(INTERFACES)), planned, asked, ("network", 1, 0, 0)]
    if kind in _LETTING_GO and dice.chance(20):  # what fails again when it is resolved is given up
        return [planned, planned, asked, ("resolve", 0, 0)]
    if EFFECT_FAULTS[fault] != "hang" or dice.chance(30):
        return [planned, asked]
    return [planned, ("go", asked), ("wait", dice.pick((10, 200, 4000))), operation(dice, 50)]


def operation(dice: Dice, trouble: int = 40) -> Op:
    """One operation; `trouble` percent of them are something that goes wrong."""
    return _trouble(dice) if dice.chance(trouble) else _ordinary(dice)


def _s(dice: Dice) -> int:
    return dice.pick((0, 0, 0, 0, 0, 1, 1, 2))


def _c(dice: Dice) -> int:
    return dice.pick((0, 0, 1, 1, 2))


def _ask(dice: Dice) -> Op:
    name = dice.pick(_ASKED)
    if name == "create":
        return (name, _s(dice))
    if name == "network":
        return (name, dice.pick((1, 1, 0)), dice.below(len(CHANGES)), dice.below(INTERFACES))
    if name == "kill":
        return (name, _s(dice), _c(dice), dice.below(len(SIGNALS)))
    return (name, _s(dice), _c(dice))


def _ordinary(dice: Dice) -> Op:
    which = dice.below(100)
    if which < 50:
        return _ask(dice)
    if which < 58:
        return ("go", _ask(dice))
    if which < 62:
        one = _ask(dice)
        return ("race", one, one if dice.chance(60) else _ask(dice))
    if which < 75:
        return ("wait", dice.pick(_WAITS_MS))
    if which < 88:
        return ("exit", _s(dice), dice.below(4), dice.pick(_CODES))
    if which < 97:
        return ("write", _s(dice), dice.below(4), dice.below(600))
    return ("iface", dice.pick((1, 1, 0)), dice.below(INTERFACES))


def _planned(dice: Dice) -> Op:
    which = dice.below(100)
    if which < 60:
        return ("fault", dice.below(len(EFFECTS)), dice.below(len(EFFECT_FAULTS)))
    if which < 92:
        return ("call", dice.below(len(METHODS)), dice.below(len(CALL_FAULTS)))
    return ("disk", dice.below(len(JOURNAL_FAULTS)))


def _doom(dice: Dice) -> Op:
    return (
        "doom",
        0 if dice.chance(80) else _s(dice),
        dice.below(len(BOUNDARIES)),
        dice.below(dice.pick((4, 30, 120))),
    )


_RARE: tuple[Callable[[Dice], Op], ...] = (
    lambda dice: ("qemu", _s(dice), dice.below(len(QEMU_ENDS))),
    lambda dice: ("virtiofsd", _s(dice)),
    lambda dice: ("panic", _s(dice)),
    lambda dice: ("poweroff", _s(dice)),
    lambda dice: ("silent", _s(dice)),
    lambda dice: ("break", _s(dice)),
    lambda dice: ("break", _s(dice)),
    lambda dice: ("shim", _s(dice), dice.below(4)),
    lambda dice: ("oom", _s(dice), dice.below(4)),
    lambda dice: ("deaf", _s(dice), dice.below(4)),
    lambda dice: ("lie", _s(dice), dice.below(4), dice.below(2)),
    lambda dice: ("reboot",),
    lambda dice: ("jump", dice.pick((-3600, 3600, 10**6)), dice.pick((0, 0, 3600))),
    lambda dice: ("leave", _ask(dice), dice.pick((1, 20, 500, 3000))),
)


def _trouble(dice: Dice) -> Op:
    which = dice.below(100)
    if which < 35:
        return _planned(dice)
    if which < 50:
        return _doom(dice)
    if which < 62:
        return ("crash", _s(dice))
    return dice.pick(_RARE)(dice)


def show(program: Sequence[Op]) -> str:
    """A program as text that `parse` reads, and Python as well."""
    return repr(list(program))


def parse(text: str) -> Program:
    """A program from its text. Raises `UsageError`."""
    try:
        value = literal_eval(text.strip())
        program = [_checked(op) for op in value]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise UsageError(f"this is not a program: {error}", hint='such as [("create", 0), ("force", 0, 0)]') from error
    return program


def _checked(op: object) -> Op:
    if not isinstance(op, (tuple, list)) or not op or op[0] not in NAMES:
        raise ValueError(f"`{op!r:.60}` is no operation")
    return tuple(_checked(part) if isinstance(part, (tuple, list)) else part for part in op)
