# SPDX-License-Identifier: Apache-2.0
"""Is the journal what was written? Every record is read and every finding is named by kind, seq and detail.

One fault gives one finding where that is possible. A record whose text changed is `modified` (its stored digest, and so
the link of the next record, still stand); one whose digest was recomputed as well passes itself and breaks the `chain`
at the next. After a record that cannot be trusted the link of the next is not judged.

What is beyond this: a chain rewritten from some record to the head is consistent. Only a head kept elsewhere shows it.
"""

import os
from collections.abc import Iterator
from itertools import islice

import msgspec

from journal import layout
from journal.env import Env, Tables, Txn, map_errors
from journal.errors import JournalDamaged, JournalError
from journal.records import Head, Record, parse, split, text_digest
from journal.step import last_record, read_head

KINDS = ("structure", "modified", "missing", "reordered", "index", "chain", "head", "codec")


class Finding(msgspec.Struct, frozen=True):
    """Something wrong. `kind` is one of `KINDS`; `seq` the record concerned (the first one of several), 0 for none.

    structure: the file is no sound LMDB environment, and nothing else was looked at. modified: text and stored digest
    differ. missing: no record where one must be. reordered: a record of another seq. chain: `prev` is not the digest
    before. index: the stream index and the records disagree. head: the kept head is not the last record. codec: bytes
    that cannot be read as a record at all.
    """

    kind: str
    seq: int
    detail: str


def verify_path(path: str | os.PathLike[str]) -> Iterator[Finding]:
    """Check the journal in the directory `path`; unlike `Journal.verify` it can be trusted with a file that cannot.

    The engine is not given the file before its structure was found sound. Raises what opening a journal for reading
    raises, but for JournalDamaged, which is a finding; a process that has the journal open calls `Journal.verify`.
    """
    directory = os.fspath(path)
    try:
        env = Env(directory, read_only=True, sync=True, map_bytes=layout.MAP_BYTES)
    except JournalDamaged as error:
        yield Finding("structure", 0, error.message)
        return
    try:
        findings = _structure(env)
        if findings:
            yield from findings
            return
        try:
            env.open_tables()
        except JournalDamaged as error:
            yield Finding("structure", 0, error.message)
            return
        yield from _records(env)
    finally:
        env.close()


def verify(env: Env) -> Iterator[Finding]:
    """Check the journal as it is now; what is appended meanwhile is not looked at. Yields in order of seq, mostly."""
    findings = _structure(env)
    yield from findings or _records(env)


def _structure(env: Env) -> list[Finding]:
    from journal.structure import audit

    with map_errors(env.path):
        return [Finding("structure", 0, flaw) for flaw in audit(env)]


def _records(env: Env) -> Iterator[Finding]:
    tables = env.tables
    with env.read() as txn:
        last = last_record(txn, tables)
        try:
            head = read_head(txn, tables)
        except JournalDamaged as error:
            head = last
            judged: Finding | None = Finding("head", last.seq, error.message)
        else:
            judged = _judge_head(head, last)
        entries = txn.stat(tables.streams)["entries"], txn.stat(tables.records)["entries"]
    walk = _Walk(tables)
    seq = 1
    while seq <= last.seq:
        with env.read() as txn:
            findings = list(walk.batch(txn, seq, last.seq))
        yield from findings
        seq = walk.seq
    if head.seq > last.seq:
        yield _missing(last.seq + 1, head.seq)
    if judged is not None:
        yield judged
    if entries[0] != entries[1]:
        yield from _strays(env, max(last.seq, head.seq))


class _Walk:
    """Goes through the records in batches, remembering what links one to the next."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self.seq = 1  # the next seq to look for
        self._prev: tuple[str, ...] = (layout.ZERO_DIGEST,)  # what the next may link to; empty: not to be judged

    def batch(self, txn: Txn, low: int, high: int) -> Iterator[Finding]:
        """Check the records from `low` up to `high`, at most a batch of them."""
        with txn.cursor(self._tables.records) as cursor:
            cursor.set_range(layout.seq_key(low))
            for key, value in islice(cursor.iternext(), layout.BATCH_RECORDS):
                seq = int.from_bytes(key, "big")
                if seq > high:
                    return
                if seq != self.seq:
                    yield _missing(self.seq, seq - 1)
                    self._prev = ()
                yield from self._record(txn, seq, value)
                self.seq = seq + 1

    def _record(self, txn: Txn, seq: int, value: bytes) -> Iterator[Finding]:
        prev, self._prev = self._prev, ()
        try:
            digest, text = split(value, seq)
        except JournalDamaged as error:
            yield Finding("codec", seq, error.message)
            return
        actual = text_digest(text)
        self._prev = (digest, actual)  # differ: text or digest is damaged, and the next record links to the sound one
        if actual != digest:
            yield Finding("modified", seq, f"record `{seq}` does not have the digest `{digest}` it was stored with")
            return
        try:
            record = parse(text, seq)
        except JournalError as error:
            yield Finding("codec", seq, error.message)
            return
        if record.seq != seq:
            self._prev = ()
            yield Finding("reordered", seq, f"record `{record.seq}` is in the place of record `{seq}`")
            return
        if prev and record.prev not in prev:
            yield Finding(
                "chain", seq, f"record `{seq}` follows `{record.prev}`, but the digest before it is `{prev[0]}`"
            )
        if record.cause is not None and not 0 < record.cause < seq:
            yield Finding("codec", seq, f"record `{seq}` names as its cause `{record.cause}`, which is not before it")
        yield from self._index(txn, record)

    def _index(self, txn: Txn, record: Record) -> Iterator[Finding]:
        """The record is indexed under its stream and rev, and the rev before it is indexed and older."""
        at = _indexed(txn, self._tables, record.stream, record.rev)
        if at != record.seq:
            found = "nothing" if at is None else f"record `{at}`"
            yield Finding(
                "index", record.seq, f"the index has {found} at rev `{record.rev}` of stream `{record.stream}`"
            )
        if record.rev > 1:
            before = _indexed(txn, self._tables, record.stream, record.rev - 1)
            if before is None or before >= record.seq:
                yield Finding(
                    "index", record.seq, f"rev `{record.rev - 1}` of stream `{record.stream}` is not before it"
                )


def _indexed(txn: Txn, tables: Tables, stream: str, rev: int) -> int | None:
    if rev < 1:
        return None
    key = txn.get(layout.stream_key(stream, rev), db=tables.streams)
    return None if key is None else int.from_bytes(key, "big")


def _strays(env: Env, last_seq: int) -> Iterator[Finding]:
    """Index entries that name no record, or one of another stream or rev. Runs only when the counts differ."""
    at = b""
    while True:
        findings = []
        with env.read() as txn, txn.cursor(env.tables.streams) as cursor:
            if not (cursor.set_range(at) if at else cursor.first()):
                return
            for key, value in islice(cursor.iternext(), layout.BATCH_RECORDS):
                at = key + b"\0"
                finding = _stray(txn, env.tables, key, value, last_seq)
                if finding is not None:
                    findings.append(finding)
        yield from findings


def _stray(txn: Txn, tables: Tables, key: bytes, value: bytes, last_seq: int) -> Finding | None:
    name, rev = layout.split_stream_key(key)
    seq = int.from_bytes(value, "big")
    if 0 < seq <= last_seq and txn.get(value, db=tables.records) is None:
        return None  # reported as missing
    stored = txn.get(value, db=tables.records)
    try:
        record = None if stored is None else parse(split(stored, seq)[1], seq)
    except JournalError:
        return None  # reported as what it is
    if record is not None and (record.stream.encode(), record.rev) == (name, rev):
        return None
    stream = name.decode(errors="backslashreplace")
    return Finding("index", seq, f"the index has record `{seq}` at rev `{rev}` of stream `{stream}`, where it is not")


def _judge_head(head: Head, last: Head) -> Finding | None:
    if head == last:
        return None
    if head.seq == last.seq:
        return Finding("head", last.seq, f"the last record has digest `{last.digest}`, the head says `{head.digest}`")
    return Finding("head", last.seq, f"the last record is `{last.seq}`, the head says `{head.seq}`")


def _missing(first: int, last: int) -> Finding:
    what = f"record `{first}` is" if first == last else f"records `{first}` to `{last}` are"
    return Finding("missing", first, f"{what} missing")
