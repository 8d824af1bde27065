# SPDX-License-Identifier: Apache-2.0
"""`ps` for the processes of one container, from /proc: `-ef` (what engines ask for), `aux`, and `-o COLUMN,...`.

busybox's `ps` has neither the columns nor the option to name processes. Pids are the guest's.
"""

from __future__ import annotations

import os
from time import CLOCK_BOOTTIME, clock_gettime, localtime, strftime, time

from . import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_DAY_S = 86_400
_FULL = ("uid", "pid", "ppid", "c", "stime", "tty", "time", "cmd")
_LONG = ("user", "pid", "pcpu", "pmem", "vsz", "rss", "tty", "stat", "start", "time", "command")
_PTS_MAJORS = range(136, 144)  # Documentation/admin-guide/devices.txt


class _Row:
    """One process, as /proc has it."""

    gid: int
    cpu_s: float
    nice: int
    threads: int
    age_s: float
    vsz_kib: int
    rss_kib: int
    command: str

    def __init__(self, pid: int, procfs: str, machine: _Machine) -> None:
        base = f"{procfs}/{pid}"
        stat = files.read(f"{base}/stat")
        self.comm = stat[stat.index("(") + 1 : stat.rindex(")")]
        fields = stat[stat.rindex(")") + 2 :].split()
        self.machine = machine
        self.pid = pid
        self.stat = fields[0]
        numbers = [int(field) for field in fields[1:22]]
        self.ppid, self.pgid, self.sid, self.tty_number = numbers[:4]
        self.cpu_s = (numbers[10] + numbers[11]) / machine.ticks
        self.nice = numbers[15]
        self.threads = numbers[16]
        self.age_s = max(0.0, machine.uptime_s - numbers[18] / machine.ticks)
        self.vsz_kib = numbers[19] >> 10
        self.rss_kib = numbers[20] * machine.page_kib
        command = files.read_or(f"{base}/cmdline", "").rstrip("\0").replace("\0", " ")
        self.command = command or f"[{self.comm}]"
        ids = [line for line in files.read_or(f"{base}/status", "").splitlines() if line[:4] in ("Uid:", "Gid:")]
        self.uid = int(ids[0].split()[2])  # the effective one
        self.gid = int(ids[1].split()[2])


class _Machine:
    """What rows are measured against."""

    def __init__(self, procfs: str) -> None:
        self.ticks = os.sysconf("SC_CLK_TCK")
        self.page_kib = os.sysconf("SC_PAGE_SIZE") >> 10
        self.uptime_s = clock_gettime(CLOCK_BOOTTIME)
        self.now_s = time()
        first = files.read_or(f"{procfs}/meminfo", "MemTotal: 1 kB").split()
        self.memory_kib = max(1, int(first[1]))


def _user(row: _Row) -> str:
    return "root" if row.uid == 0 else str(row.uid)  # the guest's own list of names is not the container's


def _tty(row: _Row) -> str:
    major = row.tty_number >> 8 & 0xFFF
    minor = row.tty_number & 0xFF | row.tty_number >> 12 & 0xFFF00
    if major in _PTS_MAJORS:
        return f"pts/{minor + (major - _PTS_MAJORS.start) * 256}"
    return "?" if not row.tty_number else f"{major}:{minor}"


def _clock(seconds: float) -> str:
    whole = int(seconds)
    days = f"{whole // _DAY_S}-" if whole >= _DAY_S else ""
    return f"{days}{whole % _DAY_S // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def _started(row: _Row) -> str:
    return strftime("%H:%M" if row.age_s < _DAY_S else "%b%d", localtime(row.machine.now_s - row.age_s))


def _share(row: _Row) -> float:
    return 100 * row.cpu_s / row.age_s if row.age_s else 0.0


# column -> (header, is it a number, value)
_COLUMNS: dict[str, tuple[str, bool, Callable[[_Row], str]]] = {
    "uid": ("UID", False, _user),
    "user": ("USER", False, _user),
    "gid": ("GID", True, lambda row: str(row.gid)),
    "pid": ("PID", True, lambda row: str(row.pid)),
    "ppid": ("PPID", True, lambda row: str(row.ppid)),
    "pgid": ("PGID", True, lambda row: str(row.pgid)),
    "sid": ("SID", True, lambda row: str(row.sid)),
    "c": ("C", True, lambda row: str(int(_share(row)))),
    "pcpu": ("%CPU", True, lambda row: f"{_share(row):.1f}"),
    "pmem": ("%MEM", True, lambda row: f"{100 * row.rss_kib / row.machine.memory_kib:.1f}"),
    "vsz": ("VSZ", True, lambda row: str(row.vsz_kib)),
    "rss": ("RSS", True, lambda row: str(row.rss_kib)),
    "nice": ("NI", True, lambda row: str(row.nice)),
    "nlwp": ("NLWP", True, lambda row: str(row.threads)),
    "stat": ("STAT", False, lambda row: row.stat),
    "stime": ("STIME", False, _started),
    "start": ("START", False, _started),
    "etime": ("ELAPSED", True, lambda row: _clock(row.age_s)),
    "tty": ("TTY", False, _tty),
    "time": ("TIME", True, lambda row: _clock(row.cpu_s)),
    "comm": ("COMMAND", False, lambda row: row.comm),
    "cmd": ("CMD", False, lambda row: row.command),
    "command": ("COMMAND", False, lambda row: row.command),
}
_SAME = {
    "args": "command", "tt": "tty", "tname": "tty", "s": "stat", "state": "stat", "%cpu": "pcpu", "%mem": "pmem",
    "ni": "nice", "euid": "uid", "euser": "user", "group": "gid", "ucmd": "comm", "cputime": "time", "thcount": "nlwp",
}  # fmt: skip


def run(args: list[str], pids: list[int], procfs: str) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of `ps ARGS` over `pids`; those that end meanwhile are left out."""
    columns: list[tuple[str, str]] = []  # (column, header)
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word.startswith(("-o", "o")):
            wanted = word.partition("o")[2] or (rest.pop(0) if rest else "")
            for item in wanted.replace(" ", ",").split(","):
                name, equals, header = item.partition("=")
                name = _SAME.get(name.lower(), name.lower())
                if name not in _COLUMNS:
                    return (
                        1,
                        "",
                        f"error: unknown user-defined format specifier `{name}`; legal are {', '.join(_COLUMNS)}\n",
                    )
                columns.append((name, header if equals else _COLUMNS[name][0]))
        elif word in ("aux", "-aux", "axu", "u", "ax"):
            columns = [(name, _COLUMNS[name][0]) for name in _LONG]
        elif word.lstrip("-").strip("efFlAaxwHT"):
            return 1, "", f"error: option `{word}` is not known here; legal are `-ef`, `aux` and `-o COLUMN,...`\n"
    return 0, _table(columns or [(name, _COLUMNS[name][0]) for name in _FULL], pids, procfs), ""


def _table(columns: list[tuple[str, str]], pids: list[int], procfs: str) -> str:
    machine = _Machine(procfs)
    lines = [[header for _, header in columns]]
    for pid in pids:
        try:
            row = _Row(pid, procfs, machine)
        except (OSError, ValueError, IndexError):
            continue
        lines.append([_COLUMNS[name][2](row) for name, _ in columns])
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    text = []
    for line in lines:
        cells = [
            cell.rjust(width) if _COLUMNS[name][1] else cell.ljust(width)
            for cell, width, (name, _) in zip(line, widths, columns, strict=True)
        ]
        text.append(" ".join(cells).rstrip() + "\n")
    return "".join(text)
