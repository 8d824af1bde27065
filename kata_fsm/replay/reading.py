# SPDX-License-Identifier: Apache-2.0
"""Opening a journal to look at it, and reading streams from it that may be damaged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from journal import (
    Bundle,
    Journal,
    JournalDamaged,
    JournalError,
    JournalMissing,
    JournalVersionError,
    Record,
    RecordSource,
    StreamMissing,
)
from journal.bundle import SUFFIX
from kata_fsm.errors import DamagedData, KataFsmError, NotFoundError, WorldError
from kata_fsm.world import journal_dir

LATEST = "latest"


def translated(error: JournalError) -> KataFsmError:
    """A journal's error as one of ours, with the exit code of its family."""
    if isinstance(error, (JournalMissing, StreamMissing)):
        ours: KataFsmError = NotFoundError(error.message, hint=error.hint)
    elif isinstance(error, (JournalDamaged, JournalVersionError)):
        ours = DamagedData(error.message, hint=error.hint)
    else:
        ours = WorldError(error.message, hint=error.hint)
    ours.exit_code = error.exit_code
    return ours


@contextmanager
def map_errors() -> Iterator[None]:
    """Journal errors leave the block as errors of ours."""
    try:
        yield
    except JournalError as error:
        raise translated(error) from error


@contextmanager
def open_host_journal(path: str | None = None) -> Iterator[Journal]:
    """The journal at `path` (default: this host's), for reading. Works on a copied directory and on read-only media.

    Raises `NotFoundError` if there is none, `DamagedData` if it cannot be read; also for what fails inside the block.
    """
    with map_errors(), Journal.open(path or journal_dir(), read_only=True, create=False) as journal:
        yield journal


@contextmanager
def open_journal(path: str | None = None) -> Iterator[RecordSource]:
    """As `open_host_journal`, but `path` may also be a bundle's file."""
    if path is not None and os.path.isfile(path):
        with map_errors():
            yield Bundle.open(path)
    else:
        with open_host_journal(path) as journal:
            yield journal


@contextmanager
def open_subject(path: str | None, subject: str) -> Iterator[tuple[RecordSource, str]]:
    """Where to look, and for what: a subject may also be a bundle's file, or the name of an imported one.

    What is in this host's journal goes before an import of the same name. Raises as `open_host_journal`.
    """
    if path is None and (subject.endswith(SUFFIX) or "/" in subject):
        with map_errors():
            yield Bundle.open(subject), LATEST
        return
    with open_journal(path) as source:
        if isinstance(source, Journal) and subject in source.imports() and not _names_a_stream(source, subject):
            yield source.imported(subject), LATEST
        else:
            yield source, subject


def _names_a_stream(journal: Journal, subject: str) -> bool:
    return any(subject in (info.stream, info.stream.rpartition("@")[0]) for info in journal.streams())


def read_what_can_be(journal: RecordSource, stream: str) -> tuple[list[Record], str | None]:
    """The records of `stream` up to the first one that cannot be trusted, and what is wrong with that one (or None)."""
    records: list[Record] = []
    try:
        for record in journal.read_stream(stream):
            records.append(record)
    except (JournalDamaged, JournalVersionError) as error:
        return records, error.message
    return records, None
