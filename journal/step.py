# SPDX-License-Identifier: Apache-2.0
"""One append: checked and encoded before the lock is taken, written in one transaction under it."""

from collections.abc import Mapping, Sequence

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
)

Projections = Mapping[bytes, bytes | None]

_HEAD = msgspec.json.Decoder(Head)


class Step(msgspec.Struct, frozen=True):
    """Everything of an append that does not depend on what the journal holds."""

    stream: str
    expected_rev: int
    stamp: Stamp
    drafts: list[Record]  # complete but for seq, rev, cause and prev
    causes: list[int | None]
    projections: Projections
    requires: Projections


def prepare(
    stream: str,
    records: Sequence[NewRecord],
    *,
    stamp: Stamp,
    expected_rev: int,
    projections: Projections,
    requires: Projections,
) -> Step:
    """Check what the caller gave and encode the bodies. Raises InvalidAppend."""
    if not 0 < len(records) <= layout.APPEND_RECORDS_MAX:
        raise InvalidAppend(f"an append has 1 to `{layout.APPEND_RECORDS_MAX}` records, not `{len(records)}`")
    _check_word("stream", stream, layout.STREAM_BYTES_MAX)
    _check_word("boot id", stamp.boot_id, layout.NAME_BYTES_MAX)
    for key, value in (*projections.items(), *requires.items()):
        _check_projection(key, value)
    return Step(
        stream=stream,
        expected_rev=expected_rev,
        stamp=stamp,
        drafts=[_draft(stream, new, stamp, place) for place, new in enumerate(records)],
        causes=[new.cause for new in records],
        projections=projections,
        requires=requires,
    )


def apply(step: Step, txn: Txn, tables: Tables) -> list[Record]:
    """Write the step; whoever calls commits.

    Raises VersionConflict, RequirementFailed, InvalidAppend, JournalDamaged.
    """
    head = checked_head(txn, tables)
    rev = current_rev(txn, tables, step.stream)
    if rev != step.expected_rev:
        raise VersionConflict(step.stream, step.expected_rev, rev)
    for key, required in step.requires.items():
        actual = txn.get(key, db=tables.projections)
        if actual != required:
            raise RequirementFailed(key, actual)
    stored = []
    for place, (draft, cause) in enumerate(zip(step.drafts, step.causes, strict=True), start=1):
        seq = head.seq + 1
        draft = msgspec.structs.replace(
            draft, seq=seq, rev=rev + place, cause=_absolute(cause, seq, place), prev=head.digest
        )
        value, record = seal(draft)
        _check_size(record, len(value))
        # An out-of-order append is refused by returning False, with no exception.
        fits = txn.put(layout.seq_key(seq), value, append=True, overwrite=False, db=tables.records)
        indexed = txn.put(
            layout.stream_key(step.stream, record.rev), layout.seq_key(seq), overwrite=False, db=tables.streams
        )
        if not (fits and indexed):
            raise JournalDamaged(f"record `{seq}` or its place in stream `{step.stream}` exists already", seq=seq)
        head = Head(seq, record.digest)
        stored.append(record)
    txn.put(layout.HEAD_KEY, msgspec.json.encode(head), db=tables.meta)
    for key, wanted in step.projections.items():
        if wanted is None:
            txn.delete(key, db=tables.projections)
        else:
            txn.put(key, wanted, db=tables.projections)
    return stored


def read_head(txn: Txn, tables: Tables) -> Head:
    """The head as the meta table tells it. Raises JournalDamaged when it is unreadable."""
    text = txn.get(layout.HEAD_KEY, db=tables.meta)
    if text is None:
        return Head(0, layout.ZERO_DIGEST)
    try:
        return _HEAD.decode(text)
    except (msgspec.MsgspecError, ValueError) as error:
        raise JournalDamaged(f"the head in the meta table cannot be decoded: {error}") from error


def last_record(txn: Txn, tables: Tables) -> Head:
    """Seq and stored digest of the last record there is."""
    with txn.cursor(tables.records) as cursor:
        if not cursor.last():
            return Head(0, layout.ZERO_DIGEST)
        digest = cursor.value()[:DIGEST_CHARS].decode(errors="replace")
        return Head(int.from_bytes(cursor.key(), "big"), digest)


def checked_head(txn: Txn, tables: Tables) -> Head:
    """The head, after comparing it with the last record: nothing is ever appended to a chain that is broken there."""
    head, last = read_head(txn, tables), last_record(txn, tables)
    if head != last:
        raise JournalDamaged(f"the head is record `{head.seq}`, the last record is `{last.seq}`", seq=last.seq)
    return head


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
