# SPDX-License-Identifier: Apache-2.0
"""`python -m bench [NAME ...] [--runs N] [--json]`: needs root, the guest image, and a machine with little else to do."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator

from bench import cold, inside, journal, memory, network, phases, podman, programs, reading, stdout
from bench.kit import BenchError, Kit, machine
from bench.report import Report, render

RUN: dict[str, tuple[Callable[[Kit, int], Report], int]] = {
    "cold": (cold.run, cold.RUNS),
    "phases": (phases.run, phases.RUNS),
    "exec": (inside.run, inside.RUNS),
    "reading": (reading.run, reading.RUNS),
    "journal": (journal.run, journal.RUNS),
    "memory": (memory.run, memory.RUNS),
    "network": (network.run, network.RUNS),
    "stdout": (stdout.run, stdout.RUNS),
    "podman": (podman.run, podman.RUNS),
    "programs": (programs.run, programs.RUNS),
}


def reports(names: list[str], runs: int | None) -> Iterator[Report]:
    """One after the other, each with an installation of its own. `cold` and `phases` share their runs."""
    waiting = list(names)
    if {"cold", "phases"} <= set(waiting):
        with Kit() as kit:
            found = cold.measure(kit, runs or cold.RUNS)
        waiting = [name for name in waiting if name not in ("cold", "phases")]
        yield cold.report(found)
        yield phases.report(found)
    for name in waiting:
        measure, usual = RUN[name]
        with Kit() as kit:
            yield measure(kit, runs or usual)


def main() -> int:
    """Exit code 0 when everything was measured, whether or not every goal is met; 1 when something did not work."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUN)}; default: all")
    parser.add_argument("--runs", type=int, metavar="N", help="of each; default: what suits the benchmark")
    parser.add_argument("--json", action="store_true", help="with every sample")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in RUN]
    if unknown or (options.runs is not None and options.runs < 1):
        parser.error(f"there is no benchmark `{unknown[0]}`" if unknown else "--runs: at least 1")
    head = machine()
    try:
        found = list(reports(options.names or list(RUN), options.runs))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps({"machine": head, "reports": [report.to_dict() for report in found]}, indent=1))
    else:
        sys.stdout.write(render(found, head))
    return 0


if __name__ == "__main__":
    sys.exit(main())
