# SPDX-License-Identifier: Apache-2.0
"""A program's streams as a bundle, to be read with `replay`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from kata_fsm.testing.sim.campaign import attempt, opened, scratch
from kata_fsm.testing.sim.lives import Rewire
from kata_fsm.testing.sim.ops import Op


def keep(
    path: str, program: Sequence[Op], seed: str, about: dict[str, Any], *, rewire: Rewire = lambda wiring: None
) -> bool:
    """Run a program and keep its streams in a bundle at `path`; False when it left none.

    Raises what `Journal.export` raises.
    """
    with scratch() as directory, opened(directory) as journal:
        attempt(program, journal, seed, rewire=rewire)
        streams = [info.stream for info in journal.streams()]
        if streams:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            journal.export(streams, path, about)
        return bool(streams)
