# SPDX-License-Identifier: Apache-2.0
"""Whose journal it is: a word of the user's (a machine's id, say) in the first record, compared at each opening to write.

Two machines that are given the same directory, one after the other, would otherwise write one history of two worlds. The
owner is stated by a record of the journal's own stream, and kept in the table `meta` for a quick look. A journal can be
taken over on purpose; that is a record, too.
"""

from typing import Any

import msgspec

from journal import layout, step
from journal.env import Tables, Txn
from journal.errors import JournalDamaged, JournalForeign
from journal.records import Kind, NewRecord, Record, Stamp

TYPE = "journal.owner"


class Owner(msgspec.Struct, frozen=True):
    """What `meta` keeps: the owner, and the record that says so."""

    owner: str
    seq: int


def read(txn: Txn, tables: Tables) -> Owner | None:
    """The owner, or None so far. Raises JournalDamaged."""
    text = txn.get(layout.OWNER_KEY, db=tables.meta)
    try:
        return None if text is None else msgspec.json.decode(text, type=Owner)
    except (msgspec.MsgspecError, ValueError) as error:
        raise JournalDamaged(f"the owner in the meta table cannot be decoded: {error}") from error


def check(path: str, found: Owner | None, owner: str) -> bool:
    """Whether the owner still has to be stated. Raises JournalForeign when it is another."""
    if found is None:
        return True
    if found.owner != owner:
        raise JournalForeign(
            f"journal `{path}` belongs to `{found.owner}`, and this is `{owner}`",
            hint="it can be read and replayed here; to go on writing it, take it over with `kata-fsm journal adopt`",
        )
    return False


def state(txn: Txn, tables: Tables, owner: str, stamp: Stamp, more: dict[str, Any]) -> Record:
    """Append the record that states the owner."""
    new = NewRecord(Kind.NOTE, TYPE, {"owner": owner, **more})
    rev = step.current_rev(txn, tables, layout.SYSTEM_STREAM)
    [record] = step.apply(step.prepare(layout.SYSTEM_STREAM, [new], stamp=stamp, expected_rev=rev), txn, tables)
    txn.put(layout.OWNER_KEY, msgspec.json.encode(Owner(owner, record.seq)), db=tables.meta)
    return record
