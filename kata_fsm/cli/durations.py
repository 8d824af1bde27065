# SPDX-License-Identifier: Apache-2.0
"""Durations as Go writes them: `5s`, `1m30s`, `250ms`, `1.5h`."""

from __future__ import annotations

import re

from kata_fsm.errors import UsageError

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def seconds_of(text: str) -> float:
    """Seconds. Raises `UsageError` for what is no duration."""
    body = text.lstrip("+-")
    parts = list(_PART.finditer(body))
    if text == "0":
        return 0.0
    if not parts or "".join(part[0] for part in parts) != body:
        raise UsageError(f"`{text}` is no duration", hint="legal are `5s`, `1m30s`, `250ms`")
    total = sum(float(part[1]) * _UNITS_S[part[2]] for part in parts)
    return -total if text.startswith("-") else total
