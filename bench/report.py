# SPDX-License-Identifier: Apache-2.0
"""What a benchmark answers, and how it is printed."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

AT_MOST, AT_LEAST = "at most", "at least"


@dataclass
class Series:
    """Samples of one quantity, in `unit`."""

    name: str
    unit: str
    samples: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def row(self) -> list[str]:
        low, high = min(self.samples), max(self.samples)
        return [self.name, *(f"{value:.{_digits(high)}f}" for value in (self.median, low, high)), self.unit, self.count]

    @property
    def count(self) -> str:
        return str(len(self.samples))


def _digits(value: float) -> int:
    return 3 if value < 10 else 1 if value < 1000 else 0


@dataclass
class Claim:
    """A goal and what was measured. `measured` None: it was not, and nothing is claimed."""

    name: str
    bound: str
    goal: float
    measured: float | None
    unit: str = "times"

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured <= self.goal if self.bound == AT_MOST else self.measured >= self.goal

    def row(self) -> list[str]:
        measured = "not measured" if self.measured is None else f"{self.measured:.2f}"
        verdict = {True: "met", False: "NOT MET", None: "-"}[self.met]
        return [self.name, f"{self.bound} {self.goal:g} {self.unit}", measured, verdict]


@dataclass
class Report:
    """One benchmark's outcome."""

    name: str
    series: list[Series] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "series": [
                {"name": s.name, "unit": s.unit, "median": s.median, "samples": [round(v, 6) for v in s.samples]}
                for s in self.series
            ],
            "claims": [
                {"name": c.name, "bound": c.bound, "goal": c.goal, "measured": c.measured, "met": c.met}
                for c in self.claims
            ],
            "notes": self.notes,
        }


def ratio(above: Series, below: Series) -> float:
    """Of the medians."""
    return above.median / below.median


def render(reports: list[Report], machine: list[str]) -> str:
    """The whole table as text."""
    lines = [f"# {line}" for line in machine]
    series = [[report.name, *each.row()] for report in reports for each in report.series]
    if series:
        lines += ["", *_table([["benchmark", "what", "median", "least", "most", "unit", "n"], *series], "llrrrlr")]
    claims = [[report.name, *claim.row()] for report in reports for claim in report.claims]
    if claims:
        lines += ["", *_table([["benchmark", "claim", "goal", "measured", ""], *claims], "lllrl")]
    notes = [f"- {report.name}: {note}" for report in reports for note in report.notes]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def _table(rows: list[list[str]], alignment: str) -> list[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(alignment))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, alignment, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines
