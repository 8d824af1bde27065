# SPDX-License-Identifier: Apache-2.0
"""Which stream is meant.

A stream is named `SANDBOX@UID`. A subject may be: `latest` (the sandbox born last), `latest:failed`, a sandbox's id, its
uid, a stream's whole name, a unique beginning of any of these, or the id of any container a sandbox ever held. An id can
be used again after its sandbox was deleted: then the latest life of it is meant, and its uid names an earlier one.
"""

from __future__ import annotations

import msgspec

from journal import RecordSource, StreamInfo
from kata_fsm.errors import NotFoundError
from kata_fsm.machines import Pod, fold, sandbox
from kata_fsm.replay.escape import harmless
from kata_fsm.replay.reading import LATEST, map_errors, read_what_can_be
from kata_fsm.replay.story import moved_of

CANDIDATES_SHOWN = 5


class Meant(msgspec.Struct, frozen=True):
    """The stream that was meant; `earlier` are former lives of the same id, oldest first."""

    stream: str
    earlier: tuple[str, ...] = ()


def split_stream(stream: str) -> tuple[str, str]:
    """(sandbox id, uid) of a stream's name; the uid is empty when the name has none."""
    name, at, uid = stream.rpartition("@")
    return (name, uid) if at else (stream, "")


def born_order(journal: RecordSource) -> list[StreamInfo]:
    """All streams, oldest first."""
    return sorted(journal.streams(), key=lambda info: info.first_seq)


def resolve(journal: RecordSource, subject: str = LATEST) -> Meant:
    """The stream that `subject` names. Raises `NotFoundError`, naming what there is, if it is none or not unique."""
    with map_errors():
        streams = born_order(journal)
        if not streams:
            raise NotFoundError(f"journal `{journal.path}` has no sandbox yet", hint="`kata-fsm run` makes one")
        if subject == LATEST:
            return _with_earlier(streams[-1].stream, streams)
        if subject == f"{LATEST}:failed":
            return _latest_failed(journal, streams)
        return _exact(subject, streams) or _by_prefix(subject, streams) or _by_container(journal, subject, streams)


def _with_earlier(stream: str, streams: list[StreamInfo]) -> Meant:
    name = split_stream(stream)[0]
    lives = [info.stream for info in streams if split_stream(info.stream)[0] == name]
    return Meant(stream, tuple(lives[: lives.index(stream)]))


def _latest_failed(journal: RecordSource, streams: list[StreamInfo]) -> Meant:
    for info in reversed(streams):
        records, _ = read_what_can_be(journal, info.stream)
        if any(record.type == "sandbox.fail" for record in records):
            return _with_earlier(info.stream, streams)
    raise NotFoundError("no sandbox in this journal has failed", hint="`kata-fsm replay list` shows how each ended")


def _exact(subject: str, streams: list[StreamInfo]) -> Meant | None:
    for info in reversed(streams):
        if subject in (info.stream, *split_stream(info.stream)):
            return _with_earlier(info.stream, streams)
    return None


def _by_prefix(subject: str, streams: list[StreamInfo]) -> Meant | None:
    found = [
        info.stream
        for info in streams
        if subject and (info.stream.startswith(subject) or split_stream(info.stream)[1].startswith(subject))
    ]
    if len({split_stream(stream)[0] for stream in found}) > 1:
        shown = ", ".join(f"`{harmless(stream)}`" for stream in found[-CANDIDATES_SHOWN:])
        raise NotFoundError(
            f"`{harmless(subject)}` is not unique: {len(found)} sandboxes begin so", hint=f"among them {shown}"
        )
    return _with_earlier(found[-1], streams) if found else None


def _by_container(journal: RecordSource, subject: str, streams: list[StreamInfo]) -> Meant:
    for info in reversed(streams):
        if subject in pod_of(journal, info.stream).containers:
            return _with_earlier(info.stream, streams)
    newest = ", ".join(f"`{harmless(split_stream(info.stream)[0])}`" for info in reversed(streams[-CANDIDATES_SHOWN:]))
    raise NotFoundError(
        f"no sandbox or container `{harmless(subject)}` in journal `{journal.path}`", hint=f"the latest are {newest}"
    )


def pod_of(journal: RecordSource, stream: str) -> Pod:
    """The pod that a stream folds to, as far as it can be read."""
    records, _ = read_what_can_be(journal, stream)
    return fold(move for move in map(moved_of, records) if move is not None)


def is_live(pod: Pod) -> bool:
    """Whether the records leave the sandbox alive."""
    return pod.sandbox.state in sandbox.LIVE
