# SPDX-License-Identifier: Apache-2.0
"""Sandboxes recorded with version 1 of the tables, which must read the same for ever.

`tests/golden/sandboxes-v1/data.mdb` was made by `make.py` beside it and is never made again: a change to the tables that
makes an old journal read differently raises `TABLE_VERSION`, brings an upcaster, and adds a directory of its own. When
this test fails, the code is wrong, not the file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from journal import Journal
from kata_fsm.machines.pod import Pod, check, evolve, moved_from_body, summary
from kata_fsm.replay.subject import resolve

FROZEN = Path(__file__).resolve().parents[2] / "golden" / "sandboxes-v1"
FILE_SHA256 = "cc8ba8f88ae142d8c109a75acb39bc1b98b42f51a74594efe25d7ac6280718f4"
ENDS = json.loads((FROZEN / "ends.json").read_text())


def test_the_file_is_the_one_that_was_made() -> None:
    assert hashlib.sha256((FROZEN / "data.mdb").read_bytes()).hexdigest() == FILE_SHA256


@pytest.mark.parametrize("stream", ENDS)
def test_a_recorded_sandbox_folds_to_where_it_ended(stream: str) -> None:
    """Every recorded transition is still legal, and the fold ends where it ended then."""
    pod = Pod()
    with Journal.open(FROZEN, read_only=True) as journal:
        for record in journal.read_stream(stream):
            if record.kind == "event":
                event = moved_from_body(record.data)
                assert check(pod, event) is None, f"seq {record.seq}"
                pod = evolve(pod, event)
    assert summary(pod) == ENDS[stream]


def test_it_verifies_and_its_subjects_resolve() -> None:
    with Journal.open(FROZEN, read_only=True) as journal:
        assert list(journal.verify()) == []
        assert {info.stream for info in journal.streams()} == set(ENDS)
        assert resolve(journal, "vm_killed").stream in ENDS
