# SPDX-License-Identifier: Apache-2.0
"""Heads kept elsewhere: what they look like, and the proof that the journal has only grown since one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from kata_fsm.errors import EXIT_CHAIN, DamagedData, NotFoundError
from kata_fsm.replay.jsonout import dumps
from kata_fsm.replay.moments import iso_utc

if TYPE_CHECKING:
    from journal import Journal

SCHEMA = "kata-fsm.journal.head/1"
FILE_BYTES_MAX = 64 << 10


class KeptHead(msgspec.Struct, frozen=True):
    """A head: of which journal, which record, its digest, and when it was asked for."""

    schema: str
    journal: str
    seq: int
    digest: str
    time: str


def text_of(journal: Journal, wall_ns: int) -> str:
    """The journal's head as one line of JSON. Raises what reading raises."""
    head = journal.head()
    return dumps(msgspec.to_builtins(KeptHead(SCHEMA, journal.identity(), head.seq, head.digest, iso_utc(wall_ns))))


def read(path: str) -> KeptHead:
    """A head from a file. Raises NotFoundError, DamagedData."""
    try:
        with open(path, "rb") as file:
            kept = msgspec.json.decode(file.read(FILE_BYTES_MAX), type=KeptHead)
    except OSError as error:
        raise NotFoundError(f"head `{path}` cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise DamagedData(f"`{path}` is no head: {error}", hint="`kata-fsm audit head -O FILE` writes one") from error
    if kept.schema != SCHEMA:
        raise DamagedData(f"`{path}` is of schema `{kept.schema}`, not `{SCHEMA}`")
    return kept


def check_growth(journal: Journal, path: str | None) -> str:
    """Prove that a sound journal has only grown since the head in `path`, if there is one; what was proven, in a line.

    Raises DamagedData with exit code 6 when it has not, and what `Journal.prove` raises.
    """
    now = journal.head()
    if path is None:
        return f"ok: nothing was changed, head seq {now.seq}, sha256:{now.digest}"
    kept = read(path)
    if kept.journal != journal.identity():
        error = DamagedData(
            f"`{path}` is the head of journal `{kept.journal}`, this one is `{journal.identity()}`",
            hint="it is another journal, or its first record was changed",
        )
        error.exit_code = EXIT_CHAIN
        raise error
    from journal import Head

    journal.prove(Head(kept.seq, kept.digest))
    return (
        f"ok: nothing was changed, and {now.seq - kept.seq} records were only added since seq {kept.seq} "
        f"({kept.time}); head seq {now.seq}, sha256:{now.digest}"
    )
