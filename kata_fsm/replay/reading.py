# SPDX-License-Identifier: Apache-2.0
"""Opening a journal to look at it, and reading streams from it that may be damaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from journal import Journal, JournalDamaged, JournalError, JournalMissing, JournalVersionError, Record
from kata_fsm.errors import DamagedData, KataFsmError, NotFoundError, WorldError
from kata_fsm.world import journal_dir


def translated(error: JournalError) -> KataFsmError:
    """A journal's error as one of ours, with the exit code of its family."""
    if isinstance(error, JournalMissing):
        return NotFoundError(error.message, hint=error.hint)
    if isinstance(error, (JournalDamaged, JournalVersionError)):
        return DamagedData(error.message, hint=error.hint)
    return WorldError(error.message, hint=error.hint)


@contextmanager
def map_errors() -> Iterator[None]:
    """Journal errors leave the block as errors of ours."""
    try:
        yield
    except JournalError as error:
        raise translated(error) from error


@contextmanager
def open_journal(path: str | None = None) -> Iterator[Journal]:
    """The journal at `path` (default: this host's), for reading. Works on a copied directory and on read-only media.

    Raises `NotFoundError` if there is none, `DamagedData` if it cannot be read; also for what fails inside the block.
    """
    with map_errors(), Journal.open(path or journal_dir(), read_only=True, create=False) as journal:
        yield journal


def read_what_can_be(journal: Journal, stream: str) -> tuple[list[Record], str | None]:
    """The records of `stream` up to the first one that cannot be trusted, and what is wrong with that one (or None)."""
    records: list[Record] = []
    try:
        for record in journal.read_stream(stream):
            records.append(record)
    except (JournalDamaged, JournalVersionError) as error:
        return records, error.message
    return records, None
