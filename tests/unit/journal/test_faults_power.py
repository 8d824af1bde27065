# SPDX-License-Identifier: Apache-2.0
"""The power fails while a journal is written: recorded writes, cut anywhere, with sectors lost that were not synced."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from journal import Journal, NewRecord, Stamp
from tests.support import damaged, power
from tests.support.forked import each_in_child

IMAGES = 1_000
APPENDS = 60
WRITTEN_EVERY = 5  # of so many images one is written to as well


def test_a_power_loss_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: `scripts/setup --dev` does")
    events = power.record(str(tmp_path / "journal"), str(tmp_path / "trace"), APPENDS)
    writes = [event for event in events if event.what == "write"]
    assert sum(event.what == "sync" for event in events) >= APPENDS
    assert sum(event.through for event in writes) >= APPENDS
    assert Path(tmp_path, "journal", "data.mdb").read_bytes() == power.image(
        [*events, power.Event("sync"), power.Event("ack")], len(events) + 1, random.Random(0)
    ).ljust(os.stat(tmp_path / "journal" / "data.mdb").st_size, b"\0"), "the record of writes is complete"
    everything = power.acknowledged(events, len(events))
    assert len(everything) > APPENDS

    draw = random.Random(10)
    made = next(number for number, event in enumerate(events) if event.what == "made")
    moments = [number for number in range(made, len(events)) if events[number].what in ("write", "sync")]
    cuts = [(draw.choice(moments), number) for number in range(IMAGES)]
    copy = tmp_path / "copy"

    def survive(item: object) -> str:
        cut, number = item  # type: ignore[misc]
        shutil.rmtree(copy, ignore_errors=True)
        damaged.copy_to(copy, power.image(events, cut, random.Random(number)))
        acks = power.acknowledged(events, cut)
        with Journal.open(copy, read_only=True) as journal:
            assert [*journal.verify()] == []
            stored = {record.seq: record.digest for record in journal.read()}
        assert acks.items() <= stored.items() <= everything.items()
        if number % WRITTEN_EVERY == 0:
            with Journal.open(copy) as journal:
                journal.append(
                    "after", [NewRecord("note", "n", {"pad": "x" * 3000})], stamp=Stamp(0, 0, "boot"), expected_rev=0
                )
                assert [*journal.verify()] == []
                assert {record.seq: record.digest for record in journal.read()}.items() > stored.items()
        return "whole" if stored == acks else "ahead"

    told = each_in_child(survive, cuts)
    wrong = [(cut, verdict) for cut, verdict in zip(cuts, told, strict=True) if verdict not in ("whole", "ahead")]
    assert wrong == []
    print(
        f"\n{len(told)} images of {len(moments)} moments, {sum(len(event.data) for event in writes)} bytes written;"
        f" {told.count('ahead')} hold an append that had not been acknowledged yet"
    )
