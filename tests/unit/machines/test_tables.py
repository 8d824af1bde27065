# SPDX-License-Identifier: Apache-2.0
"""Each machine by itself: every cell of every table, both ways of reading it, and that no state is a dead end."""

from __future__ import annotations

import pytest

from kata_fsm.errors import Bug, IllegalTransition
from kata_fsm.machines import Moved, Pod, check, container, evolve, fold
from kata_fsm.machines.decide import _DONE_TRIGGER, _FAILURE_CAUSE
from kata_fsm.machines.intents import CANCELLABLE, PARAMS
from kata_fsm.machines.pod import TABLES, Unit
from kata_fsm.machines.table import Table
from kata_fsm.machines.vocab import CAUSES, CLEAN_ENDINGS

CELLS = [
    pytest.param(table, state, trigger, id=f"{table.name}-{state}-{trigger}")
    for table in TABLES.values()
    for state in table.states
    for trigger in (*table.triggers, "no_such_trigger")
]
TRANSITIONAL = [
    pytest.param(table, state, kind, id=f"{table.name}-{state}")
    for table in TABLES.values()
    for state, kind in table.effects.items()
]
by_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())


def _subject(table: Table) -> str:
    return {"container": "c", "process": "c/init"}.get(table.name, "")


def _pod_in(table: Table, state: str) -> Pod:
    """A pod with one unit of `table`'s machine in `state`."""
    return evolve(Pod(), Moved(table.name, "put", "", state, _subject(table)))


@pytest.mark.parametrize(("table", "state", "trigger"), CELLS)
def test_every_cell_fires_as_the_plain_dict_says(table: Table, state: str, trigger: str) -> None:
    """`transitions` and the dict agree on every cell; an illegal one raises, naming all there is to know."""
    expected = table.follow(state, trigger)
    if expected is not None:
        assert (state, trigger, expected) in table.rows
        assert table.fire(state, trigger, subject="c") == expected
        return
    with pytest.raises(IllegalTransition) as caught:
        table.fire(state, trigger, subject="some-id")
    error = caught.value
    assert (error.machine, error.subject, error.state, error.trigger) == (table.name, "some-id", state, trigger)
    assert error.legal == table.legal(state)
    for word in (table.name, "some-id", state, trigger, *table.legal(state)):
        assert f"{word}" in str(error)


@pytest.mark.parametrize(("table", "state", "trigger"), CELLS)
def test_fold_and_evolve_and_check_agree_with_the_table(table: Table, state: str, trigger: str) -> None:
    """A legal event is accepted and leads where the table says; an illegal one is named; neither changes the old pod."""
    pod, again = _pod_in(table, state), _pod_in(table, state)
    dest = table.follow(state, trigger)
    event = Moved(table.name, trigger, state, dest or "nowhere", _subject(table))
    assert (check(pod, event) is None) == (dest is not None)
    after = evolve(pod, event)
    assert pod == again
    assert after == fold([event], pod)
    assert pod == again
    assert after.unit(table.name, _subject(table)).state == event.dest


def test_check_names_what_differs() -> None:
    """Replay shows these sentences, so they say which machine and what was recorded."""
    pod = Pod(vm=Unit("running"))
    assert check(pod, Moved("vm", "died", "running", "exited")) is None
    assert "it was `exited`" in str(check(pod, Moved("vm", "stop", "exited", "stopping")))
    assert "has no row" in str(check(pod, Moved("vm", "launch", "running", "launching")))
    assert "leads to `exited`" in str(check(pod, Moved("vm", "died", "running", "gone")))
    assert "no machine `toaster`" in str(check(pod, Moved("toaster", "pop", "down", "up")))


@by_table
def test_there_are_no_back_doors(table: Table) -> None:
    """`transitions` would add `to_X` for every state; and everything it knows is what the rows say."""
    machine = table.machine
    assert set(machine.events) == set(table.triggers)
    assert set(machine.states) == set(table.states) == set(table.moves)
    fired = {
        (t.source, name, t.dest)
        for name, event in machine.events.items()
        for transitions in event.transitions.values()
        for t in transitions
    }
    assert fired == set(table.rows)
    assert len(table.rows) == len(set(table.rows))


@by_table
def test_terminal_states_are_those_without_a_way_out(table: Table) -> None:
    """None is terminal by oversight, and a terminal state waits for nothing."""
    assert {state for state in table.states if not table.legal(state)} == table.terminal
    assert not table.terminal & set(table.effects)


@by_table
def test_every_state_is_reachable_and_reaches_a_terminal_one(table: Table) -> None:
    """No state is unreachable, and none cannot be left for good."""
    onward = {state: set(moves.values()) for state, moves in table.moves.items()}
    assert _closure(onward, {table.initial}) == set(table.states)
    backward: dict[str, set[str]] = {}
    for source, _, dest in table.rows:
        backward.setdefault(dest, set()).add(source)
    assert _closure(backward, set(table.terminal)) == set(table.states)


def _closure(edges: dict[str, set[str]], start: set[str]) -> set[str]:
    found, todo = set(start), list(start)
    while todo:
        for state in edges.get(todo.pop(), set()) - found:
            found.add(state)
            todo.append(state)
    return found


@pytest.mark.parametrize(("table", "state", "kind"), TRANSITIONAL)
def test_a_transitional_state_is_left_by_success_and_by_failure(table: Table, state: str, kind: str) -> None:
    """Whatever the outcome, the machine moves on; and success and failure lead to different places or to a retreat."""
    machine, done = _DONE_TRIGGER[kind]
    assert machine == table.name
    assert table.follow(state, done) not in (None, state)
    assert table.follow(state, "failed") not in (None, state)


@pytest.mark.parametrize(("table", "state", "kind"), TRANSITIONAL)
def test_only_a_cancellable_effect_may_be_left_behind(table: Table, state: str, kind: str) -> None:
    """An effect that holds something on the host is always waited for: its state has no way out but its outcomes."""
    outcomes = {_DONE_TRIGGER[kind][1], "failed"}
    others = {trigger for trigger, dest in table.moves[state].items() if dest != state} - outcomes
    assert bool(others) == (kind in CANCELLABLE)


def test_tables_effects_params_and_done_triggers_name_the_same_effects() -> None:
    """Every kind of effect has one state, one way to derive its parameters and one trigger for its success."""
    kinds = [kind for table in TABLES.values() for kind in table.effects.values()]
    assert len(kinds) == len(set(kinds))
    assert set(kinds) == set(PARAMS) == set(_DONE_TRIGGER)
    assert set(PARAMS) >= CANCELLABLE
    assert set(_FAILURE_CAUSE) < set(kinds)
    assert set(_FAILURE_CAUSE.values()) <= set(CAUSES)
    assert set(CAUSES) >= CLEAN_ENDINGS


def test_done_triggers_belong_to_their_effect_alone() -> None:
    """Only the state that waits for an effect can be left by its success, so no other input can pretend it."""
    for kind, (machine, trigger) in _DONE_TRIGGER.items():
        table = TABLES[machine]
        sources = {source for source, t, _ in table.rows if t == trigger}
        assert sources == {state for state, k in table.effects.items() if k == kind}


def test_every_container_state_has_an_oci_status() -> None:
    """The words of the runtime specification, and `paused`, which all engines know."""
    assert set(container.OCI_STATUS) == set(container.TABLE.states) - {container.ABSENT, container.DELETED}
    assert set(container.OCI_STATUS.values()) == {"creating", "created", "running", "paused", "stopped"}
    condemnable = {source for source, trigger, _ in container.TABLE.rows if trigger == "condemn"}
    assert condemnable == set(container.OCI_STATUS), "deletion can be asked for in every state that has a status"


def test_a_malformed_table_is_refused() -> None:
    """`transitions` accepts all of these silently."""
    with pytest.raises(Bug, match="two rows"):
        Table("m", initial="a", rows=[("a", "x", "b"), ("a", "x", "c")], effects={}, terminal=frozenset({"b", "c"}))
    with pytest.raises(Bug, match="terminal"):
        Table("m", initial="a", rows=[("a", "x", "b")], effects={}, terminal=frozenset())
    with pytest.raises(Bug, match="unknown states"):
        Table("m", initial="a", rows=[("a", "x", "b")], effects={"z": "e.f"}, terminal=frozenset({"b"}))
