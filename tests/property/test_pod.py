# SPDX-License-Identifier: Apache-2.0
"""Random lives of a pod: whatever happens in whatever order, what `pod_programs` checks holds, and an end is reached.

By default these are the programs that CI runs: the same ones every time, half a minute of them. KATA_FSM_PROFILE=nightly
takes hours of random ones; a failure prints its program, which is all that is needed to see it again.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pod_programs import Op, Program, run

from kata_fsm.machines.coupling import RULES
from kata_fsm.machines.intents import PARAMS
from kata_fsm.machines.pod import TABLES

NIGHTLY = os.environ.get("KATA_FSM_PROFILE") == "nightly"

# Not a registered profile: that would hold for every other hypothesis test of the same run as well.
EFFORT = settings(
    max_examples=500_000 if NIGHTLY else 5_000,
    derandomize=not NIGHTLY,
    database=None,
    deadline=None,
    print_blob=NIGHTLY,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

_small = st.integers(0, 8)
_container = st.sampled_from([0, 0, 0, 1, 1, 2])
_code = st.sampled_from([0, 1, 137, 255])


def _ops(*names: str, **numbers: st.SearchStrategy[int]) -> st.SearchStrategy[Op]:
    return st.tuples(st.sampled_from(names), *numbers.values())


_progress = _ops("done", n=_small) | st.just(("settle",)) | _ops("attach", n=_small)
_trouble = (
    _ops("failed", n=_small) | _ops("vm_died", "agent_lost", "share_died", "rebooted", "crash") | _ops("late", n=_small)
)
_ask = _ops("add", "start", "exec", "pause", "resume", "kill", "update", c=_container)
_end = _ops("delete", "force", c=_container)
_other = _ops("new", "net", "stop", "stop!", "resolve", "change") | _ops("abandon", n=_small)
_guest = _ops("exited", n=_small, code=_code) | _ops("drained", n=_small)

_CREATED: list[Op] = [("new",), ("attach", 0), ("settle",)]
_RUNNING: list[Op] = [*_CREATED, ("start", 0), ("settle",)]
_PAUSED: list[Op] = [*_RUNNING, ("pause", 0), ("settle",)]
_TWO: list[Op] = [*_RUNNING, ("add", 1), ("attach", 1), ("settle",), ("start", 1), ("settle",)]

_beginnings = st.one_of(
    st.just([]),
    st.integers(0, 12).map(lambda n: [("new",), ("attach", 0), ("add", 1), ("attach", 1), ("settle", n)]),
    st.sampled_from([_CREATED, _RUNNING, _TWO]),
    st.sampled_from([[*_CREATED, ("start", 0)], [*_RUNNING, ("pause", 0)], [*_RUNNING, ("exec", 0), ("attach", 1)]]),
    st.sampled_from([[*_PAUSED, ("resume", 0)], [*_TWO, ("exec", 0), ("attach", 2), ("settle",)], _PAUSED]),
    st.just([*_TWO, ("exited", 1, 0), ("drained", 1)]),
)
_op = st.one_of(_progress, _progress, _ask, _end, _guest, _trouble, _other)


def _networked(program: list[Op]) -> list[Op]:
    """The same with a network model: its network is plugged, and can be changed."""
    return [("net",) if op == ("new",) else op for op in program]


programs = st.builds(
    lambda beginning, rest: [*beginning, *rest],
    _beginnings | _beginnings.map(_networked) | _beginnings.map(lambda begun: [*_networked(begun), ("change",)]),
    st.lists(_op, max_size=8) | st.lists(_op, min_size=8, max_size=30),
)


PINNED: dict[str, Program] = {
    "deleted before it was created, in a pod that goes on": [*_RUNNING, ("add", 1), ("settle",), ("force", 1)],
    "an exit code of 0 with an unknown cause": [*_CREATED, ("exited", 0, 255)],
    "deleted while it is brought up: the name stays until everything is released": [("new",), ("force", 0)],
    "virtiofsd dies while its device is being plugged": [("new",), ("attach", 0), ("settle", 4), ("share_died",)],
    "the host is started anew while output is still waited for": [*_RUNNING, ("vm_died",), ("rebooted",)],
    "the host is started anew and frees what was stuck": [*_RUNNING, ("vm_died",), ("failed", 0), ("rebooted",)],
    "neither start nor kill works": [*_TWO[:-2], ("start", 1), ("failed", 0), ("failed", 0)],
    "limited anew while it starts, is killed and ends": [
        *_TWO[:-2], ("start", 1), ("update", 1), ("failed", 0), ("update", 1), ("failed", 0), ("update", 1),
    ],
    "deletion forced while paused, in a pod that goes on": [*_TWO, ("pause", 1), ("settle",), ("force", 1)],
    "deletion forced while pausing": [*_RUNNING, ("add", 1), ("pause", 0), ("force", 0)],
    "deletion forced while resuming": [*_PAUSED, ("resume", 0), ("force", 0), ("failed", 0)],
    "deletion forced while the guest makes it": [*_RUNNING, ("add", 1), ("attach", 1), ("settle", 1), ("force", 1)],
    "deletion forced twice": [*_TWO, ("force", 1), ("force", 1), ("settle", 1), ("force", 1), ("vm_died",)],
    "deleted while it is being removed": [*_TWO, ("exited", 1, 0), ("drained", 1), ("delete", 1), ("failed", 0)],
    "deleted while it is being discarded": [
        *_TWO, ("exited", 1, 0), ("drained", 1), ("delete", 1), ("settle", 2), ("delete", 1), ("failed", 0), ("delete", 1),
    ],
    "a stuck VMM is given up": [*_RUNNING, ("vm_died",), ("failed", 0), ("resolve",), ("failed", 0)],
    "a stuck network, tree and share are given up": [
        *_RUNNING, ("resolve",), ("done", 0), ("done", 0), ("failed", 0), ("failed", 0), ("failed", 0),
    ],
    "a name that cannot be freed is given up": [
        *_RUNNING, ("exited", 0, 0), ("drained", 0), ("settle",), ("delete", 0), ("failed", 0), ("resolve",), ("resolve",),
        ("failed", 0),
    ],
    "an end is resolved, and once more": [
        *_RUNNING, ("exited", 0, 0), ("drained", 0), ("settle",), ("resolve",), ("resolve",),
    ],
    "the caller gives up while its process is being spawned": [
        *_RUNNING, ("exec", 0), ("attach", 1), ("abandon", 1), ("attach", 1), ("vm_died",), ("late", 0),
    ],
}  # fmt: skip
"""Programs that once found something, or that reach a corner which random ones reach rarely."""


@pytest.mark.parametrize("program", PINNED.values(), ids=PINNED.keys())
def test_pinned_programs_hold(program: Program) -> None:
    """What was once wrong, or is rarely reached, holds."""
    run(program)


def test_every_program_holds_what_must_hold_and_together_they_reach_everything() -> None:
    """Safety and liveness of random programs; and, so that this means something, that they went everywhere."""
    seen: Counter[str] = Counter()

    @EFFORT
    @given(programs)
    def explore(program: Program) -> None:
        run(program, seen)

    for program in PINNED.values():
        run(program, seen)
    explore()
    everything = {f"rule {rule.name}" for rule in RULES}
    everything |= {f"{t.name} {source} {trigger}" for t in TABLES.values() for source, trigger, _ in t.rows}
    everything |= {f"{end} {kind}" for kind in PARAMS for end in ("done", "failed")}
    missing = sorted(everything - set(seen))
    assert not missing, f"never reached: {missing}"
