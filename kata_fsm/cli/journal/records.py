# SPDX-License-Identifier: Apache-2.0
"""`journal list`, `tail` and `get`: the records themselves, in the manner of journalctl."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kata_fsm.errors import EXIT_FAILED, EXIT_USAGE, NotFoundError, UsageError
from kata_fsm.replay.arguments import count, parser, put

if TYPE_CHECKING:
    from collections.abc import Iterable

    from journal import Journal, Record, RecordSource

TAIL_RECORDS = 20
FIELDS = ("kind", "type", "stream", "boot", "uid", "comm")
FORMATS = ("text", "verbose", "json")
TIME_HELP = "`2026-11-23 11:00`, `11:00`, `-10min`, `yesterday`, `@SECONDS`"


def list_(argv: list[str]) -> int:
    """`journal list`: everything, or what is asked for."""
    return _show("journal list", "Records, oldest first.", argv, None)


def tail(argv: list[str]) -> int:
    """`journal tail`: the last ones, and with `-f` those to come."""
    return _show("journal tail", "The last records.", argv, TAIL_RECORDS)


def _options(prog: str, description: str, argv: list[str], lines: int | None) -> argparse.Namespace:
    options = parser(prog, description)
    add = options.add_argument
    add("matches", nargs="*", metavar="FIELD=VALUE", help=f"only these; FIELD is one of {', '.join(FIELDS)}")
    add("-f", "--follow", action="store_true", help="go on printing as records are appended")
    add("-n", "--lines", type=count, default=lines, metavar="N", help=f"the last N (default {lines or 'all'})")
    add("-r", "--reverse", action="store_true", help="newest first")
    add("-S", "--since", metavar="T", help=TIME_HELP)
    add("-U", "--until", metavar="T", help="records before this time")
    add(
        "-b",
        "--boot",
        nargs="?",
        const="0",
        metavar="BOOT",
        help="of one boot: 0 this one (default), -1 the one before",
    )
    add("--subject", metavar="ID", help="only one sandbox, named as for `kata-fsm replay`")
    add("-o", "--format", choices=FORMATS, default="text", help="json: one object a line")
    add("--utc", action="store_true", help="times in UTC")
    given = options.parse_args(argv)
    if given.follow and given.reverse:
        options.error("--follow and --reverse exclude each other")
    return given


def _show(prog: str, description: str, argv: list[str], lines: int | None) -> int:
    given = _options(prog, description, argv, lines)
    from kata_fsm.replay.reading import open_journal

    with open_journal(given.journal) as source:
        wanted = Wanted(source, given)
        begin = source.head().seq + 1
        newest = 0
        for record in wanted.records():
            put([_text(record, given)])
            newest = max(newest, record.seq)
        if not given.follow:
            return 0 if newest or not wanted.narrowed else EXIT_FAILED
        sys.stdout.flush()
        for record in _following(source, begin):
            if record.seq > newest and record in wanted:
                put([_text(record, given)])
                sys.stdout.flush()
    return 0


def _following(source: RecordSource, from_seq: int) -> Iterator[Record]:
    from journal import Journal

    return source.follow(from_seq) if isinstance(source, Journal) else iter(())


class Wanted:
    """Which records the command line asks for."""

    def __init__(self, source: RecordSource, given: argparse.Namespace) -> None:
        from kata_fsm.replay.moments import parse_instant
        from kata_fsm.replay.subject import resolve
        from kata_fsm.world import WORLD

        now = WORLD.wall_ns()
        self._source = source
        self._given = given
        self._since = parse_instant(given.since, now) if given.since else None
        self._until = parse_instant(given.until, now) if given.until else None
        self._matches = _matches(given.matches)
        if given.subject is not None:
            self._matches.setdefault("stream", set()).add(resolve(source, given.subject).stream)
        if given.boot is not None:
            self._matches["boot"] = {_boot(source, given.boot)}
        self.narrowed = bool(self._matches or self._since or self._until)

    def __contains__(self, record: Record) -> bool:
        if (self._since is not None and record.wall_ns < self._since) or (
            self._until is not None and record.wall_ns >= self._until
        ):
            return False
        return all(_value(record, field) in values for field, values in self._matches.items())

    def records(self) -> Iterable[Record]:
        """Those that are there now, the last N of them if that is asked for."""
        number, reverse = self._given.lines, self._given.reverse
        if number is None:
            return (record for record in self._scan(reverse) if record in self)
        found: list[Record] = []
        for record in self._scan(reverse=True):
            if len(found) == number:
                break
            if record in self:
                found.append(record)
        return found if reverse else found[::-1]

    def _scan(self, reverse: bool) -> Iterator[Record]:
        streams = self._matches.get("stream")
        if streams is not None and len(streams) == 1:
            return self._source.read_stream(next(iter(streams)), reverse=reverse)
        kinds, types = (self._matches.get(field, ()) for field in ("kind", "type"))
        return self._source.read(reverse=reverse, since_ns=self._since, until_ns=self._until, kinds=kinds, types=types)


def _matches(given: list[str]) -> dict[str, set[str]]:
    """Values by field: of one field any will do, and every field must."""
    found: dict[str, set[str]] = {}
    for match in given:
        field, equals, value = match.partition("=")
        if not equals or field not in FIELDS:
            error = UsageError(f"`{match}` is no match", hint=f"FIELD=VALUE, where FIELD is one of {', '.join(FIELDS)}")
            error.exit_code = EXIT_USAGE
            raise error
        found.setdefault(field, set()).add(value)
    return found


def _value(record: Record, field: str) -> str:
    if field == "boot":
        return record.boot_id
    if field in ("uid", "comm"):
        return str((record.actor or {}).get(field, ""))
    return str(getattr(record, field))


def _boot(source: RecordSource, text: str) -> str:
    """The boot that `text` names: an id, 0 for this one, -1 for the one recorded before it, 1 for the first recorded."""
    from kata_fsm.world import WORLD

    if not text.lstrip("-").isdigit():
        return text
    number, current = int(text), WORLD.boot_id()
    if number == 0:
        return current
    boots = list(dict.fromkeys(record.boot_id for record in source.read()))
    earlier = [boot for boot in boots if boot != current]
    chosen = boots[number - 1 : number] if number > 0 else earlier[number : len(earlier) + number + 1]
    if not chosen:
        raise NotFoundError(f"there is no boot `{text}` in the journal", hint=f"it has records of {len(boots)} boots")
    return chosen[0]


def get(argv: list[str]) -> int:
    """`journal get`: one record."""
    options = parser("journal get", "One record as JSON, with its digest.")
    options.add_argument("seq", type=count, metavar="SEQ")
    options.add_argument("--raw", action="store_true", help="the text as it is stored and hashed, and nothing else")
    given = options.parse_args(argv)
    from kata_fsm.replay.reading import open_host_journal, open_journal

    if given.raw:
        with open_host_journal(given.journal) as journal:
            _required(journal, given.seq)
            text = journal.get_text(given.seq)
        assert text is not None
        sys.stdout.flush()
        sys.stdout.buffer.write(text)
        return 0
    with open_journal(given.journal) as source:
        record = _required(source, given.seq)
    put([record_json(record, indent=2)])
    return 0


def _required(source: RecordSource | Journal, seq: int) -> Record:
    record = source.get(seq)
    if record is None:
        raise NotFoundError(f"there is no record `{seq}`", hint=f"the last one is `{source.head().seq}`")
    return record


def _text(record: Record, given: argparse.Namespace) -> str:
    match given.format:
        case "json":
            return record_json(record)
        case "verbose":
            return "\n".join(_verbose(record, utc=given.utc))
        case _:
            return record_line(record, utc=given.utc)


def record_json(record: Record, indent: int | None = None) -> str:
    """A record as stored, with its digest and its wall time in words."""
    from kata_fsm.replay.jsonout import dumps
    from kata_fsm.replay.moments import iso_utc

    names = [name for name in record.__struct_fields__ if name != "body"]
    fields = {name: getattr(record, name) for name in names}
    return dumps({"time": iso_utc(record.wall_ns), **fields, "body": record.data}, indent=indent)


def record_line(record: Record, *, utc: bool) -> str:
    """A record in one line."""
    from kata_fsm.replay.escape import harmless
    from kata_fsm.replay.moments import clock_time
    from kata_fsm.replay.words import brief, who

    told = "  ".join(part for part in (who(record.actor), brief(record.data)) if part)
    when = clock_time(record.wall_ns, utc=utc)
    return harmless(f"{record.seq:>6}  {when}  {record.stream}  {record.kind:<8} {record.type}  {told}".rstrip())


def _verbose(record: Record, *, utc: bool) -> Iterator[str]:
    """A record in full: its line, then a line for each thing it holds."""
    from kata_fsm.replay.escape import harmless
    from kata_fsm.replay.jsonout import dumps
    from kata_fsm.replay.moments import date_time

    yield record_line(record, utc=utc)
    rows: dict[str, Any] = {
        "time": date_time(record.wall_ns, utc=utc),
        "rev": record.rev,
        "boot": record.boot_id,
        "cause": record.cause,
        "actor": None if record.actor is None else dumps(record.actor),
        "digest": f"sha256:{record.digest}",
        **{f"body.{key}": value if isinstance(value, str) else dumps(value) for key, value in record.data.items()},
    }
    for name, value in rows.items():
        if value is not None:
            yield harmless(f"        {name}: {value}")
