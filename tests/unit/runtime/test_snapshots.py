# SPDX-License-Identifier: Apache-2.0
"""Snapshots: a supervisor that begins with one believes exactly what the records say."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from journal import Journal
from kata_fsm import snapshots
from kata_fsm.machines import Moved, Pod, fold
from kata_fsm.machines.vocab import AttachShim, Kill
from kata_fsm.runtime import Runtime
from kata_fsm.snapshots import PodProjector, load
from kata_fsm.world import WORLD
from tests.support.stage import BOX, STREAM, SUBJECT, Stage, create_box, opened, ourselves, running, state


def folded(journal: Journal) -> Pod:
    """From the records alone."""
    return fold(
        msgspec.json.decode(record.body, type=Moved) for record in journal.read_stream(STREAM) if record.kind == "event"
    )


async def create(runtime: Runtime) -> None:
    """A sandbox whose container is created."""
    await runtime.submit(create_box())
    await runtime.submit(AttachShim(SUBJECT, ourselves()))
    await runtime.until(state("container", "created", BOX))


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot with every fourth record or so."""
    monkeypatch.setattr("kata_fsm.runtime.SNAPSHOT_RECORDS", 4)


async def test_every_snapshot_is_the_fold_and_a_takeover_from_it_goes_on(journal: Journal, stage: Stage) -> None:
    seen = set()

    def look(pod: Pod) -> None:
        snapshot = journal.snapshot(STREAM)
        if snapshot is not None:
            seen.add(snapshot.rev)
            assert journal.rev(STREAM) - snapshot.rev <= 4 + 30, "at most a step behind"
        loaded = load(journal, STREAM)
        assert loaded.pod == folded(journal) == pod
        assert loaded.rev == journal.rev(STREAM)
        assert loaded.boot == WORLD.boot_id()

    async with running(journal, stage) as runtime:
        runtime.on_step = look
        await create(runtime)
        for _ in range(5):
            await runtime.submit(Kill(BOX, 10, False))
        before = runtime.pod
    assert len(seen) > 3
    async with running(journal, stage) as runtime:
        assert runtime.pod == before
    assert list(journal.verify()) == []
    assert list(journal.verify_folds(PodProjector())) == []


async def test_a_snapshot_that_cannot_be_used_is_passed_over(journal: Journal, stage: Stage) -> None:
    async with running(journal, stage) as runtime:
        await create(runtime)
    before = load(journal, STREAM)
    snapshot = journal.snapshot(STREAM)
    assert snapshot is not None
    newer = snapshot.data.replace(b'"shape":1', b'"shape":2')
    for data in (b"", b"{}", b"\xff", newer):
        with journal._env._env.begin(write=True) as txn:
            value = snapshot.rev.to_bytes(8, "big") + data
            txn.put(STREAM.encode(), value, db=journal._env.tables.snapshots)
        assert load(journal, STREAM) == before
        assert list(journal.verify_folds(PodProjector())) == [], "nobody would use it"


async def test_a_snapshot_that_says_something_else_is_found(journal: Journal, stage: Stage) -> None:
    async with running(journal, stage) as runtime:
        await create(runtime)
    snapshot = journal.snapshot(STREAM)
    assert snapshot is not None
    lying = snapshots.dump(Pod(), WORLD.boot_id())
    with journal._env._env.begin(write=True) as txn:
        txn.put(STREAM.encode(), snapshot.rev.to_bytes(8, "big") + lying, db=journal._env.tables.snapshots)
    assert [finding.kind for finding in journal.verify_folds(PodProjector())] == ["snapshot"]


async def test_one_too_large_is_left_out(tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kata_fsm.runtime.SNAPSHOT_BYTES_MAX", 10)
    with opened(tmp_path / "other") as journal:
        async with running(journal, stage) as runtime:
            await create(runtime)
            assert journal.snapshot(STREAM) is None
