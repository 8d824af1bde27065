# SPDX-License-Identifier: Apache-2.0
"""Opening a journal to write to it, as the few verbs do that keep it in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from journal import Journal, Stamp, owner
from kata_fsm.limits import JOURNAL_LOCK_S
from kata_fsm.replay.reading import map_errors
from kata_fsm.world import WORLD, journal_dir

if TYPE_CHECKING:
    from kata_fsm.cli.context import Context


@contextmanager
def open_for_writing(path: str | None, *, foreign: bool = False) -> Iterator[Journal]:
    """The journal at `path` (default: this host's), which must be there, and ours unless `foreign` is true.

    Errors as in `open_host_journal`, and a `WorldError` for another host's.
    """
    with map_errors(), Journal.open(path or journal_dir(), create=False, lock_timeout_s=JOURNAL_LOCK_S) as journal:
        host = WORLD.host_id()
        if host and not foreign:
            owner.check(journal.path, journal.owner(), host)  # one that nobody owns is left so: supervisors state it
        yield journal


def stamp() -> Stamp:
    """Now."""
    return Stamp(wall_ns=WORLD.wall_ns(), mono_ns=WORLD.mono_ns(), boot_id=WORLD.boot_id())


def asked_by(context: Context) -> dict[str, object]:
    """Who asked, as commands record it."""
    from kata_fsm.cli.client import actor

    return actor(context)
