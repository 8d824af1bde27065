# SPDX-License-Identifier: Apache-2.0
"""A failing program made minimal: operations are left out, then made simpler, as long as it still fails.

Deterministic: the same program, seed and budget shrink to the same. What counts as failing is the caller's to say, so that
a shrunk program fails for the same reason as the long one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from kata_fsm.testing.sim.ops import Op

Program = list[Op]
Fails = Callable[[Program], bool]

TRIES_MAX = 400
"""Runs at the most: a program takes some tens of milliseconds."""


def shrink(program: Sequence[Op], fails: Fails, tries: int = TRIES_MAX) -> Program:
    """A program that still `fails` and from which nothing more can be taken, as far as `tries` runs can tell."""
    best = list(program)
    for _ in range(tries):  # each round makes it smaller, or is the last
        smaller, used = _smaller(best, fails, tries)
        tries -= used
        if smaller is None or tries <= 0:
            return best if smaller is None else smaller
        best = smaller
    return best


def _smaller(program: Program, fails: Fails, tries: int) -> tuple[Program | None, int]:
    used = 0
    for candidate in _candidates(program):
        if used >= tries:
            break
        used += 1
        if fails(candidate):
            return candidate, used
    return None, used


def _candidates(program: Program) -> Iterator[Program]:
    """Every simpler program, the boldest first."""
    size = len(program) // 2
    while size >= 1:
        for start in range(0, len(program), size):
            yield program[:start] + program[start + size :]
        size //= 2
    for index, op in enumerate(program):
        for simpler in _simpler(op):
            yield [*program[:index], simpler, *program[index + 1 :]]


def _simpler(op: Op) -> Iterator[Op]:
    name, *parts = op
    if name in ("go", "leave", "race"):  # what it does without the complication
        yield from (part for part in parts if isinstance(part, tuple))
    for index, part in enumerate(parts):
        if isinstance(part, tuple):
            for simpler in _simpler(part):
                yield (name, *parts[:index], simpler, *parts[index + 1 :])
        elif isinstance(part, int) and part > 0:
            for lower in {0, part // 2, part - 1}:
                yield (name, *parts[:index], lower, *parts[index + 1 :])
