# SPDX-License-Identifier: Apache-2.0
"""phases: where a cold run's time goes, from the journal.

Records carry CLOCK_BOOTTIME, and the command's start and end are read by the same clock. So one run is cut, without
gaps, at the records that everything waited for; the pieces add up to its wall time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench import cold
from bench.kit import BenchError, Kit, Ran
from bench.report import Report, Series

RUNS = 7

Story = dict[str, Any]
Moment = Callable[[dict[str, Any]], bool]


def _command(name: str) -> Moment:
    return lambda record: record["lane"] == "command" and record["what"] == name


def _done(name: str) -> Moment:
    return lambda record: record["lane"] == "outcome" and record["what"] == name


def _note(name: str) -> Moment:
    return lambda record: record["lane"] == "note" and record["what"] == name


CUTS: tuple[tuple[str, Moment], ...] = (
    ("command line and supervisor start", _command("create_sandbox")),
    ("QEMU starts", _done("hypervisor.launch")),
    ("the guest boots, the agent answers", _done("agent.connect")),
    ("the share is plugged", _done("share.plug")),
    ("the guest is configured", _done("agent.configure")),
    ("the container is created", _done("container.create")),
    ("the command line asks for the start", _command("start")),
    ("the container is started", _done("container.start")),
    ("the workload runs and its end is known", _note("process_exited")),
    ("its output is handed over", _note("drained")),
    ("the agent is dismissed", _done("agent.disconnect")),
    ("QEMU is stopped", _done("hypervisor.stop")),
    ("host resources are released", _done("container.discard")),
)
LAST = "the supervisor and the command line end"


def cut(ran: Ran, story: Story) -> dict[str, float]:
    """Milliseconds by phase. Raises BenchError when a moment is missing."""
    pieces, at = {}, ran.started_ns
    for name, moment in CUTS:
        found = next((record["mono_ns"] for record in story["records"] if moment(record)), None)
        if found is None:
            raise BenchError(f"the story of `{story['stream']}` has no moment for `{name}`")
        pieces[name] = (found - at) / 1e6
        at = found
    pieces[LAST] = (ran.ended_ns - at) / 1e6
    return pieces


def report(found: cold.Cold) -> Report:
    """Medians by phase, in the order of a run."""
    rows = [cut(ran, story) for ran, story in zip(found.runs, found.stories, strict=True)]
    series = [Series(name, "ms", [row[name] for row in rows]) for name in rows[0]]
    return Report("phases", series, [], [f"the medians add up to {sum(each.median for each in series) / 1e3:.2f} s"])


def run(kit: Kit, runs: int) -> Report:
    return report(cold.measure(kit, runs))
