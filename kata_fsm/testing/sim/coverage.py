# SPDX-License-Identifier: Apache-2.0
"""What a campaign must have reached to mean something: every transition that a simulated world can cause, every fault.

Counters are named as `Universe.seen` counts them. What cannot be reached stands here with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping

from kata_fsm.effects.fake.faults import BOUNDARIES, CALL_FAULTS, EFFECT_FAULTS, JOURNAL_FAULTS
from kata_fsm.machines.intents import PARAMS
from kata_fsm.machines.pod import TABLES
from kata_fsm.testing.sim.truth import LEFT

UNREACHABLE: dict[str, str] = {}
"""Counters that no program reaches, and why."""


def transitions() -> frozenset[str]:
    """Every row of every table."""
    return frozenset(
        f"{table.name} {source} {trigger}" for table in TABLES.values() for source, trigger, _ in table.rows
    )


def faults() -> frozenset[str]:
    """Every fault of every effect, call and append, and every kind of death."""
    return frozenset(
        {f"fault {kind} {fault}" for kind in PARAMS for fault in EFFECT_FAULTS}
        | {f"fault call {fault}" for fault in CALL_FAULTS}
        | {f"fault append {fault}" for fault in JOURNAL_FAULTS}
        | {f"death at {boundary}" for boundary in BOUNDARIES}
        | {"death by crash", "host rebooted", "lie exit", "lie output", "recovered twice"}
        | {f"left {machine}" for machine in LEFT}
    )


def missing(seen: Mapping[str, int]) -> list[str]:
    """What should have been reached and was not."""
    return sorted((transitions() | faults()) - set(UNREACHABLE) - {name for name, count in seen.items() if count})
