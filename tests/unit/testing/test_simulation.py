# SPDX-License-Identifier: Apache-2.0
"""The pieces of the simulated world and of its engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings

from kata_fsm import testing
from kata_fsm.effects.fake.clock import EPOCH_NS, FakeWorld, Virtual
from kata_fsm.effects.fake.dice import Dice
from kata_fsm.effects.fake.faults import EFFECT_FAULTS, Died, Doomed, Faults
from kata_fsm.effects.fake.host import FakeHost
from kata_fsm.effects.fake.ledger import Ledger
from kata_fsm.effects.fake.link import FakeLink
from kata_fsm.effects.fake.wiring import FakeWiring
from kata_fsm.effects.process import Exit
from kata_fsm.errors import EffectError, TimeoutExceeded, UsageError
from kata_fsm.machines.intents import ACQUIRING, PARAMS
from kata_fsm.machines.vocab import Intent
from kata_fsm.testing.sim import coverage, programs
from kata_fsm.testing.sim.campaign import SCRATCH, Parameters
from kata_fsm.testing.sim.ops import NAMES, Op
from kata_fsm.testing.sim.shrink import shrink
from kata_fsm.testing.sim.worker import campaign

UID = "0123456789ab"
RELEASING = {"hypervisor.stop": "hypervisor.launch", "network.detach": "network.attach", "share.release": "share.prepare",
             "container.unstage": "container.prepare", "container.discard": "container.prepare"}  # fmt: skip


def in_simulation(main: Any) -> None:
    trio.run(main, clock=Virtual())


def made() -> tuple[FakeHost, FakeWiring]:
    faults = Faults()
    host = FakeHost(FakeWorld(Dice(1)), faults)
    doomed = Doomed(faults)
    return host, FakeWiring(host, UID, doomed, FakeLink(host, UID, doomed))


def intent(kind: str) -> Intent:
    recorded = {"interfaces": [{"slot": 1, "name": "eth0"}]} if kind == "network.change" else {}
    return Intent(kind, "box" if kind.startswith("container") else "", {"container": "box", **recorded})


def test_there_is_a_handler_for_every_kind() -> None:
    assert set(made()[1].handlers) == set(PARAMS)


@pytest.mark.parametrize("kind", sorted(ACQUIRING))
def test_simulated_handlers_keep_the_contract(kind: str) -> None:
    async def main() -> None:
        host, wiring = made()
        if kind == "container.prepare":
            await wiring.handlers["share.prepare"].perform(intent("share.prepare"))
        if kind in ("network.plug", "network.change"):
            await wiring.handlers["hypervisor.launch"].perform(intent("hypervisor.launch"))
            given = Intent("network.attach", "", {"model": "tcfilter"})
            await wiring.handlers["network.attach"].perform(given)
        held = dict(host.ledger.held)
        await testing.check_handler(wiring.handlers[kind], intent(kind))
        assert host.ledger.held == held
        assert not host.ledger.wrong

    in_simulation(main)


@pytest.mark.parametrize("kind", RELEASING)
def test_what_is_taken_is_given_back_and_again_without_harm(kind: str) -> None:
    async def main() -> None:
        host, wiring = made()
        await wiring.handlers["share.prepare"].perform(intent("share.prepare"))
        taking = wiring.handlers[RELEASING[kind]]
        await taking.perform(intent(RELEASING[kind]))
        await testing.check_handler(wiring.handlers[kind], intent(kind), undoes=False)
        assert (await wiring.handlers[kind].probe(intent(kind))).done
        assert not host.ledger.wrong

    in_simulation(main)


class Forgetful:
    """A handler whose undo does nothing."""

    def __init__(self, inner: Any) -> None:
        self.perform, self.probe = inner.perform, inner.probe

    async def undo(self, intent: Intent) -> dict[str, Any]:
        return {}


def test_a_handler_that_breaks_the_contract_is_told() -> None:
    async def main() -> None:
        with pytest.raises(AssertionError, match="after it was undone"):
            await testing.check_handler(Forgetful(made()[1].handlers["network.attach"]), intent("network.attach"))

    in_simulation(main)


@pytest.mark.parametrize(
    ("fault", "there"), [("before", False), ("half", False), ("after", True), ("hang", False), ("lost", True)]
)
def test_each_fault_does_what_it_says(fault: str, there: bool) -> None:
    async def main() -> None:
        host, wiring = made()
        assert fault in EFFECT_FAULTS
        host.faults.plan_effect("network.attach", fault)
        with pytest.raises(TimeoutExceeded if fault in ("hang", "lost") else EffectError):
            await wiring.handlers["network.attach"].perform(intent("network.attach"))
        assert host.ledger.has("netns", UID) == there
        await wiring.handlers["network.attach"].perform(intent("network.attach"))  # it is met once

    in_simulation(main)


def test_the_dead_touch_nothing() -> None:
    async def main() -> None:
        host, wiring = made()
        doomed = wiring.doomed
        doomed.doom("effect", 2)
        with pytest.raises(Died):
            await wiring.handlers["share.prepare"].perform(intent("share.prepare"))
        held = dict(host.ledger.held)
        assert held, "it died in the middle"
        for kind in ("share.prepare", "hypervisor.launch", "share.release"):
            with pytest.raises(Died):
                await wiring.handlers[kind].perform(intent(kind))
        assert host.ledger.held == held

    in_simulation(main)


def test_a_pid_names_one_process_of_one_boot() -> None:
    async def main() -> None:
        host, _ = made()
        first = host.spawn("qemu", UID, None)
        assert host.alive(first)
        host.end(first, Exit(signal=9))
        assert not host.alive(first)
        assert (await host.wait_exit(first)).signal == 9
        second = host.spawn("qemu", UID, None)
        host.reboot()
        assert not host.alive(second)
        assert not host.ledger.held
        assert not host.ledger.unbalanced()

    in_simulation(main)


def test_time_jumps_when_it_is_told_to() -> None:
    async def main() -> None:
        world = FakeWorld(Dice(1))
        before, boot = world.mono_ns(), world.boot_id()
        assert world.wall_ns() == EPOCH_NS
        await trio.sleep(2)
        assert world.mono_ns() - before == 2 * 10**9
        world.jump(-3600, 10)
        assert world.wall_ns() == EPOCH_NS - 3598 * 10**9
        assert world.mono_ns() - before == 12 * 10**9
        world.reboot()
        assert world.boot_id() != boot
        assert world.mono_ns() < before

    in_simulation(main)


def test_the_ledger_counts() -> None:
    ledger = Ledger()
    ledger.take("netns", "a")
    ledger.take("netns", "a")
    assert ledger.wrong == ["netns `a` was acquired while it was held"]
    assert ledger.give_back("netns", "a")
    assert not ledger.give_back("netns", "a")
    assert ledger.unbalanced() == ["netns `a`: acquired 2, released 1"]


def test_dice_are_a_function_of_their_seed() -> None:
    assert [Dice("x").draw() for _ in range(2)] == [Dice("x").draw()] * 2
    assert Dice("x").fork("a").draw() != Dice("x").fork("b").draw()
    assert sorted({Dice("x").fork(i).below(6) for i in range(200)}) == list(range(6))
    assert len(Dice(3).octets(13)) == 13


def test_a_program_survives_its_text() -> None:
    for seed in range(50):
        program = programs.draw(Dice(seed))
        assert programs.parse(programs.show(program)) == program


@pytest.mark.parametrize(
    "text", ["", "[", "[1]", "[('bogus',)]", "[('race', ('create', 0), ('no',))]", "__import__('os')"]
)
def test_what_is_no_program_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a program"):
        programs.parse(text)


@settings(max_examples=30, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(testing.programs(steps=5))
def test_strategies_give_programs(program: list[Op]) -> None:
    assert all(op[0] in NAMES for op in program)


def test_shrinking_leaves_what_is_needed() -> None:
    def fails(program: list[Op]) -> bool:
        return ("qemu", 0) in program and any(op[0] == "exit" and op[3] > 1 for op in program)

    program: list[Op] = [("create", 0), ("exit", 0, 3, 7), ("wait", 9), ("race", ("qemu", 0), ("qemu", 0)), ("qemu", 0)]
    assert shrink(program, fails) == [("exit", 0, 0, 2), ("qemu", 0)]
    assert fails(shrink(program, fails, tries=3))


def test_what_cannot_be_reached_is_explained() -> None:
    known = coverage.transitions() | coverage.faults()
    for name, why in coverage.UNREACHABLE.items():
        assert name in known
        assert why


def test_a_campaign_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first failure ends the other workers, wherever they are."""
    (tmp_path / "m").mkdir()
    planted = """def plant(wiring):
    async def perform(intent):
        return {}
    wiring.handlers["container.discard"].handler.perform = perform
"""
    (tmp_path / "m" / "planted_bug.py").write_text(planted)
    (tmp_path / "s").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "m")
    monkeypatch.setenv(SCRATCH, str(tmp_path / "s"))
    tally = campaign(Parameters("left", 400), 2, "planted_bug:plant")
    assert tally.failure is not None
    assert list((tmp_path / "s").iterdir()) == []
