# SPDX-License-Identifier: Apache-2.0
"""A campaign in several processes: each takes every n-th program, and answers its tally as JSON.

`python -m kata_fsm.testing.sim.worker` is one of them; its arguments are one JSON object.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed

import msgspec

from kata_fsm.errors import Bug, UsageError
from kata_fsm.testing.sim.campaign import SCRATCH, Parameters, Tally, explore, numbers, scratch
from kata_fsm.testing.sim.lives import Rewire
from kata_fsm.testing.sim.programs import parse, show
from kata_fsm.world import repository_root


class Share(msgspec.Struct, frozen=True):
    """One worker's part of a campaign. `handlers`: MODULE:FUNCTION to rewire with, or empty."""

    given: Parameters
    worker: int
    workers: int
    handlers: str = ""


def rewire_of(handlers: str) -> Rewire:
    """The function that MODULE:FUNCTION names; for nothing, one that does nothing. Looked for in the
    working directory, too. Raises `UsageError`."""
    if not handlers:
        return lambda wiring: None
    module, _, name = handlers.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # it is the caller's own module, and he said so
    try:
        found: Rewire = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"`{handlers}` cannot be had: {error}", hint="MODULE:FUNCTION is wanted") from error
    return found


def campaign(given: Parameters, workers: int, handlers: str = "") -> Tally:
    """Run a campaign in that many processes; the first failure by its program's number."""
    if workers == 1:
        return explore(given, numbers(given), rewire=rewire_of(handlers))
    with scratch() as directory:
        return _side_by_side(given, workers, handlers, directory)


def _side_by_side(given: Parameters, workers: int, handlers: str, directory: str) -> Tally:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([repository_root(), *sys.path]), SCRATCH: directory}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "kata_fsm.testing.sim.worker", _text(Share(given, worker, workers, handlers))],
            stdout=subprocess.PIPE,
            env=env,
        )
        for worker in range(workers)
    ]
    tallies = []
    with ThreadPoolExecutor(workers) as waiting:
        for ended in as_completed([waiting.submit(_answer, process) for process in running]):
            tally = ended.result()
            if tally is None:
                continue
            tallies.append(tally)
            if tally.failure is not None:
                for process in running:
                    process.terminate()  # one failure is enough
    return merged(tallies)


def _text(share: Share) -> str:
    return msgspec.json.encode(share).decode()


def _answer(process: subprocess.Popen[bytes]) -> Tally | None:
    """What a worker came to; None for one that was told to stop."""
    out, _ = process.communicate()
    if process.returncode == -signal.SIGTERM:
        return None
    if process.returncode:
        raise Bug(f"a worker of the campaign ended with {process.returncode}")
    return with_tuples(msgspec.json.decode(out, type=Tally))


def with_tuples(tally: Tally) -> Tally:
    """A tally that was JSON, which has no tuples."""
    if tally.failure is not None:
        tally.failure.program, tally.failure.shrunk = (
            parse(show(tally.failure.program)),
            parse(show(tally.failure.shrunk)),
        )
    return tally


def merged(tallies: list[Tally]) -> Tally:
    """One tally of several."""
    seen: Counter[str] = Counter()
    for tally in tallies:
        seen.update(tally.seen)
    failures = sorted((t.failure for t in tallies if t.failure is not None), key=lambda failure: failure.number)
    return Tally(sum(tally.ran for tally in tallies), dict(seen), failures[0] if failures else None)


def main(argv: list[str]) -> int:
    """One worker."""
    share = msgspec.json.decode(argv[0], type=Share)
    tally = explore(share.given, numbers(share.given, share.worker, share.workers), rewire=rewire_of(share.handlers))
    sys.stdout.buffer.write(msgspec.json.encode(tally))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
