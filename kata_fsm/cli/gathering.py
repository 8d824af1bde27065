# SPDX-License-Identifier: Apache-2.0
"""The lines of one sandbox, from everywhere, in the order of time: what `logs` prints.

What the supervisor did is in the journal, each line with its seq. The files beside it are the console of the guest (the
kernel's lines and the agent's, with the seconds since the guest's boot), QEMU's and virtiofsd's messages, and what the
supervisor had to say about itself. A line without a time of its own gets that of the line before it in its file, or the
file's last change, and is marked: that is where it stands at the latest, not when it was written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from datetime import datetime

import msgspec

from journal import Record
from kata_fsm.cli.log import redacted
from kata_fsm.replay.escape import harmless
from kata_fsm.replay.story import Row, tell
from kata_fsm.replay.text import one_line
from kata_fsm.world import Paths

SOURCES = ("supervisor", "agent", "console", "hypervisor", "virtiofsd")
READ_BYTES_MAX = 16 << 20  # logs are kept far below that

_SINCE_BOOT = re.compile(r"\[ *(\d{1,9})\.(\d{6})\] ?")
_DATED = re.compile(r"\[?(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?)\]?:? *")
_AGENT = "kata-agent: "


class Line(msgspec.Struct, frozen=True):
    """One line. `about`: its time is not its own (see above). `seq`: of the record that it is, else 0."""

    wall_ns: int
    source: str
    text: str
    about: bool = False
    seq: int = 0


class LogFile:
    """A log that may grow, be cut or be gone: `news` answers what was added since it was last asked."""

    def __init__(self, path: str, source: str) -> None:
        self.path = path
        self.source = source
        self._offset = 0
        self._rest = b""
        self._last_ns = 0

    def news(self, boot_ns: int) -> Iterator[Line]:
        """Whole lines only. `boot_ns`: when the guest was started (0: unknown), for lines that count from there."""
        data, changed_ns = self._read()
        whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
        if not newline:
            return
        for raw in whole.split(b"\n"):
            text = raw.decode("utf-8", "replace").rstrip("\r")
            if text.strip():
                yield self._line(text, boot_ns, changed_ns)

    def grown(self) -> bool:
        """Whether there is something that was not read."""
        try:
            return os.stat(self.path).st_size != self._offset
        except OSError:
            return False

    def _read(self) -> tuple[bytes, int]:
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_size < self._offset:  # it was cut
                    self._offset, self._rest = 0, b""
                file.seek(self._offset)
                data = file.read(READ_BYTES_MAX)
        except OSError:
            return b"", 0
        self._offset += len(data)
        return data, status.st_mtime_ns

    def _line(self, text: str, boot_ns: int, changed_ns: int) -> Line:
        when, text = _own_time(text, boot_ns)
        if when:
            self._last_ns = when
        source = self.source
        if source == "console" and text.startswith(_AGENT):
            source, text = "agent", text[len(_AGENT) :]
        return Line(when or self._last_ns or changed_ns, source, text, about=not when)


def _own_time(text: str, boot_ns: int) -> tuple[int, str]:
    """(when it was written or 0, the rest of the line)."""
    since = _SINCE_BOOT.match(text)
    if since is not None:
        rest = text[since.end() :]
        return (boot_ns + int(since[1]) * 10**9 + int(since[2]) * 1000, rest) if boot_ns else (0, rest)
    dated = _DATED.match(text)
    if dated is not None:
        try:
            moment = datetime.fromisoformat(dated[1]).astimezone()
        except ValueError:
            return 0, text
        return int(moment.timestamp() * 1e6) * 1000, text[dated.end() :]
    return 0, text


def files_of(uid: str) -> list[LogFile]:
    """The logs of a sandbox, there or not."""
    paths = Paths(uid)
    return [
        LogFile(paths.console_log, "console"),
        LogFile(paths.qemu_log, "hypervisor"),
        LogFile(paths.virtiofsd_log, "virtiofsd"),
        LogFile(paths.supervisor_log, "supervisor"),
    ]


def of_records(rows: Iterable[Row]) -> Iterator[Line]:
    """What the supervisor did, as the journal tells it."""
    for row in rows:
        yield Line(row.wall_ns, "supervisor", one_line(row), seq=row.seq)


def boot_ns(records: list[Record]) -> int:
    """When the guest's machine was started: by the start of QEMU's process, as the journal has it; 0 if it never was."""
    found = 0
    for row in tell(records, records[0].stream).rows if records else []:
        ticks = row.detail.get("start_ticks")
        if row.lane == "outcome" and row.what == "hypervisor.launch" and isinstance(ticks, int):
            found = row.wall_ns - row.mono_ns + ticks * 10**9 // os.sysconf("SC_CLK_TCK")
    return found


def in_order(lines: Iterable[Line]) -> list[Line]:
    """By time; what has the same time stays as it came."""
    return sorted(lines, key=lambda line: line.wall_ns)


def printed(line: Line) -> str:
    """The text of a line as it may be shown: without secrets, and harmless to a terminal."""
    return harmless(redacted(line.text))
