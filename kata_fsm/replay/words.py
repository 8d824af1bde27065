# SPDX-License-Identifier: Apache-2.0
"""JSON-able detail as a few words: what fits behind a row of the timeline."""

from __future__ import annotations

import json
from typing import Any

VALUE_CHARS_MAX = 48  # of one value in a row
BRIEF_CHARS_MAX = 150  # of all detail in a row; `--full` prints everything
NAME_CHARS_MAX = 20  # an id of 64 characters would push the rest of the row off the screen

_NOISE = frozenset({"config", "start_ticks", "boot_id", "error", "versions"})
"""Keys that a row leaves out: they are long, they are repeated elsewhere, or only programs care."""

UNSET_LOGINUID = 4294967295


def short_name(name: str) -> str:
    """An id, abbreviated to its first 12 characters when it is long; a process keeps its part after the slash."""
    head, slash, tail = name.partition("/")
    if len(head) > NAME_CHARS_MAX:
        head = head[:12] + "…"
    return head + slash + tail


def short_value(value: Any) -> str:
    """One value in at most `VALUE_CHARS_MAX` characters; of a text of several lines, the last."""
    if isinstance(value, str):
        lines = [line for line in value.splitlines() if line.strip()]
        text = lines[-1] if len(lines) > 1 else value
        if len(text) >= 40 and not text.strip("0123456789abcdef"):
            return text[:12] + "…"  # a digest: enough to tell it from others
        return _cut(text if text and " " not in text else f'"{text}"')
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and value and isinstance(value[-1], str) and len(value) == 1:
        return short_value(value[0])
    return _cut(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _cut(text: str) -> str:
    return text if len(text) <= VALUE_CHARS_MAX else text[: VALUE_CHARS_MAX - 1] + "…"


def _pairs(facts: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in facts.items():
        if key in _NOISE or value is None or value is False or value in ("", [], {}):
            continue  # absent, empty, or off: `--full` has it
        name = prefix + key
        if key == "cause" and isinstance(value, dict):
            found.append(f"cause={value.get('kind', 'unknown')}")
        elif isinstance(value, dict):
            if not prefix and len(value) <= 4:
                found += _pairs(value, f"{name}.")
            else:
                found.append(f"{name}{{{len(value)}}}")
        elif isinstance(value, list) and len(value) > 2:
            found.append(f"{name}[{len(value)}]")
        else:
            found.append(f"{name}={short_value(value)}")
    return found


def brief(facts: dict[str, Any]) -> str:
    """`accel=kvm process.pid=9120 argv[43]`: one line, bounded."""
    text = " ".join(_pairs(facts))
    return text if len(text) <= BRIEF_CHARS_MAX else text[: BRIEF_CHARS_MAX - 1] + "…"


def who(actor: dict[str, Any] | None) -> str:
    """`by uid 0 (loginuid 1000) pid 8812 `podman``; empty when the record names nobody."""
    if not actor:
        return ""
    login = actor.get("loginuid")
    logged_in = "" if login is None else f" (loginuid {'unset' if login in (UNSET_LOGINUID, -1) else login})"
    pid = f" pid {actor['pid']}" if "pid" in actor else ""
    comm = f" `{actor['comm']}`" if actor.get("comm") else ""
    return f"by uid {actor.get('uid', '?')}{logged_in}{pid}{comm}"


def failure_words(detail: dict[str, Any]) -> str:
    """What an effect's failed outcome says: `in `spawn`: no such file (errno=2)`."""
    phase, evidence = detail.get("phase"), detail.get("evidence")
    told = brief(evidence) if isinstance(evidence, dict) else ""
    message = str(detail.get("message", "no reason was given"))
    return (f"in `{phase}`: " if phase else "") + message + (f" ({told})" if told else "")


def cause_words(cause: dict[str, Any]) -> str:
    """A cause's kind and what is known about it: its own message, or what the kind means."""
    from kata_fsm.machines.vocab import CAUSES

    kind = str(cause.get("kind", "unknown"))
    message = str(cause.get("message") or CAUSES.get(kind, ""))
    return f"{kind}: {message}" if message else kind
