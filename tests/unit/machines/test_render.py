# SPDX-License-Identifier: Apache-2.0
"""The generated page of state grids and diagrams is the one in `docs/`."""

from __future__ import annotations

from pathlib import Path

from kata_fsm.machines.coupling import RULES
from kata_fsm.machines.pod import TABLES
from kata_fsm.machines.render import diagram, render, state_grid

PAGE = Path(__file__).parents[3] / "docs" / "machines.md"


def test_the_page_is_up_to_date() -> None:
    """After a change of the tables: `python -m kata_fsm.machines.render > docs/machines.md`."""
    assert PAGE.read_text(encoding="utf-8") == render(), "run: python -m kata_fsm.machines.render > docs/machines.md"


def test_everything_is_on_it() -> None:
    """Every state has a line in its grid, every move an arrow, every rule a row."""
    page = render()
    for table in TABLES.values():
        assert len(state_grid(table)) == len(table.states) + 2
        arrows = "\n".join(diagram(table))
        for source, trigger, dest in table.rows:
            assert source == dest or f"{source} --> {dest}: " in arrows
            assert trigger in page
    for rule in RULES:
        assert rule.why in page
        assert "lambda" not in page
