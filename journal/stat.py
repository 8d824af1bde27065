# SPDX-License-Identifier: Apache-2.0
"""How large a journal is."""

import os
from typing import TYPE_CHECKING

import msgspec

from journal import layout, runs, step
from journal.records import Head

if TYPE_CHECKING:
    from journal.journal import Journal


class Stat(msgspec.Struct, frozen=True):
    """The size of a journal.

    Counts: `pruned` are records that are gone; `streams` does not count the journal's own. Bytes: of the data file, of it
    ever used, of it in use now (the rest will be used again), and of the map it may grow to.
    """

    path: str
    format: int
    identity: str
    owner: str | None
    head: Head
    records: int
    pruned: int
    streams: int
    projections: int
    snapshots: int
    file_bytes: int
    used_bytes: int
    live_bytes: int
    map_bytes: int
    readers: int
    sync: bool
    read_only: bool


def measure(journal: "Journal") -> Stat:
    """Counts and sizes; the only cost that grows is counting streams."""
    env = journal._env
    streams = len(list(journal.streams()))
    pruned = runs.count((gap.first, gap.last) for gap in journal.gaps())
    identity, owner = journal.identity(), journal.owner()
    info = env.info()
    tables = env.tables
    with journal._read() as txn:
        counts = [txn.stat(table) for table in tables if table is not None]
        return Stat(
            path=journal.path,
            format=env.format,
            identity=identity,
            owner=owner.owner if owner else None,
            head=step.read_tip(txn, tables).head,
            records=txn.stat(tables.records)["entries"],
            pruned=pruned,
            streams=streams,
            projections=txn.stat(tables.projections)["entries"],
            snapshots=0 if tables.snapshots is None else txn.stat(tables.snapshots)["entries"],
            file_bytes=os.stat(f"{journal.path}/{layout.DATA_FILE}").st_size,
            used_bytes=(info["last_pgno"] + 1) * info["psize"],
            live_bytes=sum(each["branch_pages"] + each["leaf_pages"] + each["overflow_pages"] for each in counts)
            * info["psize"],
            map_bytes=info["map_size"],
            readers=info["num_readers"],
            sync=env.sync,
            read_only=env.read_only,
        )
