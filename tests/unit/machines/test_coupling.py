# SPDX-License-Identifier: Apache-2.0
"""The joint-state table: well formed by itself; what it leads to is the property tests' business."""

from __future__ import annotations

import pytest

from kata_fsm.machines.coupling import RULES, Rule
from kata_fsm.machines.pod import TABLES

by_rule = pytest.mark.parametrize("rule", RULES, ids=[rule.name for rule in RULES])


def test_names_are_unique() -> None:
    """A record carries its rule's name, and nothing else about it."""
    assert len({rule.name for rule in RULES}) == len(RULES)


@by_rule
def test_a_rule_speaks_of_states_and_triggers_that_exist(rule: Rule) -> None:
    """A misspelt state would be a rule that never fires."""
    assert rule.why
    assert rule.trigger in TABLES[rule.machine].triggers
    for name, states in rule.when.items():
        assert states
        assert states <= set(TABLES[name].states), f"{name} has no {states - set(TABLES[name].states)}"


@by_rule
def test_a_rule_is_legal_wherever_it_applies(rule: Rule) -> None:
    """In each state that a rule names for the machine it moves, its trigger is legal, and leads out of those states."""
    assert rule.machine in rule.when, "a rule must name the states of the machine that it moves"
    table = TABLES[rule.machine]
    for state in rule.when[rule.machine]:
        dest = table.follow(state, rule.trigger)
        assert dest is not None, f"{rule.machine} `{state}` has no `{rule.trigger}`"
        assert dest not in rule.when[rule.machine], "the rule could fire for ever"
