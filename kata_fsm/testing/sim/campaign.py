# SPDX-License-Identifier: Apache-2.0
"""Many programs: drawn from one seed, run in one or several processes, counted; the first failure shrunk.

Program number N of seed S is the same wherever and whenever it is drawn, so a failure is told by two numbers.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from journal import Journal
from kata_fsm.effects.fake.dice import Dice
from kata_fsm.snapshots import PodProjector
from kata_fsm.testing.sim import programs
from kata_fsm.testing.sim.engine import Verdict, run
from kata_fsm.testing.sim.lives import Rewire
from kata_fsm.testing.sim.ops import Op
from kata_fsm.testing.sim.shrink import shrink
from kata_fsm.world import WORLD

PROGRAMS_PER_JOURNAL = 100
"""After so many a new journal is begun: each is verified as a whole, and its streams share one map."""


SCRATCH = "KATA_FSM_FUZZ_SCRATCH"
"""Environment: where a worker makes its directories. It may be told to stop at any time, and cleans nothing then."""


class Parameters(msgspec.Struct, frozen=True):
    """What a campaign is made of. `steps`: operations of a program at most; `trouble`: percent of them that are."""

    seed: str = "0"
    programs: int = 1000
    steps: int = 12
    trouble: int = 40
    seconds: float | None = None


class Failure(msgspec.Struct):
    """A program that failed: which, what it was, what did not hold, and the shortest that fails alike."""

    number: int
    program: list[Op]
    wrong: str
    shrunk: list[Op] = []


class Tally(msgspec.Struct):
    """What a campaign came to."""

    ran: int = 0
    seen: dict[str, int] = {}
    failure: Failure | None = None


def program_of(given: Parameters, number: int) -> list[Op]:
    """Program `number` of a campaign."""
    return programs.draw(Dice(given.seed).fork(number), given.steps, given.trouble)


@contextlib.contextmanager
def scratch() -> Iterator[str]:
    """A directory in memory, if there is such a file system; a worker's is in its campaign's, which outlives it."""
    base = os.environ.get(SCRATCH) or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    directory = tempfile.mkdtemp(prefix="kata-fsm-fuzz-", dir=base)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def attempt(
    program: Sequence[Op],
    journal: Journal,
    seed: int | str,
    *,
    seen: Counter[str] | None = None,
    rewire: Rewire = lambda wiring: None,
    distinct_awaits: bool = False,
) -> Verdict:
    """Run a program; an error of the engine or of what it drives is a failure as well. What is printed is dropped."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            return run(program, journal, seed, seen=seen, rewire=rewire, distinct_awaits=distinct_awaits)
        except Exception as error:
            return Verdict(["".join(traceback.format_exception(error)[-12:])], [], {})


def attempt_alone(program: Sequence[Op], seed: int | str, *, rewire: Rewire = lambda wiring: None) -> Verdict:
    """The same in a journal of its own, which is verified."""
    with scratch() as directory, opened(directory) as journal:
        verdict = attempt(program, journal, seed, rewire=rewire)
        return verdict if verdict.wrong else msgspec.structs.replace(verdict, wrong=damage(journal))


def opened(directory: str) -> contextlib.AbstractContextManager[Journal]:
    """A new journal in `directory`. Not synced: no power is cut here."""
    return Journal.open(directory + "/journal", sync=False, map_bytes=1 << 26)


def damage(journal: Journal) -> list[str]:
    """What `verify` has to say about the whole journal: its chain, and its projections and snapshots against the fold."""
    found = [*journal.verify(), *journal.verify_folds(PodProjector())]
    return [f"{finding.kind} at {finding.seq}: {finding.detail}" for finding in found[:3]]


def numbers(given: Parameters, worker: int = 0, workers: int = 1) -> Iterator[int]:
    """The numbers of the programs that fall to one of several workers, as long as time allows."""
    begun = WORLD.mono_ns()
    for number in range(worker, given.programs, workers):
        if given.seconds is not None and WORLD.mono_ns() - begun > given.seconds * 1e9:
            return
        yield number


def explore(
    given: Parameters,
    which: Iterable[int],
    *,
    rewire: Rewire = lambda wiring: None,
    progress: Callable[[int], None] = lambda ran: None,
) -> Tally:
    """Run programs until one fails or none is left. The failure is shrunk."""
    seen: Counter[str] = Counter()
    ran, todo, failure = 0, iter(which), None
    more = True
    gc.disable()  # what trio leaves in circles is collected after each journal: one program takes milliseconds
    while more and failure is None:
        with scratch() as directory, opened(directory) as journal:
            last = -1
            for _ in range(PROGRAMS_PER_JOURNAL):
                number = next(todo, None)
                if number is None:
                    more = False
                    break
                last, ran = number, ran + 1
                program = program_of(given, number)
                verdict = attempt(program, journal, _name(given, number), seen=seen, rewire=rewire)
                if verdict.wrong:
                    failure = Failure(number, program, verdict.wrong[0])
                    break
                progress(ran)
            gc.collect()
            wrong = [] if failure is not None else damage(journal)
            if wrong:
                failure = Failure(last, program_of(given, last), wrong[0])
    gc.enable()
    if failure is not None:
        failure.shrunk = minimal(failure.program, _name(given, failure.number), failure.wrong, rewire=rewire)
    return Tally(ran, dict(seen), failure)


def _name(given: Parameters, number: int) -> str:
    return f"{given.seed}.{number}"


def reason(wrong: str) -> str:
    """What two failures of the same kind have in common: the words of it, without names and numbers."""
    line = wrong.strip().splitlines()[-1] if wrong.startswith("Traceback") else wrong.splitlines()[0]
    return " ".join(word for word in line.split() if word.isalpha())


def minimal(program: Sequence[Op], seed: str, wrong: str, *, rewire: Rewire = lambda wiring: None) -> list[Op]:
    """The shortest program that fails for the same reason."""
    wanted = reason(wrong)

    def fails(candidate: Sequence[Op]) -> bool:
        verdict = attempt_alone(candidate, seed, rewire=rewire)
        return bool(verdict.wrong) and reason(verdict.wrong[0]) == wanted

    return shrink(program, fails) if fails(program) else list(program)
