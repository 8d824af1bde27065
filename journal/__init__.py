# SPDX-License-Identifier: Apache-2.0
"""An append-only, hash-chained event log over LMDB, shared by every process of one host.

    with Journal.open("/var/lib/example/journal") as journal:
        journal.append(
            "order-17",
            [NewRecord(kind=Kind.EVENT, type="paid", body={"amount": 12})],
            stamp=Stamp(wall_ns=..., mono_ns=..., boot_id=...),
            expected_rev=0,
            projections={b"order/17": b"paid"},
        )

A *record* is one entry; a *stream* is the sequence of records about one subject; *seq* numbers all records from 1,
*rev* numbers those of one stream from 1. A *projection* is a value under a key, derived from records and written with
them. An append is one durable transaction: all its records and projections, or nothing. The package knows nothing
about what is recorded. `FORMAT.md`, beside this file, describes the bytes.

Names are imported when first used: `journal.peek` is on a path where milliseconds count, and must not pay for msgspec.
"""

TYPE_CHECKING = False  # what `typing.TYPE_CHECKING` is, without importing typing; type checkers know the name
if TYPE_CHECKING:
    from journal.bundle import Bundle
    from journal.errors import (
        ChainBroken,
        InvalidAppend,
        JournalBusy,
        JournalDamaged,
        JournalDiskFull,
        JournalError,
        JournalForeign,
        JournalInUse,
        JournalMissing,
        JournalPruned,
        JournalReadOnly,
        JournalVersionError,
        RequirementFailed,
        StreamMissing,
        VersionConflict,
    )
    from journal.findings import Finding
    from journal.folds import Projector
    from journal.journal import Journal
    from journal.prune import Cut
    from journal.records import Head, Kind, NewRecord, Record, Stamp
    from journal.source import Gap, RecordSource, Snapshot, StreamInfo
    from journal.stat import Stat
    from journal.verify import verify_path

_HOME = {
    "Bundle": "bundle",
    "InvalidAppend": "errors",
    "JournalBusy": "errors",
    "JournalDamaged": "errors",
    "JournalDiskFull": "errors",
    "JournalError": "errors",
    "JournalForeign": "errors",
    "JournalInUse": "errors",
    "ChainBroken": "errors",
    "JournalMissing": "errors",
    "JournalPruned": "errors",
    "StreamMissing": "errors",
    "JournalReadOnly": "errors",
    "JournalVersionError": "errors",
    "RequirementFailed": "errors",
    "VersionConflict": "errors",
    "Journal": "journal",
    "Stat": "stat",
    "Cut": "prune",
    "Gap": "source",
    "Projector": "folds",
    "RecordSource": "source",
    "Snapshot": "source",
    "StreamInfo": "source",
    "Head": "records",
    "Kind": "records",
    "NewRecord": "records",
    "Record": "records",
    "Stamp": "records",
    "Finding": "findings",
    "verify_path": "verify",
}

__all__ = [
    "Bundle",
    "ChainBroken",
    "Cut",
    "Finding",
    "Gap",
    "Head",
    "InvalidAppend",
    "Journal",
    "JournalBusy",
    "JournalDamaged",
    "JournalDiskFull",
    "JournalError",
    "JournalForeign",
    "JournalInUse",
    "JournalMissing",
    "JournalPruned",
    "JournalReadOnly",
    "JournalVersionError",
    "Kind",
    "NewRecord",
    "Projector",
    "Record",
    "RecordSource",
    "RequirementFailed",
    "Snapshot",
    "Stamp",
    "Stat",
    "StreamInfo",
    "StreamMissing",
    "VersionConflict",
    "verify_path",
]


def __getattr__(name: str) -> object:
    """Import a public name's module the first time the name is asked for."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module `journal` has no attribute `{name}`")
    from importlib import import_module

    value: object = getattr(import_module(f"journal.{home}"), name)
    globals()[name] = value
    return value
