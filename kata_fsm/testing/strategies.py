# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies for programs in the simulated world. Hypothesis is needed only by whoever calls these.

Programs are drawn by `kata_fsm.testing.sim.programs`, from a seed that hypothesis chooses: what it shrinks is the list of
operations, which is data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kata_fsm.effects.fake.dice import Dice
from kata_fsm.testing.sim import programs as sim

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from kata_fsm.testing.sim.ops import Op

_SEEDS = 1 << 32


def operations(trouble: int = 40) -> SearchStrategy[Op]:
    """One operation; `trouble` percent of them are something that goes wrong."""
    from hypothesis import strategies as st

    return st.integers(0, _SEEDS).map(lambda seed: sim.operation(Dice(seed), trouble))


def programs(steps: int = 12, trouble: int = 40) -> SearchStrategy[list[Op]]:
    """A program: a beginning (nothing, a sandbox, one that runs, ...), and at most `steps` operations after it."""
    from hypothesis import strategies as st

    return st.builds(
        lambda beginning, rest: [*beginning, *rest],
        st.sampled_from(sim.BEGINNINGS),
        st.lists(operations(trouble), min_size=1, max_size=steps),
    )
