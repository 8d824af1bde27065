# SPDX-License-Identifier: Apache-2.0
"""A record: what a caller gives, what a reader gets, and the bytes between.

The stored value is 64 hex digits, a space, and the record's JSON text; the digits are the SHA-256 of exactly that
text, and the text holds the digest of the record before it. The text is never re-encoded: what is hashed is what is
stored. `kind` and `type` are free words here, so a reader shows those of a later version as they are. See FORMAT.md.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from hashlib import sha256
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import force_setattr

from journal.errors import InvalidAppend, JournalDamaged, JournalVersionError

RECORD_VERSION = 1
DIGEST_CHARS = 64
TEXT_AT = DIGEST_CHARS + 1
TOGETHER = 64  # so many records are checked at once: enough to pay, and their copies stay in the processor's cache


class Kind(StrEnum):
    """The kinds this version writes. A reader must expect others."""

    COMMAND = "command"  # what somebody asked for
    EVENT = "event"  # what is now so
    INTENT = "intent"  # an effect about to be performed
    OUTCOME = "outcome"  # how it ended
    NOTE = "note"  # worth keeping, changes nothing
    CHECKPOINT = "checkpoint"  # a statement about the chain itself
    TOMBSTONE = "tombstone"  # stands for records that were pruned


class Stamp(msgspec.Struct, frozen=True):
    """When an append happened, by the caller's clocks; the journal reads none.

    `wall_ns` is since the epoch, `mono_ns` is comparable within one `boot_id` only.
    """

    wall_ns: int
    mono_ns: int
    boot_id: str


class NewRecord(msgspec.Struct, frozen=True):
    """A record to append.

    `body` is a JSON object, as a dict or as text already encoded. `actor` says who. `cause` is the seq of the record
    that led to this one; a negative number -k is the k-th record before this one in the same append.
    """

    kind: str
    type: str
    body: dict[str, Any] | msgspec.Raw
    actor: dict[str, Any] | None = None
    cause: int | None = None


class Stored(NamedTuple):
    """A record, and the value it is stored as."""

    record: "Record"
    value: bytes


class Head(msgspec.Struct, frozen=True):
    """The last record's seq and digest; (0, 64 zeros) for a journal without records."""

    seq: int
    digest: str


# The fields in this order are the keys of the JSON text in that order. `digest` is not among them: its default is
# omitted when encoding. gc=False: a record cannot be part of a cycle, and a fold makes a million of them.
class Record(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A stored record. `digest` is the SHA-256 of its text in hex, `prev` that of the record with the seq before."""

    v: int
    seq: int
    stream: str
    rev: int
    wall_ns: int
    mono_ns: int
    boot_id: str
    kind: str
    type: str
    actor: dict[str, Any] | None
    cause: int | None
    body: msgspec.Raw
    prev: str
    digest: str = ""

    @property
    def data(self) -> dict[str, Any]:
        """The body, decoded afresh at each use: keep it in a variable."""
        return decode_object(self.body)


UPCASTERS: dict[int, Callable[[Record], Record]] = {}
"""From a version of records to the next one: what a reader makes of an older record, after its digest was checked. Each
gives a record whose `v` is one more; what is stored stays as it is. Version 1 is the first."""

_ENCODER = msgspec.json.Encoder()
_RECORD = msgspec.json.Decoder(Record)
_OBJECT = msgspec.json.Decoder(dict[str, Any])
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


def encode_object(what: str, value: dict[str, Any] | msgspec.Raw) -> msgspec.Raw:
    """The JSON text of an object, checked. Raises InvalidAppend, naming `what`."""
    try:
        text = bytes(value) if isinstance(value, msgspec.Raw) else _ENCODER.encode(value)
        text.decode()  # msgspec skips over text it does not look into, and takes any bytes there
        _OBJECT.decode(text)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidAppend(f"{what} is no JSON object that can be stored: {error}") from error
    return msgspec.Raw(text.strip())


def decode_object(text: msgspec.Raw) -> dict[str, Any]:
    """The inverse of `encode_object`."""
    value: dict[str, Any] = _OBJECT.decode(text)
    return value


def seal(record: Record) -> tuple[bytes, Record]:
    """The stored value of a record that has no digest yet, and the record as a reader will see it."""
    text = _ENCODER.encode(record)
    digest = sha256(text).hexdigest()
    # Written and read must agree, whatever a body that was given as text contains: it is decoded as a reader will do it.
    stored = parse(text, record.seq)
    written = (record.seq, record.stream, record.rev, record.prev)
    assert (stored.seq, stored.stream, stored.rev, stored.prev) == written, "envelope is broken"
    assert stored.body == record.body, "body is broken"
    force_setattr(stored, "digest", digest)
    return f"{digest} ".encode() + text, stored


def unseal(value: bytes, seq: int) -> Record:
    """The record stored under `seq`, checked against its own digest.

    Raises JournalDamaged when digest, text or seq are wrong, JournalVersionError when the record is of a later version.
    """
    digest, text = split(value, seq)
    if text_digest(text) != digest:
        raise JournalDamaged(f"record `{seq}` was modified: its text does not have its digest", seq=seq)
    record = parse(text, seq)
    if record.seq != seq:
        raise JournalDamaged(f"record `{record.seq}` is stored in the place of record `{seq}`", seq=seq)
    force_setattr(record, "digest", digest)
    return record


def unsealed(values: Sequence[bytes], seqs: Sequence[int]) -> Iterator[Iterable[Record]]:
    """The records stored under `seqs`, a few dozen at a time; each is checked and refused as by `unseal` by its turn."""
    for at in range(0, len(values), TOGETHER):
        some, places = values[at : at + TOGETHER], seqs[at : at + TOGETHER]
        yield unseal_sound(some, places) or map(unseal, some, places)


def unseal_sound(values: Sequence[bytes], seqs: Sequence[int]) -> list[Record]:
    """As `unseal` of each, if all of them pass; else an empty list, which does not say which one does not, nor why.

    The same checks, each made of all records at once, which is what makes reading fast.
    """
    texts = [value[TEXT_AT:] for value in values]
    digests = [sha256(text).hexdigest() for text in texts]
    # No part is longer than 65 bytes, so two joined ones can only be equal when all their parts are.
    if b"".join([value[:TEXT_AT] for value in values]) != (" ".join(digests) + " ").encode():
        return []
    try:
        records = list(map(_RECORD.decode, texts))
    except _UNREADABLE:
        return []
    for record, digest, seq in zip(records, digests, seqs, strict=True):
        if record.seq != seq or record.v != RECORD_VERSION:
            return []
        force_setattr(record, "digest", digest)
    return records


def split(value: bytes, seq: int) -> tuple[str, bytes]:
    """The digest and the text of a stored value. Raises JournalDamaged when it has not that shape."""
    if value[DIGEST_CHARS:TEXT_AT] != b" " or not value[:DIGEST_CHARS].isalnum():
        raise JournalDamaged(f"record `{seq}` does not begin with a digest", seq=seq)
    return value[:DIGEST_CHARS].decode(), value[TEXT_AT:]


def text_digest(text: bytes) -> str:
    """The digest of a record's text: SHA-256, 64 lowercase hex digits."""
    return sha256(text).hexdigest()


def parse(text: bytes, seq: int) -> Record:
    """Decode a record's text; `digest` is left empty. Raises as `unseal` does."""
    try:
        record = _RECORD.decode(text)
    except _UNREADABLE as error:
        later = _later_version(text)
        if later is not None:
            raise _newer(seq, later) from error
        raise JournalDamaged(f"record `{seq}` cannot be decoded: {error}", seq=seq) from error
    if record.v > RECORD_VERSION:
        raise _newer(seq, record.v)
    while record.v < RECORD_VERSION:
        upcast = UPCASTERS.get(record.v)
        if upcast is None:
            raise JournalDamaged(f"record `{seq}` has version `{record.v}`, which there never was", seq=seq)
        record = upcast(record)
    return record


def _later_version(text: bytes) -> int | None:
    """The version of a record that is not shaped like one of ours, when it says that it is a later one."""
    try:
        version = _OBJECT.decode(text).get("v")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return version if isinstance(version, int) and version > RECORD_VERSION else None


def _newer(seq: int, version: int) -> JournalVersionError:
    return JournalVersionError(
        f"record `{seq}` has version `{version}`, this program knows up to `{RECORD_VERSION}`",
        hint="use the version of the program that wrote it, or a later one",
    )


def unseal_alone(value: bytes) -> Stored:
    """The record of a stored value that is not in its place. Raises as `unseal` does."""
    return Stored(unseal(value, parse(split(value, 0)[1], 0).seq), value)
