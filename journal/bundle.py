# SPDX-License-Identifier: Apache-2.0
"""Bundles: whole streams in one file, to be read on another machine.

A bundle is a gzip stream. Inside are the line `hash-chained journal bundle 1` and then parts, each a line that names the
part and how many bytes follow, those bytes, and a newline:

    header N    a JSON object: `journal` (identity), `streams`, and `about`, which is whatever the maker wanted to say
    record N    a record as stored: digest, space, text; in the order of seq
    end N       a JSON object: `records`, how many, and `sha256` of everything before this part

A part of another name is passed over. Equal records make equal bytes. A bundle keeps seqs, revs and digests, so what it
holds can be compared with the journal it came from; of the chain it holds the links between records that stand next to
each other. Reading checks all of that, and takes the records into memory.
"""

import gzip
import os
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Any, BinaryIO

import msgspec

from journal import layout
from journal.errors import InvalidAppend, JournalDamaged, JournalError, JournalVersionError, StreamMissing
from journal.records import Head, Record, Stored, unseal_alone
from journal.source import Picked, StreamInfo

SUFFIX = ".kfsm"
MAGIC = b"hash-chained journal bundle "
VERSION = 1
GZIP_LEVEL = 6

# What is taken into memory, and what is a part's length in digits at the most: a bundle may come from anywhere.
BUNDLE_BYTES_MAX = 1 << 30
LINE_BYTES_MAX = 200
HEADER_BYTES_MAX = 16 << 20


class Held(msgspec.Struct, frozen=True):
    """What a header says of one stream. `first_rev` is 1 unless its beginning could not be had."""

    stream: str
    records: int
    first_seq: int
    last_seq: int
    first_rev: int
    last_rev: int


class Header(msgspec.Struct, frozen=True):
    """The first part of a bundle."""

    journal: str
    streams: list[Held]
    about: dict[str, Any] = {}


class Trailer(msgspec.Struct, frozen=True):
    """The last part of a bundle."""

    records: int
    sha256: str


# --- writing ----------------------------------------------------------------------------------------------------------


def header_of(journal: str, records: Iterable[Record], about: dict[str, Any]) -> Header:
    """The header for these records."""
    held: dict[str, Held] = {}
    for record in records:
        so_far = held.get(record.stream)
        first_seq, first_rev = (so_far.first_seq, so_far.first_rev) if so_far else (record.seq, record.rev)
        count = so_far.records + 1 if so_far else 1
        held[record.stream] = Held(record.stream, count, first_seq, record.seq, first_rev, record.rev)
    return Header(journal, list(held.values()), about)


def make(path: str, journal: str, stored: Sequence[Stored], about: dict[str, Any]) -> tuple[Header, str]:
    """Write records of the journal with that identity, in the order of seq, to a new file; its header and digest.

    Raises InvalidAppend when they are more than a bundle may hold, JournalError when the file cannot be written.
    """
    size = sum(len(each.value) for each in stored)
    if size > BUNDLE_BYTES_MAX // 2:
        raise InvalidAppend(
            f"records of `{size}` bytes are too much for a bundle, `{BUNDLE_BYTES_MAX // 2}` are legal",
            hint="export fewer streams at a time",
        )
    header = header_of(journal, (each.record for each in stored), about)
    try:
        return header, write_file(path, header, (each.value for each in stored))
    except OSError as error:
        raise JournalError(f"bundle `{path}` cannot be written: {error.strerror or error}") from error


def write(file: BinaryIO, header: Header, values: Iterable[bytes]) -> str:
    """Write a bundle of stored values; return the SHA-256 of what is inside the compression, in hex."""
    digest = sha256()
    count = 0
    # no name and no time, so that equal records make equal bytes
    with gzip.GzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=file, mtime=0) as packed:

        def put(data: bytes) -> None:
            digest.update(data)
            packed.write(data)

        put(MAGIC + b"%d\n" % VERSION)
        put(_part("header", msgspec.json.encode(header)))
        for value in values:
            put(_part("record", value))
            count += 1
        inside = digest.hexdigest()
        packed.write(_part("end", msgspec.json.encode(Trailer(count, inside))))
    return inside


def write_file(path: str, header: Header, values: Iterable[bytes]) -> str:
    """Write a bundle to `path`, readable by its owner only, as a whole or not at all. As `write`. Raises OSError."""
    partial = f"{path}.{os.getpid()}.part"
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            digest = write(file, header, values)
            file.flush()
            os.fsync(fd)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
    return digest


def _part(name: str, data: bytes) -> bytes:
    return b"%s %d\n%s\n" % (name.encode(), len(data), data)


# --- reading ----------------------------------------------------------------------------------------------------------


class Bundle:
    """A bundle in memory: read-only, with the reading methods of a journal (see `reading.Reader`)."""

    def __init__(self, path: str, header: Header, stored: list[Stored], sha256: str) -> None:
        self._path = path
        self.header = header
        self.sha256 = sha256
        self.stored = stored
        self._by_seq = {each.record.seq: each.record for each in stored}
        self._streams: dict[str, list[Record]] = {}
        for record, _ in stored:
            self._streams.setdefault(record.stream, []).append(record)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Bundle":
        """Read a bundle, and check that it is whole and every record in it is what was written.

        Raises JournalDamaged, JournalVersionError, and JournalError when the file cannot be read at all.
        """
        name = os.fspath(path)
        try:
            with open(name, "rb") as file:
                return cls._read(name, file)
        except OSError as error:
            if isinstance(error, gzip.BadGzipFile):
                raise JournalDamaged(f"`{name}` is no bundle: {error}", hint="a bundle is a gzip file") from error
            raise JournalError(f"bundle `{name}` cannot be read: {error.strerror or error}") from error
        except (EOFError, zlib.error) as error:
            raise JournalDamaged(
                f"bundle `{name}` is cut short or damaged: {error}", hint="copy it again from where it was made"
            ) from error

    @classmethod
    def _read(cls, name: str, file: BinaryIO) -> "Bundle":
        with gzip.GzipFile(fileobj=file, mode="rb") as packed:
            parts = _Parts(name, packed)
            header: Header | None = None
            stored: list[Stored] = []
            for part, data in parts.read():
                if part == "header" and header is None:
                    header = _decode(name, data, Header)
                elif part == "record":
                    stored.append(_stored(name, data, stored[-1].record if stored else None))
        if header is None:
            raise JournalDamaged(f"bundle `{name}` has no header")
        assert parts.trailer is not None
        if parts.trailer.records != len(stored) or header != header_of(
            header.journal, (each.record for each in stored), header.about
        ):
            raise JournalDamaged(f"bundle `{name}` does not hold the records that it says")
        return cls(name, header, stored, parts.trailer.sha256)

    @property
    def path(self) -> str:
        """The file."""
        return self._path

    def identity(self) -> str:
        """Of the journal that it comes from."""
        return self.header.journal

    def head(self) -> Head:
        """The last record in it."""
        if not self.stored:
            return Head(0, layout.ZERO_DIGEST)
        last = self.stored[-1].record
        return Head(last.seq, last.digest)

    def get(self, seq: int) -> Record | None:
        """One record, or None."""
        return self._by_seq.get(seq)

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
    ) -> Iterator[Record]:
        """As `Reader.read`."""
        picked = Picked(since_ns, until_ns, frozenset(kinds), frozenset(types))
        for record, _ in reversed(self.stored) if reverse else self.stored:
            if from_seq <= record.seq and (to_seq is None or record.seq <= to_seq) and record in picked:
                yield record

    def read_stream(
        self, stream: str, from_rev: int = 1, to_rev: int | None = None, reverse: bool = False
    ) -> Iterator[Record]:
        """As `Reader.read_stream`."""
        records = self._streams.get(stream, [])
        for record in reversed(records) if reverse else records:
            if from_rev <= record.rev and (to_rev is None or record.rev <= to_rev):
                yield record

    def rev(self, stream: str) -> int:
        """As `Reader.rev`."""
        records = self._streams.get(stream)
        return records[-1].rev if records else 0

    def streams(self) -> Iterator[StreamInfo]:
        """As `Reader.streams`."""
        for name in sorted(self._streams, key=str.encode):
            if name != layout.SYSTEM_STREAM:
                records = self._streams[name]
                yield StreamInfo(name, records[0].seq, records[-1].seq, records[-1].rev)

    def stream(self, name: str) -> StreamInfo:
        """As `Reader.stream`."""
        for info in self.streams():
            if info.stream == name:
                return info
        raise StreamMissing(f"bundle `{self.path}` has no stream `{name}`")


class _Parts:
    """The parts of a bundle, bounded, and its end checked."""

    def __init__(self, name: str, packed: gzip.GzipFile) -> None:
        self._name = name
        self._packed = packed
        self._digest = sha256()
        self._read = 0
        self.trailer: Trailer | None = None

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Every (name, bytes) but the last part, which is kept as `trailer`."""
        self._check_magic(self._line())
        while True:
            before = self._digest.hexdigest()
            part, size = self._heading(self._line())
            data = self._bytes(size + 1)
            if data[-1:] != b"\n":
                raise self._damaged(f"part `{part}` does not end where it says")
            if part == "end":
                break
            yield part, data[:-1]
        self.trailer = _decode(self._name, data[:-1], Trailer)
        if self.trailer.sha256 != before:
            raise self._damaged("its digest is not that of what it holds")
        if self._packed.read(1):
            raise self._damaged("something follows its end")

    def _check_magic(self, line: bytes) -> None:
        version = line.removeprefix(MAGIC)
        if line == version or not version.isdigit():
            raise JournalDamaged(f"`{self._name}` is no bundle", hint="`kata-fsm journal export` makes one")
        if int(version) > VERSION:
            raise JournalVersionError(
                f"bundle `{self._name}` has version `{int(version)}`, this program knows up to `{VERSION}`",
                hint="use the version of the program that made it, or a later one",
            )

    def _heading(self, line: bytes) -> tuple[str, int]:
        name, _, size = line.partition(b" ")
        if not name.isalpha() or not size.isdigit():
            raise self._damaged(f"`{line[:40]!r}` is no heading of a part")
        most = {b"record": layout.RECORD_BYTES_MAX, b"header": HEADER_BYTES_MAX}.get(name, BUNDLE_BYTES_MAX)
        if int(size) > most:
            raise self._damaged(f"a part `{name.decode()}` of `{int(size)}` bytes, `{most}` are legal")
        return name.decode(), int(size)

    def _line(self) -> bytes:
        line = self._packed.readline(LINE_BYTES_MAX)
        if not line.endswith(b"\n"):
            raise self._damaged("it is cut short" if len(line) < LINE_BYTES_MAX else "a line is too long")
        self._take(line)
        return line[:-1]

    def _bytes(self, size: int) -> bytes:
        data = self._packed.read(size)
        if len(data) < size:
            raise self._damaged("it is cut short")
        self._take(data)
        return data

    def _take(self, data: bytes) -> None:
        self._digest.update(data)
        self._read += len(data)
        if self._read > BUNDLE_BYTES_MAX:
            raise self._damaged(f"it holds more than `{BUNDLE_BYTES_MAX}` bytes")

    def _damaged(self, why: str) -> JournalDamaged:
        return JournalDamaged(f"bundle `{self._name}`: {why}", hint="copy it again from where it was made")


def _decode(name: str, data: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise JournalDamaged(f"bundle `{name}`: its {kind.__name__.lower()} cannot be decoded: {error}") from error


def _stored(name: str, value: bytes, before: Record | None) -> Stored:
    """One record, checked by itself and against the one before it in the bundle."""
    try:
        stored = unseal_alone(value)
    except JournalDamaged as error:
        raise JournalDamaged(
            f"bundle `{name}`: {error.message}", hint="copy it again from where it was made"
        ) from error
    record = stored.record
    if before is not None and record.seq <= before.seq:
        raise JournalDamaged(f"bundle `{name}`: record `{record.seq}` stands after record `{before.seq}`")
    if before is not None and record.seq == before.seq + 1 and record.prev != before.digest:
        raise JournalDamaged(f"bundle `{name}`: record `{record.seq}` does not follow the one before it")
    return stored
