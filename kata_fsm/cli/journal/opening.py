# SPDX-License-Identifier: Apache-2.0
"""Opening a journal to write to it, as the few verbs do that keep it in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from journal import Journal, Stamp
from kata_fsm.limits import JOURNAL_LOCK_S
from kata_fsm.replay.reading import map_errors
from kata_fsm.world import WORLD, journal_dir

if TYPE_CHECKING:
    from kata_fsm.cli.context import Context


@contextmanager
def open_for_writing(path: str | None) -> Iterator[Journal]:
    """The journal at `path` (default: this host's), which must be there. Errors as in `open_host_journal`."""
    with map_errors(), Journal.open(path or journal_dir(), create=False, lock_timeout_s=JOURNAL_LOCK_S) as journal:
        yield journal


def stamp() -> Stamp:
    """Now."""
    return Stamp(wall_ns=WORLD.wall_ns(), mono_ns=WORLD.mono_ns(), boot_id=WORLD.boot_id())


def asked_by(context: Context) -> dict[str, object]:
    """Who asked, as commands record it."""
    from kata_fsm.cli.client import actor

    return actor(context)
