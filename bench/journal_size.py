# SPDX-License-Identifier: Apache-2.0
"""Does the size of the journal matter to whoever opens it, or reads one container's state? Part of `bench/journal.py`."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from bench.kit import Kit, cpu_s, say
from bench.life import Step, write_lives
from bench.reading import Installation
from bench.report import AT_MOST, Claim, Report, Series, ratio
from journal import Journal, peek
from kata_fsm.projections import container_key

ROUNDS = 20  # for each run asked for
OPENING_MS = 5.0


def installations(kit: Kit, steps: list[Step], records: int) -> tuple[Installation, Installation]:
    """Two with one running container each; the journal of the second has another `records` records."""
    small, large = Installation(kit, 1, "small"), Installation(kit, 1, "large")
    with Journal.open(large.journal, sync=False) as journal:
        write_lives(journal, steps, records)
    say(f"journal: {records} records written to be read")
    for installation in (small, large):
        installation.check(kit)
    return small, large


def measure(kit: Kit, runs: int, small: Installation, large: Installation, report: Report) -> None:
    """One container's state from the small journal and from the large one, and opening the large one, in turn."""
    made = {"empty journal": small, "large journal": large}
    path = str(large.journal)
    ways: dict[str, Callable[[], Journal | peek.Peek]] = {
        "for writing": partial(Journal.open, path),
        "read-only": partial(Journal.open, path, read_only=True),
        "for a peek": partial(peek.open, path),
    }
    got = {name: Series(f"state's projection, {name}", "ms", []) for name in made}
    state = {name: Series(f"CPU of kata-fsm state, {name}", "ms", []) for name in made}
    opened = {how: Series(f"opening {how}, large journal", "ms", []) for how in ways}
    for number in range(ROUNDS * runs + 1):
        took = {name: _get(each) for name, each in made.items()}
        cpu = {name: cpu_s(kit.argv("state", each.name), each.env) * 1e3 for name, each in made.items()}
        opening = {how: _open(way) for how, way in ways.items()}
        if number:
            for name in made:
                got[name].samples.append(took[name])
                state[name].samples.append(cpu[name])
            for how, ms in opening.items():
                opened[how].samples.append(ms)
    say(f"journal: {ROUNDS * runs} rounds of state and opening")
    report.series += [*got.values(), *state.values(), *opened.values()]
    (few, many), (few_cpu, many_cpu) = got.values(), state.values()
    report.claims += [
        Claim("state's projection, a million records / empty", AT_MOST, 1.2, ratio(many, few)),
        Claim("CPU of kata-fsm state, a million records / empty", AT_MOST, 1.2, ratio(many_cpu, few_cpu)),
        *(Claim(f"opening {how}", AT_MOST, OPENING_MS, each.median, "ms") for how, each in opened.items()),
    ]


def _get(installation: Installation) -> float:
    """Milliseconds to open, look up the container as `state` does, and close."""
    key = container_key(installation.env["KATA_FSM_RUN"], installation.name)
    started = time.perf_counter()
    with peek.open(str(installation.journal)) as peeked:
        found = peeked.get(key)
    took = time.perf_counter() - started
    assert found is not None, "the container is not there"
    return took * 1e3


def _open(way: Callable[[], Journal | peek.Peek]) -> float:
    started = time.perf_counter()
    opened = way()
    took = time.perf_counter() - started
    opened.close()
    return took * 1e3
