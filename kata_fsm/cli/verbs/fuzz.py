# SPDX-License-Identifier: Apache-2.0
"""`fuzz`: lives of sandboxes in a simulated world in which everything may go wrong, until something does not hold.

fuzz [--seed S] [--programs N] [--steps N] [--faults PERCENT] [--time LIMIT]
fuzz --seed S --program TEXT       one program, as it was printed

Touches neither this host nor its journal. A failure is made minimal, kept as a bundle for `replay`, and told with the
command that repeats it; exit code 1.
"""

from __future__ import annotations

import os
import shlex
import sys
from argparse import Namespace
from typing import TYPE_CHECKING

from kata_fsm.cli.arguments import Parser
from kata_fsm.cli.context import Context
from kata_fsm.errors import EXIT_FAILED, UsageError
from kata_fsm.world import WORLD

if TYPE_CHECKING:
    from kata_fsm.testing.sim.campaign import Parameters, Tally
    from kata_fsm.testing.sim.ops import Op

PROGRAMS = 1000
STEPS = 12
FAULTS_PERCENT = 40
_STEPS_MAX = 500
_JOBS_MAX = 64


def _options(argv: list[str]) -> Namespace:
    parser = Parser("fuzz", "run random lives of sandboxes in a simulated world, and look for what does not hold")
    add = parser.add_argument
    add("--seed", metavar="S", help="where the programs come from (default: drawn, and printed)")
    add("--programs", type=int, default=PROGRAMS, metavar="N", help="how many")
    add("--steps", type=int, default=STEPS, metavar="N", help="operations of a program at most")
    add("--faults", type=int, default=FAULTS_PERCENT, metavar="PERCENT", help="how many operations are trouble")
    add("--time", default=None, metavar="LIMIT", help="begin no further program after this, such as `90s` or `2h`")
    add("--jobs", type=int, default=min(os.cpu_count() or 1, _JOBS_MAX), metavar="N", help="processes")
    add("--program", default=None, metavar="TEXT", help="run this one program instead")
    add("--handlers", default="", metavar="MODULE:FUNCTION", help="called with each wiring, to try handlers of yours")
    add("--output", "-O", default=".", metavar="DIR", help="where a failure's bundle goes")
    given = parser.parse_args(argv)
    for name, least, most in (("programs", 1, 10**9), ("steps", 1, _STEPS_MAX), ("faults", 0, 100), ("jobs", 1, _JOBS_MAX)):
        if not least <= getattr(given, name) <= most:
            raise UsageError(f"--{name}: `{getattr(given, name)}` is not from {least} to {most}")
    given.seed = given.seed or WORLD.random_bytes(4).hex()
    return given


def run(context: Context, argv: list[str]) -> int:
    """Run a campaign, or one program."""
    given = _options(argv)
    from kata_fsm.cli.durations import seconds_of
    from kata_fsm.testing.sim.campaign import Parameters
    from kata_fsm.testing.sim.programs import parse
    from kata_fsm.testing.sim.worker import campaign, rewire_of

    rewire_of(given.handlers)  # a wrong name is refused before anything is begun
    if given.program is not None:
        return _one(given, parse(given.program))
    seconds = None if given.time is None else float(seconds_of(given.time))
    parameters = Parameters(given.seed, given.programs, given.steps, given.faults, seconds)
    print(_heading(parameters, given.jobs), flush=True)
    tally = campaign(parameters, min(given.jobs, given.programs), given.handlers)
    if tally.failure is None:
        print(_passed(tally))
        return 0
    failure = tally.failure
    print(f"failed: program {failure.number} of {tally.ran} that were run: {_line(failure.wrong)}")
    return _report(given, f"{given.seed}.{failure.number}", failure.shrunk, failure.wrong)


def _heading(given: Parameters, jobs: int) -> str:
    limit = "" if given.seconds is None else f" --time {given.seconds:g}s"
    return (
        f"fuzz --seed {given.seed} --programs {given.programs} --steps {given.steps} --faults {given.trouble}{limit} "
        f"--jobs {jobs}"
    )


def _passed(tally: Tally) -> str:
    from kata_fsm.testing.sim import coverage

    rows, faults = coverage.transitions(), coverage.faults()
    reached = {name for name, count in tally.seen.items() if count}
    return (
        f"ok: {tally.ran} programs, {len(rows & reached)} of {len(rows)} transitions and {len(faults & reached)} of "
        f"{len(faults)} faults reached; everything held"
    )


def _one(given: Namespace, program: list[Op]) -> int:
    from kata_fsm.testing.sim.campaign import attempt_alone
    from kata_fsm.testing.sim.worker import rewire_of

    verdict = attempt_alone(program, given.seed, rewire=rewire_of(given.handlers))
    if not verdict.wrong:
        print("ok: everything held")
        return 0
    print(f"failed: {_line(verdict.wrong[0])}")
    return _report(given, given.seed, program, verdict.wrong[0])


def _report(given: Namespace, seed: str, program: list[Op], wrong: str) -> int:
    """The bundle, and how to see it again."""
    from kata_fsm.testing.sim.keeping import keep
    from kata_fsm.testing.sim.programs import show
    from kata_fsm.testing.sim.worker import rewire_of

    words = ["kata-fsm", "fuzz", "--seed", seed, "--program", show(program)]
    command = shlex.join([*words, "--handlers", given.handlers] if given.handlers else words)
    about = {"seed": seed, "program": show(program), "wrong": wrong, "command": command}
    path = os.path.join(given.output, f"fuzz-{''.join(c if c.isalnum() else '-' for c in seed)}.kfsm")
    kept = keep(path, program, seed, about, rewire=rewire_of(given.handlers))
    sys.stdout.write(f"program: {show(program)}\n")
    if kept:
        sys.stdout.write(f"bundle:  {path}    (kata-fsm replay {shlex.quote(path)})\n")
    sys.stdout.write(f"again:   {command}\n")
    return EXIT_FAILED


def _line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines and lines[0].startswith(("Traceback", "  ")) else (lines or [""])[0]
