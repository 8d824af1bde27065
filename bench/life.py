# SPDX-License-Identifier: Apache-2.0
"""What the journal is given in the life of one container: the very records and projections of the product's steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.fill import Sandbox
from journal import Journal, NewRecord, Stamp
from kata_fsm.machines.vocab import Cause, Drained, ProcessExited

ROOT = "/run/bench"
STAMP = Stamp(1_795_600_000_000_000_000, 700_000_000_000, "2ce6ef17-ca34-43ec-8f82-65f9e7982f2a")


@dataclass
class Step:
    """One append, and the bytes that it comes to: stored records, and keys and values of the projections."""

    records: list[NewRecord]
    projections: dict[bytes, bytes | None]
    stored: list[bytes] = field(default_factory=list)

    @property
    def all_bytes(self) -> bytes:
        return b"".join([*self.stored, *(key + (value or b"") for key, value in self.projections.items())])


class _Listening:
    """Stands before a journal and keeps what is appended."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.steps: list[Step] = []

    def append(self, stream: str, records: list[NewRecord], **options: Any) -> Any:
        found = self.journal.append(stream, records, **options)
        texts = [self.journal.get_text(record.seq) or b"" for record in found]
        stored = [f"{record.digest} ".encode() + text for record, text in zip(found, texts, strict=True)]
        self.steps.append(Step(records, dict(options["projections"]), stored))
        return found


def life(directory: Path) -> list[Step]:
    """Creation, start, exit and the end of a sandbox with one container, step by step. Uses the new `directory`."""
    with Journal.open(directory, sync=False) as journal:
        listening = _Listening(journal)
        sandbox = Sandbox(listening, ROOT, 0)
        sandbox.give(ProcessExited(f"{sandbox.name}/init", 0, Cause("exited")))
        sandbox.give(Drained(f"{sandbox.name}/init", {"stdout": 1234, "stderr": 0}))
        sandbox.work_off()
        return listening.steps


def write_lives(journal: Journal, steps: list[Step], records: int) -> None:
    """At least `records` more records: life after life, each in a stream of its own and in one append."""
    together = [record for step in steps for record in step.records]
    last: dict[bytes, bytes | None] = {}
    for step in steps:
        last |= step.projections
    name = Sandbox.name_of(0).encode()
    for number in range(-(-records // len(together))):
        own = b"box-%06d" % number
        projections = {
            key.replace(name, own): None if value is None else value.replace(name, own) for key, value in last.items()
        }
        journal.append(f"{own.decode()}@{number:012x}", together, stamp=STAMP, expected_rev=0, projections=projections)
