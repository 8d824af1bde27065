# SPDX-License-Identifier: Apache-2.0
"""What reading is about: the words that a journal and a bundle answer with, and what the two have in common."""

from collections.abc import Collection, Iterator
from typing import Protocol

import msgspec

from journal.errors import JournalDamaged
from journal.records import Head, Record


class StreamInfo(msgspec.Struct, frozen=True):
    """Where a stream begins and ends; `rev` is that of its last record, which is also how many it has."""

    stream: str
    first_seq: int
    last_seq: int
    rev: int


class Snapshot(msgspec.Struct, frozen=True):
    """What a stream's records up to `rev` fold to, as the user stored it with that record."""

    rev: int
    data: bytes


class Gap(msgspec.Struct, frozen=True):
    """Records that were pruned, one after the other. `digest` is that of the last one, which the next links to."""

    first: int
    last: int
    digest: str

    def __contains__(self, seq: int) -> bool:
        return self.first <= seq <= self.last


class Picked(msgspec.Struct, frozen=True):
    """Which records are wanted, all of it together. Times in ns since the epoch, the first included, the second not."""

    since_ns: int | None = None
    until_ns: int | None = None
    kinds: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()

    def __contains__(self, record: Record) -> bool:
        return not (
            (self.since_ns is not None and record.wall_ns < self.since_ns)
            or (self.until_ns is not None and record.wall_ns >= self.until_ns)
            or (self.kinds and record.kind not in self.kinds)
            or (self.types and record.type not in self.types)
        )


class RecordSource(Protocol):
    """What a journal and a bundle have in common: records, by seq and by stream. Methods as in `Reader`."""

    @property
    def path(self) -> str: ...

    def head(self) -> Head: ...

    def get(self, seq: int) -> Record | None: ...

    def read(
        self,
        from_seq: int = 1,
        to_seq: int | None = None,
        reverse: bool = False,
        *,
        since_ns: int | None = None,
        until_ns: int | None = None,
        kinds: Collection[str] = (),
        types: Collection[str] = (),
    ) -> Iterator[Record]: ...

    def read_stream(
        self, stream: str, from_rev: int = 1, to_rev: int | None = None, reverse: bool = False
    ) -> Iterator[Record]: ...

    def rev(self, stream: str) -> int: ...

    def streams(self) -> Iterator[StreamInfo]: ...


def read_gap(key: bytes, value: bytes) -> Gap:
    """A row of the table `gaps`. Raises JournalDamaged."""
    try:
        fields = msgspec.json.decode(value, type=dict[str, int | str])
        return Gap(int.from_bytes(key, "big"), int(fields["last"]), str(fields["digest"]))
    except (msgspec.MsgspecError, KeyError, ValueError) as error:
        raise JournalDamaged(f"the gap at `{int.from_bytes(key, 'big')}` cannot be decoded: {error}") from error


def gap_value(gap: Gap) -> bytes:
    """The inverse of `read_gap`, without the key."""
    return msgspec.json.encode({"last": gap.last, "digest": gap.digest})
