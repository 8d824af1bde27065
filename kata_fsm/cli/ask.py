# SPDX-License-Identifier: Apache-2.0
"""Refusing what is illegal before anybody is contacted, by the very tables that the supervisor uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kata_fsm.cli.lookup import Found
from kata_fsm.world import journal_dir

if TYPE_CHECKING:
    from kata_fsm.machines import Pod
    from kata_fsm.machines.vocab import Command


def refuse_illegal(found: Found, command: Command) -> None:
    """Raise `IllegalTransition` or `NotFoundError` when the sandbox's machines have no row for `command`.

    What the supervisor decides in the end may differ, since the world moves on; this only spares it hopeless requests, and
    gives the same message without starting anything.
    """
    from kata_fsm.machines import decide

    decide(fold_stream(found.stream), command)


def fold_stream(stream: str) -> Pod:
    """The pod that the journal tells of."""
    from journal import Journal
    from kata_fsm.snapshots import load

    with Journal.open(journal_dir(), read_only=True) as journal:
        return load(journal, stream).pod
