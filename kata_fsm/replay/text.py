# SPDX-License-Identifier: Apache-2.0
"""The story for people: verdict first, because that is what a story is opened for; then the table of records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from kata_fsm.replay import moments
from kata_fsm.replay.escape import harmless
from kata_fsm.replay.story import Row, Story, apart_ms
from kata_fsm.replay.subject import split_stream
from kata_fsm.replay.verdict import Spans, Verdict, count_effects, held, judge, spans, unfinished
from kata_fsm.replay.why import Link, rules, why_ended
from kata_fsm.replay.words import brief, cause_words, failure_words, short_name, short_value, who

HEAD_CHARS = 118  # where the lines above the table are wrapped
STATE_CHARS = 11  # the longest source state
CLOCKS = ("delta", "wall", "monotonic", "boot")
NOTE_NOISE = ("cause", "process", "subject", "code")  # the code stands in the cause's message
COMMAND_NOISE = ("config", "container", "sandbox", "process", "uid", "versions", "shim")


class View(msgspec.Struct, frozen=True):
    """What of a story is shown, and how. `last` is how many rows of the table, None for all."""

    clock: str = "delta"
    utc: bool = False
    full: bool = False
    effects: bool = True
    machines: frozenset[str] = frozenset()
    last: int | None = None
    standing: str = ""  # what is to be said about a sandbox that is alive by its records


def render(story: Story, view: View) -> list[str]:
    """The whole story as lines, every one of them harmless to a terminal."""
    return [harmless(line.rstrip()) for line in _lines(story, view)]


def _lines(story: Story, view: View) -> Iterator[str]:
    yield from _summary(story, view)
    yield ""
    yield from table(story, view)


# --- above the table --------------------------------------------------------------------------------------------------


def _summary(story: Story, view: View) -> Iterator[str]:
    verdict = judge(story)
    name, uid = split_stream(story.stream)
    extent = f"{len(story.rows)} records, seq {story.first.seq}..{story.last.seq}"
    parts = [f"sandbox {name} ({uid})", verdict.label]
    if verdict.cause is not None:
        parts.append("cause: " + cause_words(verdict.cause))
    elif verdict.exit_code is not None:
        parts.append(f"exit code {verdict.exit_code}")
    yield from _wrapped("", [*parts, extent], "   ")
    yield _when(story, verdict, view)
    links = why_ended(story)
    if links:
        yield from _wrapped(" why   ", [_link_words(link) for link in links], " ← ")
    yield from _left(story)
    if verdict.live and view.standing:
        yield " note  " + view.standing
    if story.damage:
        yield f" note  the journal is damaged, this story stops before its end: {story.damage}"
    if story.divergences:
        told = f"{len(story.divergences)} records do not match this version's tables"
        yield f" note  {told}: `kata-fsm replay check` names them"


def _when(story: Story, verdict: Verdict, view: View) -> str:
    took = spans(story)
    parts = [f"born {moments.date_time(story.first.wall_ns, utc=view.utc)}", *_span_words(took)]
    if verdict.exit_code is not None and took.ran_ms is not None:
        parts.append(f"exit code {verdict.exit_code}")
    return " when  " + ", ".join(parts)


def _span_words(took: Spans) -> Iterator[str]:
    ran = "runs, so far for" if took.running else "ran"
    for word, ms in (("created in", took.created_ms), ("started in", took.started_ms), (ran, took.ran_ms),
                     ("taken down in", took.stopped_ms)):  # fmt: skip
        if ms is not None:
            yield f"{word} {moments.duration(ms)}"


def _link_words(link: Link) -> str:
    return f"{link.text} [{link.seq}]"


def _left(story: Story) -> Iterator[str]:
    counts = count_effects(story)
    told = f"{counts.done} effects done"
    told += f", {counts.failed} failed" if counts.failed else ""
    told += f", {counts.given_up} given up" if counts.given_up else ""
    waiting, holding = unfinished(story), held(story)
    if not waiting and not holding:
        yield f" left  nothing open ({told})"
        return
    if waiting:
        yield from _wrapped(" left  open: ", [_shortened(text) for text in waiting], ", ")
    if holding:
        lead = " left  " if not waiting else "       "
        yield from _wrapped(f"{lead}held: ", [_shortened(text) for text in holding], ", ")
    yield f"       ({told})"


def _shortened(text: str) -> str:
    return " ".join(short_name(word) for word in text.split(" "))


def _wrapped(lead: str, parts: list[str], between: str) -> Iterator[str]:
    """`parts` joined by `between`, broken before a part that would pass `HEAD_CHARS`, and indented under `lead`."""
    line, empty = lead, True
    for part in parts:
        if not empty and len(line) + len(between) + len(part) > HEAD_CHARS:
            yield line
            line, empty = " " * 7 + between.lstrip(), False
            line += part
            continue
        line += part if empty else between + part
        empty = False
    yield line


# --- the table --------------------------------------------------------------------------------------------------------


class Cells(msgspec.Struct, frozen=True):
    """One line of the table."""

    seq: str
    time: str
    machine: str
    middle: str
    trigger: str
    detail: str
    below: tuple[str, ...] = ()


def shown(story: Story, view: View) -> list[Row]:
    """The rows that the view lets through."""
    rows = [row for row in story.rows if _passes(row, view)]
    return rows if view.last is None else rows[max(0, len(rows) - view.last) :]


def _passes(row: Row, view: View) -> bool:
    if not view.effects and row.lane in ("intent", "outcome"):
        return False
    return not view.machines or row.machine in view.machines


def table(story: Story, view: View) -> Iterator[str]:
    """The header and one line per shown record."""
    rows = shown(story, view)
    heading = {"delta": "+ms", "wall": "time", "monotonic": "s", "boot": "s of boot"}[view.clock]
    cells = [Cells("seq", heading, "machine", f"{'from':<{STATE_CHARS}} → to", "trigger", "detail")]
    before: Row | None = None
    for row in rows:
        cells.append(_cells(row, _time(row, before, story.first, view), view))
        before = row
    widths = [
        max(len(getattr(cell, name)) for cell in cells) for name in ("seq", "time", "machine", "middle", "trigger")
    ]
    hidden = len([row for row in story.rows if _passes(row, view)]) - len(rows)
    before = None
    for cell, shown_row in zip(cells, [None, *rows], strict=True):
        if before is not None and shown_row is not None and before.boot_id != shown_row.boot_id:
            yield f" -- the host was started anew (boot {shown_row.boot_id[:8]}) --"
        yield _line(cell, widths)
        yield from cell.below
        if shown_row is None and hidden:
            yield f" … {hidden} earlier records are not shown"
        before = shown_row


def _line(cell: Cells, widths: list[int]) -> str:
    seq, time, machine, middle, trigger = widths
    return (
        f" {cell.seq:>{seq}}  {cell.time:>{time}}  {cell.machine:<{machine}}  {cell.middle:<{middle}}"
        f"  {cell.trigger:<{trigger}}  {cell.detail}"
    )


def _time(row: Row, before: Row | None, first: Row, view: View) -> str:
    match view.clock:
        case "wall":
            return moments.clock_time(row.wall_ns, utc=view.utc)
        case "monotonic":
            return f"{apart_ms(first, row) / 1000:.3f}"
        case "boot":
            return f"{row.mono_ns / 1e9:.3f}"
    return "0" if before is None else moments.short_delta(apart_ms(before, row))


def _cells(row: Row, time: str, view: View) -> Cells:
    subject = row.subject if view.full else short_name(row.subject)
    make = {"command": _command, "move": _move, "intent": _intent, "outcome": _outcome, "note": _note}.get(
        row.lane, _other
    )
    machine, middle, trigger, detail = make(row, subject)
    below = tuple(_everything(row)) if view.full else ()
    return Cells(str(row.seq), time, machine, middle, trigger, detail, below)


def one_line(row: Row) -> str:
    """A record as one line without time and alignment, for lists that hold other things, too."""
    cells = _cells(row, "", View())
    words = " ".join(part for part in (cells.machine, " ".join(cells.middle.split()), cells.trigger) if part)
    return f"{words}  {cells.detail}".rstrip()


_Parts = tuple[str, str, str, str]


def _command(row: Row, subject: str) -> _Parts:
    fields = {key: value for key, value in row.detail.items() if key not in COMMAND_NOISE}
    return (
        "command",
        row.what,
        subject,
        "  ".join(part for part in (who(row.actor), _asked(row), brief(fields)) if part),
    )


def _asked(row: Row) -> str:
    """The arguments of what is to be run, where the command names any."""
    for key in ("config", "container"):
        config = row.detail.get(key)
        args = config.get("args") if isinstance(config, dict) else None
        if isinstance(args, list) and args:
            return short_value(" ".join(map(str, args)))
    return ""


def _move(row: Row, subject: str) -> _Parts:
    facts = {key: value for key, value in row.detail.items() if key != "shim"}
    told = [f"coupled: {row.rule}"] if row.rule else []
    shim = row.detail.get("shim")
    if isinstance(shim, dict):
        told.append(f"shim.pid={shim.get('pid')}")
    told += [text] if (text := brief(facts)) else []
    if row.wrong:
        told.append(f"!! {row.wrong}")
    return f"{row.machine} {subject}".rstrip(), f"{row.source:<{STATE_CHARS}} → {row.dest}", row.what, "  ".join(told)


def _intent(row: Row, subject: str) -> _Parts:
    pending = "" if row.pair is not None else "no outcome yet"
    return "effect", f"▶ {row.what}", subject, "  ".join(part for part in (pending, brief(_news(row))) if part)


def _news(row: Row) -> dict[str, Any]:
    """An intent's parameters without what the row says already."""
    said = ("container", "sandbox", "uid", "process", "exec")
    return {key: value for key, value in row.detail.items() if key not in said}


def _outcome(row: Row, subject: str) -> _Parts:
    took = "" if row.ms is None else moments.duration(row.ms)
    told = ["late: its state had been left"] if row.late else []
    if row.pair is None:  # not an effect of the machines: nothing else tells what was done
        told.append(brief({key: value for key, value in row.detail.items() if key not in ("message", "evidence")}))
    if not row.ok:
        told.append(failure_words(row.detail))
    return "effect", f"{'✔' if row.ok else '✘'} {row.what}", took, "  ".join(part for part in (subject, *told) if part)


def _note(row: Row, subject: str) -> _Parts:
    cause = row.detail.get("cause")
    told = [cause_words(cause)] if isinstance(cause, dict) else []
    if isinstance(cause, dict) and isinstance(cause.get("evidence"), dict):
        told.append(brief(cause["evidence"]))
    told.append(brief({key: value for key, value in row.detail.items() if key not in NOTE_NOISE}))
    return "note", f"! {row.what}", subject, "  ".join(part for part in told if part)


def _other(row: Row, subject: str) -> _Parts:
    told = [f"!! {row.wrong}"] if row.wrong else []
    return "record", row.what, subject, "  ".join([*told, brief(row.detail)])


# --- --full -----------------------------------------------------------------------------------------------------------


def _everything(row: Row) -> Iterator[str]:
    """Everything a record holds, below its line: lists of words (an argv) one per line, long texts line by line."""
    if row.rule and (rule := rules().get(row.rule)):
        yield f"{'':8}because {rule.why}"
    if row.actor:
        yield from _value("actor", row.actor, 8)
    for key, value in row.detail.items():
        yield from _value(key, value, 8)


def _value(key: str, value: Any, indent: int) -> Iterator[str]:
    pad = " " * indent
    if isinstance(value, dict) and value:
        yield f"{pad}{key}:"
        for inner, nested in value.items():
            yield from _value(str(inner), nested, indent + 2)
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        yield f"{pad}{key}:"
        for index, nested in enumerate(value):
            yield from _value(f"[{index}]", nested, indent + 2)
    elif isinstance(value, list) and value:
        yield f"{pad}{key}[{len(value)}]:"
        yield from (f"{pad}  {item if isinstance(item, str) else json.dumps(item)}" for item in value)
    elif isinstance(value, str) and "\n" in value:
        yield f"{pad}{key}:"
        yield from (f"{pad}  | {line}" for line in value.splitlines())
    else:
        yield f"{pad}{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
