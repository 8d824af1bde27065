# SPDX-License-Identifier: Apache-2.0
"""Is the journal what was written? Every record is read and every finding is named by kind, seq and detail.

One fault gives one finding where that is possible. A record whose text changed is `modified` (its stored digest, and so
the link of the next record, still stand); one whose digest was recomputed as well passes itself and breaks the `chain`
at the next. After a record that cannot be trusted the link of the next is not judged.

What is beyond this: a chain rewritten from some record to the head is consistent. Only a head kept elsewhere shows it
(`Journal.prove`), or a checkpoint signed with a key that the writer of the new chain does not have.
"""

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice

from journal import beside, checkpoint, layout
from journal.env import Env, Tables, Txn, map_errors
from journal.errors import JournalDamaged, JournalError
from journal.findings import Finding
from journal.records import DIGEST_CHARS, TOGETHER, Head, Record, parse, split, text_digest, unseal_sound
from journal.step import Tip, last_record, read_tip


def verify_path(
    path: str | os.PathLike[str],
    from_seq: int = 1,
    to_seq: int | None = None,
    public_keys: frozenset[bytes] = frozenset(),
) -> Iterator[Finding]:
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
        yield from _records(env, from_seq, to_seq, public_keys)
    finally:
        env.close()


def verify(
    env: Env, from_seq: int = 1, to_seq: int | None = None, public_keys: frozenset[bytes] = frozenset()
) -> Iterator[Finding]:
    """Check the journal as it is now; what is appended meanwhile is not looked at. Yields in order of seq, mostly.

    Of the records only those from `from_seq` to `to_seq`, and how the first of them links to the one before.
    """
    findings = _structure(env)
    yield from findings or _records(env, from_seq, to_seq, public_keys)


def _structure(env: Env) -> list[Finding]:
    from journal.structure import audit

    with map_errors(env.path):
        return [Finding("structure", 0, flaw) for flaw in audit(env)]


def _records(env: Env, from_seq: int, to_seq: int | None, public_keys: frozenset[bytes]) -> Iterator[Finding]:
    tables = env.tables
    with env.read() as txn:
        last = last_record(txn, tables)
        tip, judged = _judged_tip(txn, tables, last)
        entries = txn.stat(tables.streams)["entries"], txn.stat(tables.records)["entries"]
        identity = txn.get(layout.IDENTITY_KEY, db=tables.meta)
        walk = _Walk(
            txn, tables, max(1, from_seq), identity.decode(errors="replace") if identity else None, public_keys
        )
    end = last.seq if to_seq is None else min(to_seq, last.seq)
    whole = from_seq <= 1 and end == last.seq
    while walk.seq <= end:
        with env.read() as txn:
            findings = list(walk.batch(txn, end))
        yield from findings
    if tip.seq > last.seq and whole:
        yield _missing(last.seq + 1, tip.seq)
    if judged is not None:
        yield judged
    if identity is None and tip.seq and tables.times is not None:
        yield Finding("head", 1, "the journal's identity is not kept")
    if whole and judged is None:
        with env.read() as txn:
            findings = [*walk.tip_findings(tip), *beside.time_entries(txn, tables, tip)]
        yield from findings
    if entries[0] != entries[1]:
        yield from beside.strays(env, max(last.seq, tip.seq))
    with env.read() as txn:
        findings = [*beside.accounts(txn, tables), *beside.snapshots(txn, tables), *beside.owner_findings(txn, tables)]
    yield from findings


def _judged_tip(txn: Txn, tables: Tables, last: Head) -> tuple[Tip, Finding | None]:
    try:
        tip = read_tip(txn, tables)
    except JournalDamaged as error:
        return Tip(last.seq, last.digest), Finding("head", last.seq, error.message)
    return tip, _judge_head(tip.head, last)


_STREAMS_REMEMBERED = 4096


class _Walk:
    """Goes through the records in batches, remembering what links one to the next."""

    def __init__(
        self, txn: Txn, tables: Tables, from_seq: int, identity: str | None, public_keys: frozenset[bytes]
    ) -> None:
        self._tables = tables
        self._identity = identity
        self._public_keys = public_keys
        self._indexed: dict[
            tuple[str, int], int
        ] = {}  # by stream and rev, of what was seen last: it is indexed rightly
        self.seq = from_seq  # the next seq to look for
        self._prev: tuple[str, ...] = ()  # what the next may link to; empty: not to be judged
        if from_seq == 1:
            self._prev = (layout.ZERO_DIGEST,)
        elif before := txn.get(layout.seq_key(from_seq - 1), db=tables.records):
            self._prev = (before[:DIGEST_CHARS].decode(errors="replace"),)
        first_of_block = (from_seq - 1) % layout.TIMES_BLOCK == 0
        self._block = _Block(layout.times_block(from_seq), whole=first_of_block)

    def batch(self, txn: Txn, high: int) -> Iterator[Finding]:
        """Check the records from here up to `high`, at most a batch of them."""
        at = None
        with txn.cursor(self._tables.records) as cursor:
            cursor.set_range(layout.seq_key(self.seq))
            for at, value, record in _checked(islice(cursor.iternext(), layout.BATCH_RECORDS)):
                if at > high:
                    break
                if at != self.seq:
                    yield from self._lack(txn, at)
                yield from self._record(txn, at, value, record)
                self.seq = at + 1
        if at is None or at > high:  # none from here to `high`
            yield from self._lack(txn, high + 1)
            self.seq = high + 1

    def tip_findings(self, tip: Tip) -> Iterator[Finding]:
        """What the head says of the last block of the time index, compared with the records of it."""
        if self._tables.times is None or not self._block.whole:
            return
        if tip.wall is None and tip.seq % layout.TIMES_BLOCK == 0:
            return
        if tip.wall is None or not self._block.within(*tip.wall):
            yield Finding("time", tip.seq, "the head does not hold the wall times of the last records")

    def _lack(self, txn: Txn, upto: int) -> Iterator[Finding]:
        """There is no record before `upto`: what was pruned is in a gap, the rest is missing."""
        self._block.incomplete()
        seq = self.seq
        while seq < upto:
            try:
                gap = beside.next_gap(txn, self._tables, seq)
            except JournalDamaged as error:
                yield Finding("gap", seq, error.message)
                gap = None
            if gap is None or gap.first >= upto:
                yield _missing(seq, upto - 1)
                self._prev = ()
                return
            if gap.first > seq:
                yield _missing(seq, gap.first - 1)
            if gap.last >= upto:
                yield Finding(
                    "gap", upto, f"record `{upto}` is there, but was pruned with `{gap.first}` to `{gap.last}`"
                )
                self._prev = ()
                return
            seq, self._prev = gap.last + 1, (gap.digest,)

    def _record(self, txn: Txn, seq: int, value: bytes, record: Record | None) -> Iterator[Finding]:
        """`record`: what `value` holds, if it is known already to be sound in itself."""
        prev = self._prev
        if record is None:
            record = yield from self._alone(seq, value)
        else:
            self._prev = (record.digest,)
        if record is not None:
            yield from self._sound(txn, record, prev)
        yield from self._times(txn, seq, record)

    def _alone(self, seq: int, value: bytes) -> Generator[Finding, None, Record | None]:
        """The record in a value, if it is sound in itself; and what the next one may link to."""
        self._prev = ()
        try:
            digest, text = split(value, seq)
        except JournalDamaged as error:
            yield Finding("codec", seq, error.message)
            return None
        actual = text_digest(text)
        self._prev = (digest, actual)  # differ: text or digest is damaged, and the next record links to the sound one
        if actual != digest:
            yield Finding("modified", seq, f"record `{seq}` does not have the digest `{digest}` it was stored with")
            return None
        try:
            record = parse(text, seq)
        except JournalError as error:
            yield Finding("codec", seq, error.message)
            return None
        if record.seq != seq:
            yield Finding("reordered", seq, f"record `{record.seq}` is in the place of record `{seq}`")
            self._prev = ()
            return None
        return record

    def _sound(self, txn: Txn, record: Record, prev: tuple[str, ...]) -> Iterator[Finding]:
        """What a record says of others."""
        seq = record.seq
        if prev and record.prev not in prev:
            yield Finding(
                "chain", seq, f"record `{seq}` follows `{record.prev}`, but the digest before it is `{prev[0]}`"
            )
        if record.cause is not None and not 0 < record.cause < seq:
            yield Finding("codec", seq, f"record `{seq}` names as its cause `{record.cause}`, which is not before it")
        if seq == 1 and self._identity is not None and self._identity != self._prev[0]:
            yield Finding("head", 1, f"the journal's identity is `{self._identity}`, which is not record 1")
        wrong = checkpoint.fault(record, self._identity, self._public_keys)
        if wrong is not None:
            yield Finding("checkpoint", seq, wrong)
        yield from self._index(txn, record)

    def _index(self, txn: Txn, record: Record) -> Iterator[Finding]:
        """The record is indexed under its stream and rev, and the rev before it is indexed and older."""
        at = _indexed(txn, self._tables, record.stream, record.rev)
        if at != record.seq:
            found = "nothing" if at is None else f"record `{at}`"
            yield Finding(
                "index", record.seq, f"the index has {found} at rev `{record.rev}` of stream `{record.stream}`"
            )
        elif len(self._indexed) < _STREAMS_REMEMBERED:
            self._indexed[record.stream, record.rev] = record.seq
        if record.rev > 1 and record.stream != layout.SYSTEM_STREAM:  # of that, old tombstones may be gone
            before = self._indexed.pop((record.stream, record.rev - 1), None)
            if before is None:
                before = _indexed(txn, self._tables, record.stream, record.rev - 1)
            if before is None or before >= record.seq:
                yield Finding(
                    "index", record.seq, f"rev `{record.rev - 1}` of stream `{record.stream}` is not before it"
                )

    def _times(self, txn: Txn, seq: int, record: Record | None) -> Iterator[Finding]:
        """Compare a block of the time index with its records, at the last of them that there is."""
        if layout.times_block(seq) != self._block.number:  # its last records are gone
            yield from self._end_block(txn, seq)
            self._block.incomplete()
        self._block.add(record)
        if seq % layout.TIMES_BLOCK == 0:
            yield from self._end_block(txn, seq + 1)

    def _end_block(self, txn: Txn, next_seq: int) -> Iterator[Finding]:
        block, self._block = self._block, _Block(layout.times_block(next_seq), whole=True)
        if block.whole and self._tables.times is not None:
            value = txn.get(layout.seq_key(block.number), db=self._tables.times)
            if value is None or len(value) != 16 or not block.within(*layout.split_times(value)):
                last = (block.number + 1) * layout.TIMES_BLOCK
                yield Finding("time", last, f"the time index is wrong for the block that ends with record `{last}`")


class _Block:
    """What was seen of one block of the time index. `whole`: every record of it that there is, none was unreadable."""

    def __init__(self, number: int, *, whole: bool) -> None:
        self.number = number
        self.whole = whole
        self._exact = True
        self._walls: tuple[int, int] | None = None

    def add(self, record: Record | None) -> None:
        if record is None:
            self.whole = False
        elif self._walls is None:
            self._walls = record.wall_ns, record.wall_ns
        else:
            self._walls = min(self._walls[0], record.wall_ns), max(self._walls[1], record.wall_ns)

    def incomplete(self) -> None:
        """Records of it are gone: what the index says may be wider than what is left."""
        self._exact = False

    def within(self, least: int, greatest: int) -> bool:
        """Whether an entry of the index is right for it."""
        if self._walls is None or self._walls == (least, greatest):
            return True
        return not self._exact and least <= self._walls[0] and self._walls[1] <= greatest


def _checked(items: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[int, bytes, Record | None]]:
    """Seq, value and record of rows of the table `records`; None where a record must be looked at alone."""
    while piece := list(islice(items, TOGETHER)):
        seqs = [int.from_bytes(key, "big") for key, _ in piece]
        values = [value for _, value in piece]
        sound: Sequence[Record | None] = unseal_sound(values, seqs) or [None] * len(piece)
        yield from zip(seqs, values, sound, strict=True)


def _indexed(txn: Txn, tables: Tables, stream: str, rev: int) -> int | None:
    if rev < 1:
        return None
    key = txn.get(layout.stream_key(stream, rev), db=tables.streams)
    return None if key is None else int.from_bytes(key, "big")


def _judge_head(head: Head, last: Head) -> Finding | None:
    if head == last:
        return None
    if head.seq == last.seq:
        return Finding("head", last.seq, f"the last record has digest `{last.digest}`, the head says `{head.digest}`")
    return Finding("head", last.seq, f"the last record is `{last.seq}`, the head says `{head.seq}`")


def _missing(first: int, last: int) -> Finding:
    what = f"record `{first}` is" if first == last else f"records `{first}` to `{last}` are"
    return Finding("missing", first, f"{what} missing")
