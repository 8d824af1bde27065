# SPDX-License-Identifier: Apache-2.0
"""Would today's code agree? Every recorded step is decided again and compared with what was written. Pure.

Two questions are asked. Does each event follow from the state before it by the tables of this build? And does each input,
given to this build's machines at that point, lead to the transitions and intents that were recorded after it? Facts are
not compared, only what moved: they hold what the world answered. After a difference the fold goes on with what was
recorded, so that one difference is not told a hundred times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from journal import Record
from kata_fsm import __version__
from kata_fsm.errors import KataFsmError
from kata_fsm.machines import Pod, Step, check, decide, fold, vocab
from kata_fsm.machines.intents import PARAMS
from kata_fsm.machines.pod import TABLE_VERSION, TABLES
from kata_fsm.machines.vocab import EffectDone, EffectFailed, Moved
from kata_fsm.replay.story import Story, moved_of

_Shape = tuple[str, ...]
"""What of a record is compared: kind, then what moved from where to where, or which effect of whom."""


class Divergence(msgspec.Struct, frozen=True):
    """A place where journal and build disagree, told from both sides."""

    stream: str
    seq: int
    what: str
    journal_by: str
    journal_says: str
    build_by: str
    build_says: str

    def message(self) -> list[str]:
        """What disagrees, and both sides, for people."""
        sides = [f"journal ({self.journal_by})", f"this build ({self.build_by})"]
        width = max(map(len, sides))
        return [
            f"replay: seq {self.seq} does not match this version's {self.what}",
            f"  {sides[0]:<{width}}   {self.journal_says}",
            f"  {sides[1]:<{width}}   {self.build_says}",
        ]

    @property
    def hint(self) -> str:
        """What to do about it."""
        if self.journal_by.removeprefix("written by ") == self.build_by:
            return "the versions are equal: either the machines were changed without a new version, or the records were"
        return (
            "the tables changed between these versions: replay with the version that wrote the journal to see it agree"
        )


def compare(records: Sequence[Record], story: Story) -> list[Divergence]:
    """Every divergence of one stream, in order."""
    return list(_steps(records, story.stream, _sides(story)))


def _sides(story: Story) -> tuple[str, str]:
    version, tables = story.versions.get("kata_fsm", "unknown"), story.versions.get("tables", "unknown")
    return f"written by kata-fsm {version}, tables {tables}", f"kata-fsm {__version__}, tables {TABLE_VERSION}"


def _steps(records: Sequence[Record], stream: str, sides: tuple[str, str]) -> Iterator[Divergence]:
    pod = Pod()
    for group in _grouped(records):
        first_wrong = None
        after = pod
        for record in group:
            move = moved_of(record)
            if move is not None:
                wrong = _by_table(after, move, record.seq, stream, sides)
                first_wrong = first_wrong or wrong
                after = fold([move], after) if move.machine in TABLES else after
        if first_wrong is None:
            first_wrong = _by_decision(pod, group, stream, sides)
        if first_wrong is not None:
            yield first_wrong
        pod = after


def _grouped(records: Sequence[Record]) -> Iterator[list[Record]]:
    """The records of one step: an input, then what it led to."""
    group: list[Record] = []
    for record in records:
        if record.kind not in ("event", "intent") and group:
            yield group
            group = []
        group.append(record)
    if group:
        yield group


def _by_table(pod: Pod, move: Moved, seq: int, stream: str, sides: tuple[str, str]) -> Divergence | None:
    wrong = check(pod, move)
    if wrong is None:
        return None
    said = f"{move.source} --{move.trigger}--> {move.dest}"
    table = TABLES.get(move.machine)
    state = pod.unit(move.machine, move.subject).state if table else ""
    dest = table.follow(state, move.trigger) if table else None
    built = f"{state} --{move.trigger}--> {dest}" if dest else wrong
    return Divergence(stream, seq, f"{move.machine} table", sides[0], said, sides[1], built)


def _by_decision(pod: Pod, group: list[Record], stream: str, sides: tuple[str, str]) -> Divergence | None:
    given = input_of(group[0])
    if given is None:
        return None
    said = [_shape(record.kind, record.type, record.data) for record in group[1:]]
    try:
        step: Step = decide(pod, given)
    except KataFsmError as error:
        said_yes, says_no = f"{group[0].type} accepted", f"refused: {error}"
        return Divergence(stream, group[0].seq, "decision", sides[0], said_yes, sides[1], says_no)
    built = [_shape(draft.kind, draft.type, draft.body) for draft in step.records[1:]]
    for index in range(max(len(said), len(built))):
        mine = built[index] if index < len(built) else None
        theirs = said[index] if index < len(said) else None
        if mine != theirs:
            seq = group[min(index + 1, len(group) - 1)].seq
            return Divergence(
                stream, seq, f"answer to `{group[0].type}`", sides[0], _told(theirs), sides[1], _told(mine)
            )
    return None


def _shape(kind: str, type_: str, body: dict[str, Any]) -> _Shape:
    if kind == "event":
        names = ("machine", "subject", "source", "trigger", "dest", "rule")
        return (kind, *(str(body.get(name, "")) for name in names))
    return (kind, type_, str(body.get("subject", "")))


def _told(shape: _Shape | None) -> str:
    if shape is None:
        return "nothing further"
    if shape[0] == "event":
        _, machine, subject, source, trigger, dest, rule = shape
        who = f"{machine} {subject}".rstrip()
        return f"{who}: {source} --{trigger}--> {dest}" + (f" (rule {rule})" if rule else "")
    return " ".join(part for part in shape if part)


def _union(types: Any, tag_field: str) -> dict[str, type[Any]]:
    configs = {member: member.__struct_config__ for member in types.__args__}
    return {str(config.tag): member for member, config in configs.items() if config.tag_field == tag_field}


_COMMANDS = _union(vocab.Command, "do")
_NOTES = _union(vocab.Observation, "saw")


def input_of(record: Record) -> Any:
    """The input that a record stands for; None for one that is none, or that this build does not know."""
    readers: dict[str, Callable[[Record], Any]] = {
        "command": lambda r: _convert(r.data, _COMMANDS.get(r.type), "do", r.type),
        "note": lambda r: _convert(r.data, _NOTES.get(r.type), "saw", r.type),
        "outcome": _outcome,
    }
    reader = readers.get(record.kind)
    return None if reader is None else reader(record)


def _convert(body: dict[str, Any], type_: type[Any] | None, tag_field: str, tag: str) -> Any:
    if type_ is None:
        return None
    try:
        return msgspec.convert({**body, tag_field: tag}, type_)
    except msgspec.ValidationError:
        return None


def _outcome(record: Record) -> Any:
    if record.type not in PARAMS:  # the outcome of something that is no effect of the machines, such as a signal
        return None
    body = record.data
    done = body.get("ok") is True
    type_, tag = (EffectDone, "done") if done else (EffectFailed, "failed")
    return _convert({**body, "kind": record.type}, type_, "outcome", tag)
