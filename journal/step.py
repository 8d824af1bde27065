# SPDX-License-Identifier: Apache-2.0
"""One append: checked and encoded before the lock is taken, written in one transaction under it."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import msgspec

from journal import layout
from journal.env import Tables, Txn
from journal.errors import InvalidAppend, JournalDamaged, RequirementFailed, VersionConflict
from journal.records import (
    DIGEST_CHARS,
    RECORD_VERSION,
    Head,
    NewRecord,
    Record,
    Stamp,
    decode_object,
    encode_object,
    seal,
    unseal,
)

Projections = Mapping[bytes, bytes | None]


class Tip(msgspec.Struct, frozen=True, omit_defaults=True):
    """The head as the meta table holds it, with what the time index needs to know of the block that is being filled.

    `wall` is the least and the greatest wall time of the records of the last block, None when there is none in it.
    """

    seq: int
    digest: str
    wall: tuple[int, int] | None = None

    @property
    def head(self) -> Head:
        return Head(self.seq, self.digest)


_TIP = msgspec.json.Decoder(Tip)
NOTHING: Projections = MappingProxyType({})
NO_FACTS: Mapping[str, Any] = MappingProxyType({})


class Step(msgspec.Struct, frozen=True):
    """Everything of an append that does not depend on what the journal holds."""

    stream: str
    expected_rev: int
    stamp: Stamp
    drafts: list[Record]  # complete but for seq, rev, cause and prev
    causes: list[int | None]
    projections: Projections
    requires: Projections
    snapshot: bytes | None


def prepare(
    stream: str,
    records: Sequence[NewRecord],
    *,
    stamp: Stamp,
    expected_rev: int,
    projections: Projections = NOTHING,
    requires: Projections = NOTHING,
    snapshot: bytes | None = None,
) -> Step:
    """Check what the caller gave and encode the bodies. Raises InvalidAppend."""
    if not 0 < len(records) <= layout.APPEND_RECORDS_MAX:
        raise InvalidAppend(f"an append has 1 to `{layout.APPEND_RECORDS_MAX}` records, not `{len(records)}`")
    _check_word("stream", stream, layout.STREAM_BYTES_MAX)
    _check_word("boot id", stamp.boot_id, layout.NAME_BYTES_MAX)
    for key, value in (*projections.items(), *requires.items()):
        _check_projection(key, value)
    if snapshot is not None and len(snapshot) > layout.PROJECTION_BYTES_MAX:
        raise InvalidAppend(
            f"the snapshot of stream `{stream}` has `{len(snapshot)}` bytes, `{layout.PROJECTION_BYTES_MAX}` are legal"
        )
    return Step(
        stream=stream,
        expected_rev=expected_rev,
        stamp=stamp,
        drafts=[_draft(stream, new, stamp, place) for place, new in enumerate(records)],
        causes=[new.cause for new in records],
        projections=projections,
        requires=requires,
        snapshot=snapshot,
    )


def apply(step: Step, txn: Txn, tables: Tables) -> list[Record]:
    """Write the step; whoever calls commits.

    Raises VersionConflict, RequirementFailed, InvalidAppend, JournalDamaged.
    """
    tip = checked_tip(txn, tables)
    rev = current_rev(txn, tables, step.stream)
    if rev != step.expected_rev:
        raise VersionConflict(step.stream, step.expected_rev, rev)
    for key, required in step.requires.items():
        actual = txn.get(key, db=tables.projections)
        if actual != required:
            raise RequirementFailed(key, actual)
    stored = []
    seq, digest, wall = tip.seq, tip.digest, tip.wall
    for place, (draft, cause) in enumerate(zip(step.drafts, step.causes, strict=True), start=1):
        seq += 1
        draft = msgspec.structs.replace(
            draft, seq=seq, rev=rev + place, cause=_absolute(cause, seq, place), prev=digest
        )
        value, record = seal(draft)
        _check_size(record, len(value))
        key = layout.seq_key(seq)
        # An out-of-order append is refused by returning False, with no exception.
        fits = txn.put(key, value, append=True, overwrite=False, db=tables.records)
        indexed = txn.put(layout.stream_key(step.stream, record.rev), key, overwrite=False, db=tables.streams)
        if not (fits and indexed):
            raise JournalDamaged(f"record `{seq}` or its place in stream `{step.stream}` exists already", seq=seq)
        digest, wall = record.digest, _timed(txn, tables, seq, wall, record.wall_ns)
        stored.append(record)
        if seq == 1:
            txn.put(layout.IDENTITY_KEY, digest.encode(), db=tables.meta)
    txn.put(layout.HEAD_KEY, msgspec.json.encode(Tip(seq, digest, wall)), db=tables.meta)
    if step.snapshot is not None:
        value = layout.snapshot_value(rev + len(stored), step.snapshot)
        txn.put(step.stream.encode(), value, db=tables.snapshots)
    for key, wanted in step.projections.items():
        if wanted is None:
            txn.delete(key, db=tables.projections)
        else:
            txn.put(key, wanted, db=tables.projections)
    return stored


def _timed(txn: Txn, tables: Tables, seq: int, wall: tuple[int, int] | None, wall_ns: int) -> tuple[int, int] | None:
    """The time index after record `seq`: an entry is written with the last record of its block, and a block begun anew."""
    low, high = (wall_ns, wall_ns) if wall is None else (min(wall[0], wall_ns), max(wall[1], wall_ns))
    if seq % layout.TIMES_BLOCK:
        return low, high
    block = layout.seq_key(layout.times_block(seq))
    if not txn.put(block, layout.times_value(low, high), append=True, overwrite=False, db=tables.times):
        raise JournalDamaged(f"the time index has an entry for the block of record `{seq}` already", seq=seq)
    return None


def fill_new_tables(txn: Txn, tables: Tables) -> None:
    """What format 2 holds beside format 1: the time index, and the identity."""
    wall: tuple[int, int] | None = None
    with txn.cursor(tables.records) as cursor:
        for key, value in cursor.iternext():
            seq = int.from_bytes(key, "big")
            wall = _timed(txn, tables, seq, wall, unseal(value, seq).wall_ns)
            if seq == 1:
                txn.put(layout.IDENTITY_KEY, value[:DIGEST_CHARS], db=tables.meta)
    tip = checked_tip(txn, tables)
    if tip.seq:
        txn.put(layout.HEAD_KEY, msgspec.json.encode(Tip(tip.seq, tip.digest, wall)), db=tables.meta)


def read_tip(txn: Txn, tables: Tables) -> Tip:
    """The head as the meta table tells it. Raises JournalDamaged when it is unreadable."""
    text = txn.get(layout.HEAD_KEY, db=tables.meta)
    if text is None:
        return Tip(0, layout.ZERO_DIGEST)
    try:
        return _TIP.decode(text)
    except (msgspec.MsgspecError, ValueError) as error:
        raise JournalDamaged(f"the head in the meta table cannot be decoded: {error}") from error


def last_record(txn: Txn, tables: Tables) -> Head:
    """Seq and stored digest of the last record there is."""
    with txn.cursor(tables.records) as cursor:
        if not cursor.last():
            return Head(0, layout.ZERO_DIGEST)
        digest = cursor.value()[:DIGEST_CHARS].decode(errors="replace")
        return Head(int.from_bytes(cursor.key(), "big"), digest)


def checked_tip(txn: Txn, tables: Tables) -> Tip:
    """The head, after comparing it with the last record: nothing is ever appended to a chain that is broken there."""
    tip, last = read_tip(txn, tables), last_record(txn, tables)
    if tip.head != last:
        raise JournalDamaged(f"the head is record `{tip.seq}`, the last record is `{last.seq}`", seq=last.seq)
    return tip


def current_rev(txn: Txn, tables: Tables, stream: str) -> int:
    """The rev of the stream's last record, 0 for a stream without records."""
    name = stream.encode()
    with txn.cursor(tables.streams) as cursor:
        found = cursor.prev() if cursor.set_range(layout.stream_end(name)) else cursor.last()
        if not found:
            return 0
        last_stream, rev = layout.split_stream_key(cursor.key())
        return rev if last_stream == name else 0


def _draft(stream: str, new: NewRecord, stamp: Stamp, place: int) -> Record:
    what = f"record {place + 1} (`{new.kind}` `{new.type}`)"
    _check_word("kind", new.kind, layout.NAME_BYTES_MAX)
    _check_word("type", new.type, layout.NAME_BYTES_MAX)
    if new.cause is not None and (new.cause == 0 or new.cause < -place):
        raise InvalidAppend(
            f"{what} has cause `{new.cause}`: legal is the seq of an earlier record, or -1 to -k for the k records "
            "before it in the same append"
        )
    return Record(
        v=RECORD_VERSION,
        seq=0,
        stream=stream,
        rev=0,
        wall_ns=stamp.wall_ns,
        mono_ns=stamp.mono_ns,
        boot_id=stamp.boot_id,
        kind=str(new.kind),
        type=new.type,
        actor=None if new.actor is None else decode_object(encode_object(f"the actor of {what}", new.actor)),
        cause=None,
        body=encode_object(f"the body of {what}", new.body),
        prev="",
    )


def _absolute(cause: int | None, seq: int, place: int) -> int | None:
    """The seq that a cause names, given the seq of the record that names it."""
    if cause is None or cause < 0:
        return None if cause is None else seq + cause
    if cause > seq - place:
        raise InvalidAppend(f"cause `{cause}` is no record yet: the last one is `{seq - place}`")
    return cause


@lru_cache(maxsize=1024)  # kinds, types and boots: few, and each in every record
def _check_word(what: str, word: str, bytes_max: int) -> None:
    try:
        size = len(word.encode())
    except UnicodeEncodeError as error:
        raise InvalidAppend(f"{what} `{word!a}` is no valid text: {error}") from error
    if not 0 < size <= bytes_max or "\0" in word:
        raise InvalidAppend(f"{what} `{word[:50]!a}` has `{size}` bytes: legal is 1 to `{bytes_max}`, and no NUL")


def _check_size(record: Record, size: int) -> None:
    if size > layout.RECORD_BYTES_MAX:
        raise InvalidAppend(
            f"record `{record.type}` of stream `{record.stream}` has `{size}` bytes, "
            f"`{layout.RECORD_BYTES_MAX}` are legal",
            hint="keep large data in a file, and its digest in the record",
        )


def _check_projection(key: bytes, value: bytes | None) -> None:
    if not 0 < len(key) <= layout.PROJECTION_KEY_BYTES_MAX:
        raise InvalidAppend(
            f"projection key `{key[:50]!r}` has `{len(key)}` bytes: legal is 1 to `{layout.PROJECTION_KEY_BYTES_MAX}`"
        )
    if value is not None and len(value) > layout.PROJECTION_BYTES_MAX:
        raise InvalidAppend(f"projection `{key!r}` has `{len(value)}` bytes, `{layout.PROJECTION_BYTES_MAX}` are legal")
