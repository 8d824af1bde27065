# SPDX-License-Identifier: Apache-2.0
"""The fuzzer finds bugs: some are planted, and each is found, made minimal, and seen again by what was printed."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

from kata_fsm.effects.fake import wiring
from kata_fsm.effects.fake.wiring import FakeWiring
from kata_fsm.effects.process import Exit
from kata_fsm.effects.protocols import Observed
from kata_fsm.machines import Cause, coupling
from kata_fsm.supervisor import watch
from kata_fsm.testing.sim.campaign import Failure, Parameters, attempt_alone, explore, numbers
from kata_fsm.testing.sim.lives import Rewire
from kata_fsm.testing.sim.programs import parse, show

PROGRAMS = 600
SHRUNK_MAX = 6


def found(rewire: Rewire = lambda wiring: None) -> Failure:
    """What a campaign finds; it is there, short, and repeats from its text."""
    given = Parameters("planted", PROGRAMS)
    tally = explore(given, numbers(given), rewire=rewire)
    assert tally.failure is not None, "the planted bug was not found"
    failure = tally.failure
    assert len(failure.shrunk) <= min(SHRUNK_MAX, len(failure.program)), show(failure.shrunk)
    again = attempt_alone(parse(show(failure.shrunk)), f"planted.{failure.number}", rewire=rewire)
    assert again.wrong
    return failure


def replaced(kind: str, method: str, make: Callable[[Any], Any]) -> Rewire:
    """A rewiring that replaces one method of one handler."""

    def rewire(wiring: FakeWiring) -> None:
        handler: Any = wiring.handlers[kind].handler  # type: ignore[attr-defined]
        setattr(handler, method, make(handler))

    return rewire


def test_a_clean_up_that_forgets_something() -> None:
    def make(handler: Any) -> Any:
        async def perform(intent: Any) -> dict[str, Any]:
            handler.host.give_back("mount", handler.name(intent))
            return {}  # and the cgroup?

        return perform

    assert "cgroup" in found(replaced("container.discard", "perform", make)).wrong


def test_an_undo_that_forgets_something() -> None:
    def make(handler: Any) -> Any:
        async def undo(intent: Any) -> dict[str, Any]:
            process = handler.host.find("virtiofsd", handler.uid)
            if process is not None:
                handler.host.end(process.identity, Exit(signal=9))
            return {}  # and the tree, and what is mounted in it?

        return undo

    assert "tree" in found(replaced("share.release", "undo", make)).wrong


def test_a_disk_that_is_forgotten() -> None:
    def make(handler: Any) -> Any:
        async def unplug_disks(intent: Any) -> None:
            """And who holds it now?"""

        return unplug_disks

    assert "asked for are" in found(replaced("container.unstage", "unplug_disks", make)).wrong


def test_a_disk_that_is_taken_from_another_container() -> None:
    def make(handler: Any) -> Any:
        return frozenset  # nobody asks for anything

    assert "its containers need" in found(replaced("container.unstage", "asked", make)).wrong


def test_a_probe_that_says_yes_too_early() -> None:
    def make(handler: Any) -> Any:
        async def probe(intent: Any) -> Observed:
            return Observed(True)

        return probe

    found(replaced("hypervisor.stop", "probe", make))


def test_an_unknown_end_that_is_taken_for_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coupling, "EXIT_UNKNOWN", 0)
    assert "unknown is never success" in found().wrong


def test_an_end_with_the_sandbox_that_is_put_down_to_the_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("kata_fsm.machines.decide"), "EXIT_KILLED", None)
    assert "is said to have ended with 137 (signaled)" in found().wrong


def test_a_cause_that_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ended QEMU, somebody killed it."""
    monkeypatch.setattr(wiring, "judge", lambda *_, **__: ("vm_killed", "surely"))
    assert "has cause `vm_killed`, but what was done is" in found().wrong


def test_an_operator_who_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual machine that ended by itself is put down to somebody's wish, and so to a clean end."""

    async def _vm(self: Any) -> None:
        await self.wiring.vm_ended(watch.process_of(self._runtime.pod.vm.facts))
        await self._runtime.report(watch.VmDied(Cause("operator", "somebody wanted it")))

    monkeypatch.setattr(watch.Watcher, "_vm", _vm)
    assert "has cause `operator`, but what was done is" in found().wrong


def test_a_change_of_the_network_that_fails_half_way_and_stays_so() -> None:
    def make(handler: Any) -> Any:
        async def failed(intent: Any) -> None:
            return

        return failed

    assert "the record says" in found(replaced("network.change", "failed", make)).wrong


def test_limits_that_an_update_leaves_as_they_were() -> None:
    def rewire(wiring: FakeWiring) -> None:
        async def limit() -> list[str]:
            return []

        wiring.limit = limit  # type: ignore[method-assign]

    assert "the limits on the host are" in found(rewire).wrong


def test_limits_of_a_container_that_is_gone() -> None:
    def make(handler: Any) -> Any:
        return lambda: None

    assert "the limits on the host are" in found(replaced("container.unstage", "limit", make)).wrong


def test_a_row_of_the_coupling_table_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = tuple(rule for rule in coupling.RULES if rule.name != "leave-network")
    monkeypatch.setattr(coupling, "RULES", rules)
    monkeypatch.setattr(coupling, "_candidates", coupling._candidates.__wrapped__)
    assert "cannot be deleted" in found().wrong


def test_a_watch_that_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends unseen leaves a container that seems to live."""

    async def blind(self: Any) -> None:
        return

    monkeypatch.setattr(watch.Watcher, "_exit", blind)
    found()
