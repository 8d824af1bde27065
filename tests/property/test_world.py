# SPDX-License-Identifier: Apache-2.0
"""Lives of sandboxes in the simulated world: real runtime, recovery, supervisor and journal; everything else may go wrong.

A plain run plays 2,000 random programs. KATA_FSM_PROFILE=ci plays 20,000, as CI does (scripts/test plays them before all
other tests), and asks that every transition and fault was reached; =nightly goes on for hours (KATA_FSM_HOURS, 4 of them
by default) with other programs every night. A failure prints the command that repeats it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from world_programs import AMID, COMMONEST, FOUND, RARE, Program, dying_at, with_each_fault

from journal import Journal
from kata_fsm.testing.sim import coverage
from kata_fsm.testing.sim.campaign import attempt, attempt_alone, damage, opened, scratch
from kata_fsm.testing.sim.programs import show
from tests.support import campaign

JOBS = 2
SEEN: Counter[str] = Counter()
"""What all tests in here have reached."""


@pytest.fixture
def journal() -> Iterator[Journal]:
    with scratch() as directory, opened(directory) as journal:
        yield journal
        assert not damage(journal)


def held(program: Program, journal: Journal, seed: str) -> Counter[str]:
    """Play a program; what it reached. A failure says how to see it again."""
    seen = Counter[str]()
    verdict = attempt(program, journal, seed, seen=seen, distinct_awaits=True)
    assert not verdict.wrong, f"{verdict.wrong[0]}\nkata-fsm fuzz --seed '{seed}' --program \"{show(program)}\""
    SEEN.update(seen)
    return seen


def test_random_programs_hold() -> None:
    """Safety, liveness, truth."""
    given = campaign.parameters()
    tally = (campaign.played(given) or campaign.play(given, JOBS)).tally
    if tally.failure is not None:
        name, program = f"{given.seed}.{tally.failure.number}", show(tally.failure.shrunk)
        pytest.fail(f"{tally.failure.wrong}\nkata-fsm fuzz --seed '{name}' --program \"{program}\"")
    SEEN.update(tally.seen)
    SEEN["programs"] += tally.ran


@pytest.mark.parametrize("name", COMMONEST)
def test_the_supervisor_may_die_at_any_point_of_a_common_life(name: str, journal: Journal) -> None:
    """Before and after every append and every step of an effect, and between any two steps of its tasks."""
    program, seen = COMMONEST[name], Counter[str]()
    whole = attempt(dying_at(program, "await", 10**6), journal, name, distinct_awaits=True)
    assert not whole.wrong, whole.wrong[0]
    for boundary, count in whole.boundaries.items():
        for at in range(count):
            seen += held(dying_at(program, boundary, at), journal, f"{name} {boundary} {at}")
        assert seen[f"death at {boundary}"] >= count // 2, "most of these deaths did not happen"


@pytest.mark.parametrize("name", AMID)
def test_every_fault_may_meet_every_request(name: str, journal: Journal) -> None:
    """Each fault of each effect, and of each call to the agent, while something is asked for."""
    for number, program in enumerate(with_each_fault(*AMID[name])):
        held(program, journal, f"{name} {number}")


@pytest.mark.parametrize("name", RARE)
def test_what_is_rare_is_reached_and_holds(name: str, journal: Journal) -> None:
    assert held(RARE[name], journal, name)[name]


def test_all_of_this_means_something() -> None:
    """Every transition and every fault was reached by something above."""
    if SEEN["programs"] < campaign.CI_PROGRAMS:
        pytest.skip("only asked of as many programs as KATA_FSM_PROFILE=ci plays")
    missing = coverage.missing(SEEN)
    assert not missing, f"never reached: {missing}"


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_once_holds(name: str) -> None:
    """Programs that have found something."""
    verdict = attempt_alone(FOUND[name], name)
    assert not verdict.wrong, verdict.wrong[0]


AGAIN: Program = [
    *COMMONEST["a further container"][:4],
    *(("exec", 0, number) for number in (0, 1, 1)),
    ("crash", 0),
    ("fault", 3, 1),
    *(("write", 0, number, 9) for number in range(3)),
    *(("exit", 0, number, 0) for number in (1, 2)),
    ("race", ("exec", 0, 0), ("force", 0, 0)),
]
"""Many processes, which a new supervisor begins to watch at once."""


def head_of(program: Program, seed: str) -> str:
    """What a run is known by: the digest of its last record, which that of every other went into."""
    with scratch() as directory, opened(directory) as other:
        held(program, other, seed)
        return other.head().digest


def test_a_seed_repeats_a_run_to_the_byte() -> None:
    """Ids, times, the order of everything: the journals of two runs are the same."""
    assert len({head_of(AGAIN, "again") for _ in range(3)}) == 1


def test_a_seed_repeats_a_run_in_another_process() -> None:
    """Also where sets of words have another order, which changes from process to process."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_world as t; print(t.head_of(t.AGAIN, 'again'))"
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    heads = {
        subprocess.run(
            command,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "2", "3")
    }
    assert heads == {head_of(AGAIN, "again") + "\n"}
