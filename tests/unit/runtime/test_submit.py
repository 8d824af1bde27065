# SPDX-License-Identifier: Apache-2.0
"""One step: all of it, or nothing."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from journal import Journal, JournalBusy, NewRecord, Stamp, VersionConflict
from journal.errors import InvalidAppend
from kata_fsm.errors import IllegalTransition, NotFoundError
from kata_fsm.machines import container, sandbox
from kata_fsm.machines.vocab import CreateContainer, EffectDone, Exec, Start, Update
from kata_fsm.projections import container_key
from kata_fsm.runtime import IdTaken
from kata_fsm.snapshots import load
from tests.support.lives import live
from tests.support.stage import (
    BOX,
    ROOT,
    STREAM,
    Stage,
    create_box,
    of_kind,
    opened,
    records,
    running,
    state,
)

OTHER = "other@ba9876543210"


async def test_an_illegal_request_appends_nothing_and_changes_nothing(journal: Journal, stage: Stage) -> None:
    async with running(journal, stage) as runtime:
        await runtime.submit(create_box())
        await live(runtime, state("container", container.CREATED, BOX))
        before, pod, performed = records(journal), runtime.pod, list(stage.begun)
        for given in (create_box(), Exec(BOX, f"{BOX}/e1", {}), CreateContainer(BOX, {})):
            with pytest.raises(IllegalTransition):
                await runtime.submit(given)
        for missing in (Start("nobody"), Update("nobody", {})):
            with pytest.raises(NotFoundError):
                await runtime.submit(missing)
        assert runtime.pod is pod
        assert records(journal) == before
        assert stage.begun == performed


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Another process's write: the journal's writer lock is held."""
    fd = os.open(path / "writer.lock", os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


async def test_a_step_that_cannot_be_made_durable_has_not_happened(tmp_path: Path, stage: Stage) -> None:
    path = tmp_path / "journal"
    told = []
    with Journal.open(path, sync=False, lock_timeout_s=0.01) as journal:
        async with running(journal, stage) as runtime:
            runtime.on_step = told.append
            before = runtime.pod
            with writing(path), pytest.raises(JournalBusy):
                await runtime.submit(create_box())
            assert runtime.pod is before
            assert not records(journal)
            assert not stage.begun
            assert not told
            await runtime.submit(create_box())  # and then it can be asked again
            assert runtime.pod.sandbox.state == sandbox.CREATING


async def test_a_request_that_no_record_can_hold_has_not_happened(journal: Journal, stage: Stage) -> None:
    async with running(journal, stage) as runtime:
        for impossible in ("\udcff", "x" * (2 << 20)):
            with pytest.raises(InvalidAppend):
                await runtime.submit(create_box(bundle=impossible))
        assert runtime.pod.sandbox.state == sandbox.ABSENT
        assert not records(journal)


async def test_of_two_runtimes_one_gets_an_id(journal: Journal, stage: Stage) -> None:
    refused = []
    async with running(journal, stage) as one, running(journal, Stage(), stream=OTHER) as two:

        async def ask(runtime, given):  # type: ignore[no-untyped-def]
            try:
                await runtime.submit(given)
            except IdTaken as error:
                refused.append((runtime, str(error)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, one, create_box())
            nursery.start_soon(ask, two, create_box(uid="ba9876543210"))
        ((loser, message),) = refused
        assert message == "ID already in use, unique ID should be provided"  # containerd and podman look for it
        assert loser.pod.sandbox.state == sandbox.ABSENT
        assert not records(journal, loser.stream)
        winner = two if loser is one else one
        assert winner.pod.sandbox.state in (sandbox.CREATING, sandbox.READY)  # its effects take no time


async def test_an_id_is_free_in_another_root_and_taken_in_ones_own(journal: Journal, stage: Stage) -> None:
    async with running(journal, stage) as one, running(journal, Stage(), stream=OTHER) as two:
        await one.submit(create_box())
        await two.submit(create_box("other"))
        await live(one, state("sandbox", sandbox.READY))
        await one.submit(CreateContainer("side", {}))
        with pytest.raises(IdTaken):
            await two.submit(CreateContainer("side", {}))
        assert "side" not in two.pod.containers
        assert journal.projection(container_key("/elsewhere", "side")) is None
        assert journal.projection(container_key(ROOT, "side")) is not None


async def test_another_writer_is_noticed(journal: Journal, stage: Stage) -> None:
    async with running(journal, stage) as runtime:
        await live(runtime, state("container", container.RUNNING, BOX))
        stamp = Stamp(1, 1, "boot")
        journal.append(STREAM, [NewRecord("note", "intruder", {})], stamp=stamp, expected_rev=journal.rev(STREAM))
        before, pod = records(journal), runtime.pod
        with pytest.raises(VersionConflict):
            await runtime.submit(Update(BOX, {}))
        assert runtime.pod is pod
        assert records(journal) == before


async def test_effects_begin_after_their_intents_are_durable(tmp_path: Path, stage: Stage) -> None:
    seen: list[tuple[str, str]] = []
    with opened(tmp_path / "journal") as journal:

        def durable(intent):  # type: ignore[no-untyped-def]
            written = [(r.type, r.data["subject"]) for r in records(journal) if r.kind == "intent"]
            assert intent.key in written
            seen.append(intent.key)

        stage.before = durable
        async with running(journal, stage) as runtime:
            await live(runtime)
    assert seen == stage.begun
    assert ("process.exec", f"{BOX}/e1") in seen


async def test_records_say_who_asked_and_what_led_to_them(journal: Journal, stage: Stage) -> None:
    async with running(journal, stage) as runtime:
        await runtime.submit(create_box(), {"uid": 0, "comm": "engine"})
        await runtime.until(state("container", container.PREPARED, BOX))
    found = records(journal)
    assert found[0].actor == {"uid": 0, "comm": "engine"}
    assert found[0].data["versions"]["tables"] == 1
    assert all(record.actor is None for record in found[1:])
    by_seq = {record.seq: record for record in found}
    for record in found:
        if record.kind == "event":
            assert record.cause is not None
            assert by_seq[record.cause].kind in ("command", "outcome", "note", "event")
        if record.kind == "intent":
            assert by_seq[record.cause or 0].kind == "event"


async def test_a_runtime_takes_up_where_the_last_one_was(journal: Journal, stage: Stage) -> None:
    async with running(journal, stage) as runtime:
        before = await live(runtime, state("container", container.RUNNING, BOX))
        rev = runtime.rev
    pod, loaded_rev, _ = load(journal, STREAM)
    assert (pod, loaded_rev) == (before, rev)
    assert load(journal, "nobody@000000000000")[1:] == (0, "")


async def test_an_outcome_of_nothing_outstanding_is_recorded_as_late(journal: Journal, stage: Stage) -> None:
    async with running(journal, stage) as runtime:
        pod = await live(runtime, state("container", container.RUNNING, BOX))
        await runtime.submit(EffectDone("container.start", BOX, {}, 3.0))
        assert runtime.pod == pod
    late = of_kind(journal, "outcome", "container.start")[-1]
    assert late == {"subject": BOX, "result": {}, "ms": 3.0, "ok": True, "late": True}
