# SPDX-License-Identifier: Apache-2.0
"""One program, one trio run under a virtual clock, one verdict.

A run is a function of its seed and program: chance comes from `Dice`, time from the virtual clock, and the order in which
trio runs tasks that are due at once from a generator that is seeded here. (Trio offers that for property tests only, in
names of its own that begin with an underscore; there is no public one.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec
import trio

from journal import Journal
from kata_fsm.effects.fake.clock import Virtual, nap
from kata_fsm.effects.fake.dice import Dice
from kata_fsm.machines import outstanding, sandbox
from kata_fsm.recovery import recover
from kata_fsm.runtime import Runtime
from kata_fsm.testing.sim.lives import Rewire
from kata_fsm.testing.sim.ops import Actor, Op
from kata_fsm.testing.sim.universe import Broken, Universe

Program = Sequence[Op]

VIRTUAL_S_MAX = 7200.0
"""A program that has not ended by then, by its own clock, never will."""

ATTEMPTS = 4

RECOVERED_TWICE_PERCENT = 40
"""How many programs end with every supervisor dead and two recoveries in a row, before everything is deleted."""


class Verdict(msgspec.Struct):
    """What became of a program. `wrong` is empty when everything held; `streams` are its streams in the journal."""

    wrong: list[str]
    streams: list[str]
    boundaries: dict[str, int]


def run(
    program: Program,
    journal: Journal,
    seed: int | str = 0,
    *,
    seen: Counter[str] | None = None,
    rewire: Rewire = lambda wiring: None,
    distinct_awaits: bool = False,
) -> Verdict:
    """Perform `program`, bring everything to its end, and say what did not hold. Seeds name streams: use each once."""
    verdict = Verdict([], [], {})

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            universe = Universe(journal, seed, nursery, seen=seen, rewire=rewire, distinct_awaits=distinct_awaits)
            try:
                with trio.move_on_after(VIRTUAL_S_MAX) as limit:
                    await _live(universe, program)
                if limit.cancelled_caught:
                    universe.wrong.append(f"it has not come to an end within {VIRTUAL_S_MAX:g} s")
            except Broken:
                pass  # what it was stands in `wrong`
            verdict.wrong, verdict.streams = universe.wrong, universe.streams
            verdict.boundaries = dict(universe.faults.passed)
            nursery.cancel_scope.cancel()

    _seed_trio(seed)
    trio.run(main, clock=Virtual())
    return verdict


def _seed_trio(seed: int | str) -> None:
    from trio._core import _run

    vars(_run)["_ALLOW_DETERMINISTIC_SCHEDULING"] = True
    _run._r.seed(Dice(seed).fork("trio").draw())


async def _live(universe: Universe, program: Program) -> None:
    actor = Actor(universe)
    for op in program:
        await actor.perform(op)
        _check(universe)
    universe.faults.clear()
    await nap(5.0)
    _check(universe)
    if universe.dice.fork("twice").chance(RECOVERED_TWICE_PERCENT):
        await _recover_twice(universe)
    await _delete_all(universe, actor)
    universe.truth.at_the_end()
    if universe.wrong:
        raise Broken


def _check(universe: Universe) -> None:
    universe.truth.check()
    if universe.wrong:
        raise Broken


async def _recover_twice(universe: Universe) -> None:
    """With every supervisor dead: recovery goes to where nothing is outstanding; once more, and it appends nothing."""
    universe.calm = True
    for life in list(universe.lives.values()):
        life.die()
        await life.over.wait()
    for stream in universe.streams:
        pod = universe.truth.folded(stream)
        if pod.sandbox.state in (sandbox.ABSENT, sandbox.DELETED):
            continue
        first = await _recovered(universe, stream)
        second = await _recovered(universe, stream)
        universe.seen["recovered twice"] += 1
        if first != second:
            universe.wrong.append(f"`{stream}`: recovery is not idempotent: rev {first}, then {second}")
    universe.calm = False
    _check(universe)


async def _recovered(universe: Universe, stream: str) -> int:
    from typing import cast

    from kata_fsm.effects.agent.link import Link
    from kata_fsm.effects.fake.faults import Doomed
    from kata_fsm.effects.fake.link import FakeLink
    from kata_fsm.effects.fake.wiring import FakeWiring
    from kata_fsm.supervisor.limiting import disks_of, limits_of

    async def at_once(work: object) -> None:
        await trio.lowlevel.checkpoint()
        work()  # type: ignore[operator]

    async with trio.open_nursery() as nursery:
        doomed = Doomed(universe.faults)
        uid = stream.rpartition("@")[2]
        link = FakeLink(universe.host, uid, doomed)
        runtime = Runtime(universe.journal, stream, universe.world, {}, nursery, blocking=at_once)
        wiring = FakeWiring(
            universe.host,
            uid,
            doomed,
            link,
            limits=lambda: limits_of(runtime.pod),
            asked=lambda: disks_of(runtime.pod),
        )
        universe.rewire(wiring)
        runtime.handlers = wiring.handlers

        def on_step(pod: object) -> None:
            if runtime.pod.agent.state in ("lost", "closed"):
                link.end()

        runtime.on_step = on_step
        cast(Link, link)
        await recover(runtime, universe.host, post_mortem=universe.post_mortem)
        await runtime.until(lambda pod: not outstanding(pod))
        nursery.cancel_scope.cancel()
    return runtime.rev


async def _delete_all(universe: Universe, actor: Actor) -> None:
    """Everybody wants the end, and nothing goes wrong any more: whatever there is can be deleted, and is."""
    for _ in range(ATTEMPTS):
        for container_id in sorted(universe.ids(), reverse=True):
            if universe.stream_of(container_id) is not None:
                await actor.ask(container_id, {"op": "delete", "force": True})
        for life in list(universe.lives.values()):
            with trio.move_on_after(60.0):
                await life.over.wait()
        if not universe.ids() and not universe.lives and not any(shim.alive for shim in universe.shims):
            return
        await nap(65.0)
