# SPDX-License-Identifier: Apache-2.0
"""Instants and durations, as people write and read them. Wall times are nanoseconds since the epoch."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from kata_fsm.errors import EXIT_USAGE, UsageError

_UNITS_S = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "hour": 3600, "hours": 3600, "d": 86400, "day": 86400,
            "days": 86400, "w": 604800, "week": 604800}  # fmt: skip
_RELATIVE = re.compile(r"-?(\d+)\s*([a-z]+)(?: ago)?")


def duration(ms: float) -> str:
    """`0.4 ms`, `37 ms`, `1.90 s`, `3 min 12 s`, `2 h 5 min`, `3 d 4 h`."""
    if ms < 0:
        return "-" + duration(-ms)
    if ms < 1:
        return "0 ms" if ms == 0 else f"{ms:.1f} ms"
    if ms < 999.5:
        return f"{ms:.0f} ms"
    seconds = ms / 1000
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for name, size, lower, small in (("min", 60, "s", 1), ("h", 3600, "min", 60)):
        if whole < size * (60 if name == "min" else 24):
            return f"{whole // size} {name} {whole % size // small} {lower}"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def short_delta(ms: float) -> str:
    """A lane of a table: `+121`, `+12.3s`, `+191s`, `+75min`, `+30h`; milliseconds where no unit stands."""
    sign, size = ("-", -ms) if ms < 0 else ("+", ms)
    if size < 9_999.5:
        return f"{sign}{size:.0f}"
    if size < 99_950:
        return f"{sign}{size / 1000:.1f}s"
    if size < 600_000:
        return f"{sign}{size / 1000:.0f}s"
    if size < 36_000_000:
        return f"{sign}{size / 60_000:.0f}min"
    return f"{sign}{size / 3_600_000:.0f}h"


def iso_utc(wall_ns: int) -> str:
    """RFC 3339 in UTC with milliseconds: `2026-11-23T11:02:07.000Z`."""
    return f"{_at(wall_ns, utc=True):%Y-%m-%dT%H:%M:%S}.{wall_ns // 1_000_000 % 1000:03d}Z"


def clock_time(wall_ns: int, *, utc: bool) -> str:
    """The time of day with milliseconds; `Z` marks UTC."""
    return f"{_at(wall_ns, utc=utc):%H:%M:%S}.{wall_ns // 1_000_000 % 1000:03d}{'Z' if utc else ''}"


def date_time(wall_ns: int, *, utc: bool) -> str:
    """Date and time to the second; `Z` marks UTC."""
    return f"{_at(wall_ns, utc=utc):%Y-%m-%d %H:%M:%S}{'Z' if utc else ''}"


def _at(wall_ns: int, *, utc: bool) -> datetime:
    return datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC if utc else None)


def parse_instant(text: str, now_ns: int) -> int:
    """The instant that `text` names; without a zone the local one is meant. Raises `UsageError`.

    ISO 8601, `HH:MM[:SS]` today, `@SECONDS`, `-10min`, `2h ago`, `today`, `yesterday`, `now`.
    """
    text = text.strip()
    now = _at(now_ns, utc=False).astimezone()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    named = {"now": now, "today": midnight, "yesterday": midnight - timedelta(days=1)}
    if text in named:
        return _ns(named[text])
    relative = _RELATIVE.fullmatch(text)
    if relative and (text.startswith("-") or text.endswith(" ago")) and relative[2] in _UNITS_S:
        return now_ns - int(relative[1]) * _UNITS_S[relative[2]] * 1_000_000_000
    if re.fullmatch(r"@\d{1,18}(\.\d+)?", text):
        whole, _, fraction = text[1:].partition(".")
        return int(whole) * 1_000_000_000 + int(fraction[:9].ljust(9, "0"))
    try:
        if re.fullmatch(r"\d\d?:\d\d(:\d\d)?", text):
            hour, minute, second = (*map(int, text.split(":")), 0)[:3]
            return _ns(midnight.replace(hour=hour, minute=minute, second=second))
        return _ns(datetime.fromisoformat(text).astimezone())
    except (ValueError, OverflowError, OSError):
        hint = "write `2026-11-23 11:00`, `11:00`, `-10min`, `yesterday` or `@SECONDS`"
        error = UsageError(f"`{text}` is no time", hint=hint)
        error.exit_code = EXIT_USAGE
        raise error from None


def _ns(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000) * 1000
