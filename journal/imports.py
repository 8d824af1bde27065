# SPDX-License-Identifier: Apache-2.0
"""Bundles that were imported: kept beside the journal as they came, under a name, and recorded in it.

Their records are another journal's, with its seqs and digests; they are never mixed with this one's. So an imported
sandbox can be replayed here, and can neither be taken for one that lives here nor lose what proves where it came from.
"""

import os
import re
import shutil
from pathlib import Path

from journal import layout, step
from journal.bundle import SUFFIX, Bundle
from journal.create import fsync_directory
from journal.env import Tables, Txn
from journal.errors import InvalidAppend, JournalError
from journal.records import Kind, NewRecord, Record, Stamp

TYPE = "journal.import"
FORGET_TYPE = "journal.forget"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@:-]{0,99}")


class ImportMissing(JournalError):
    """Nothing was imported under that name."""


class ImportExists(JournalError):
    """Something was imported under that name already."""

    exit_code = 3


def directory(journal: str) -> Path:
    """Where the imports of the journal in that directory are."""
    return Path(journal) / layout.IMPORTS


def names(journal: str) -> list[str]:
    """What was imported, by name, sorted."""
    try:
        return sorted(each.name.removesuffix(SUFFIX) for each in directory(journal).iterdir() if each.suffix == SUFFIX)
    except FileNotFoundError:
        return []


def read(journal: str, name: str) -> Bundle:
    """An imported bundle. Raises ImportMissing, and what `Bundle.open` raises."""
    path = _path(journal, name)
    if not path.exists():
        raise ImportMissing(f"nothing was imported as `{name}`", hint="`kata-fsm journal stat` lists the imports")
    return Bundle.open(path)


def place(journal: str, source: str, name: str) -> Bundle:
    """Copy a bundle to its place, durably, after checking the copy. Raises ImportExists, and what `Bundle.open` raises."""
    path = _path(journal, name)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    partial = path.with_name(f"{name}.{os.getpid()}.part")
    try:
        with open(source, "rb") as given, open(partial, "xb", opener=_private) as file:
            shutil.copyfileobj(given, file)
            file.flush()
            os.fsync(file.fileno())
        bundle = Bundle.open(partial)
        try:
            os.link(partial, path)  # fails when the name is taken, which a rename does not
        except FileExistsError:
            raise ImportExists(
                f"something was imported as `{name}` already", hint="choose another name with `--as`"
            ) from None
    finally:
        partial.unlink(missing_ok=True)
    fsync_directory(str(path.parent))
    return bundle


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def remove(journal: str, name: str) -> None:
    """Remove an import. Raises ImportMissing."""
    try:
        _path(journal, name).unlink()
    except FileNotFoundError:
        raise ImportMissing(f"nothing was imported as `{name}`") from None


def append(txn: Txn, tables: Tables, stamp: Stamp, name: str, bundle: Bundle, *, forget: bool) -> Record:
    """Record that a bundle was imported, or forgotten."""
    body = {
        "name": name,
        "journal": bundle.identity(),
        "streams": [each.stream for each in bundle.header.streams],
        "records": len(bundle.stored),
        "sha256": bundle.sha256,
    }
    new = NewRecord(Kind.NOTE, FORGET_TYPE if forget else TYPE, body)
    rev = step.current_rev(txn, tables, layout.SYSTEM_STREAM)
    return step.apply(step.prepare(layout.SYSTEM_STREAM, [new], stamp=stamp, expected_rev=rev), txn, tables)[0]


def _path(journal: str, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise InvalidAppend(
            f"`{name[:120]!a}` is no name for an import",
            hint="up to 100 letters, digits and `_.@:-`, beginning with a letter or digit",
        )
    return directory(journal) / f"{name}{SUFFIX}"
