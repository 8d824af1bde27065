# SPDX-License-Identifier: Apache-2.0
"""What readers see without folding is, after every step, what folding the records would say."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from journal import Journal
from kata_fsm.machines import Cause, Pod, container, process, sandbox, vm
from kata_fsm.machines.vocab import AttachShim, CreateContainer, Delete, StopSandbox, VmDied
from kata_fsm.oci import names
from kata_fsm.projections import container_key, oci_state, project, stream_key
from kata_fsm.runtime import Runtime
from kata_fsm.snapshots import load
from tests.support.lives import live
from tests.support.stage import BOX, ROOT, STREAM, SUBJECT, Stage, create_box, ourselves, running, state

SIDE = "side"


def check(journal: Journal, *streams: str) -> None:
    """Compare everything that is projected with what a re-fold of those streams yields."""
    wanted: dict[bytes, bytes] = {}
    for stream in streams:
        folded = project(load(journal, stream)[0], stream)
        wanted |= {key: value for key, value in folded.items() if value is not None}
    assert dict(journal.projections()) == wanted


def container_document(journal: Journal, name: str = BOX) -> Any:
    value = journal.projection(container_key(ROOT, name))
    return None if value is None else json.loads(value)


@pytest.fixture
def checked(journal: Journal, stage: Stage) -> Any:
    """`checked(runtime)`: from now on every step of that runtime is followed by a comparison with a re-fold."""
    steps = []

    def watch(runtime: Runtime) -> list[str]:
        def compare(pod: Pod) -> None:
            assert load(journal, runtime.stream)[0] == pod, "what is believed is not what is recorded"
            check(journal, runtime.stream)
            steps.append(pod.sandbox.state)

        runtime.on_step = compare
        return steps

    return watch


async def test_a_normal_life_is_projected_at_every_step(journal: Journal, stage: Stage, checked: Any) -> None:
    async with running(journal, stage) as runtime:
        steps = checked(runtime)
        await live(runtime)
    assert len(steps) > 20
    assert container_document(journal) is None  # the id is free
    value = journal.projection(stream_key(STREAM))
    assert value is not None
    assert json.loads(value) == {
        "uid": "0123456789ab",
        "sandbox": BOX,
        "root": ROOT,
        "state": "deleted",
        "live": False,
        "cause": "workload_exited",
    }


async def test_a_life_with_more_containers_is_projected_at_every_step(
    journal: Journal, stage: Stage, checked: Any
) -> None:
    async with running(journal, stage) as runtime:
        checked(runtime)
        await live(runtime, state("container", container.RUNNING, BOX))
        await runtime.submit(CreateContainer(SIDE, {"bundle": "/bundles/side"}))
        await runtime.until(state("container", container.PREPARED, SIDE))
        await runtime.submit(AttachShim(f"{SIDE}/init", ourselves()))
        await runtime.until(state("container", container.CREATED, SIDE))
        await runtime.submit(VmDied(Cause("vm_killed")))
        for subject in (SUBJECT, f"{SIDE}/init"):
            from kata_fsm.machines.vocab import Drained

            await runtime.submit(Drained(subject))
        await runtime.until(state("sandbox", sandbox.FAILED))
        assert container_document(journal, SIDE)["live"] is False
        await runtime.submit(Delete(SIDE))
        await runtime.until(state("container", container.DELETED, SIDE))
        assert container_document(journal, SIDE) is None
        assert container_document(journal) is not None


async def test_the_state_document_is_what_runc_prints(journal: Journal, stage: Stage) -> None:
    shim = ourselves()
    documents: dict[str, str] = {}
    async with running(journal, stage) as runtime:

        def note(pod: Pod) -> None:
            document = container_document(journal)
            if document is not None:
                documents[pod.unit("container", BOX).state] = document["oci"]

        runtime.on_step = note
        await runtime.submit(create_box(annotations={"org.example": "ü"}, oci_version="1.1.0"))
        await live(runtime)

    def text(status: str, pid: object) -> str:
        return (
            '{\n  "ociVersion": "1.1.0",\n  "id": "box",\n'
            f'  "status": "{status}",\n  "pid": {pid},\n  "bundle": "/bundles/box",\n'
            '  "annotations": {\n    "org.example": "ü"\n  }\n}'
        )

    assert documents[container.PREPARING] == text("creating", 0)
    assert documents[container.CREATED] == text("created", shim["pid"])
    assert documents[container.RUNNING] == text("running", shim["pid"])
    assert documents[container.PAUSED] == text("paused", shim["pid"])
    assert documents[container.DEAD] == text("stopped", 0)
    assert documents[container.DISCARDING] == text("stopped", 0)


def test_a_document_without_annotations_has_no_such_field() -> None:
    from kata_fsm.machines import decide, events_of, fold

    pod = fold(events_of(decide(Pod(), create_box())), Pod())
    assert oci_state(pod, BOX, pod.containers[BOX]) == {
        "ociVersion": "1.0.2",
        "id": BOX,
        "status": "creating",
        "pid": 0,
        "bundle": "/bundles/box",
    }


async def test_an_exit_code_stays_readable_after_the_end(journal: Journal, stage: Stage) -> None:
    async with running(journal, stage) as runtime:
        await live(runtime, state("sandbox", sandbox.STOPPED))
    document = container_document(journal)
    assert (document["exit_code"], document["live"], document["list"]["status"]) == (7, False, "stopped")
    assert document["list"]["pid"] == 0


async def test_the_keys_are_those_that_readers_look_for() -> None:
    await trio.lowlevel.checkpoint()
    assert names.container_key(ROOT, BOX) == container_key(ROOT, BOX)
    assert names.sandbox_key(STREAM) == stream_key(STREAM)


async def test_a_deleted_name_belongs_to_whoever_took_it(journal: Journal, stage: Stage) -> None:
    """A supervisor that takes over a stream in which a container was deleted does not delete its namesake elsewhere."""
    other = "other@ba9876543210"
    async with running(journal, stage) as runtime:
        await live(runtime, state("container", container.RUNNING, BOX))
        await runtime.submit(CreateContainer(SIDE, {}))
        await runtime.submit(Delete(SIDE, force=True))
        await runtime.until(state("container", container.DELETED, SIDE))
    async with running(journal, Stage(), stream=other) as second:
        await second.submit(create_box(SIDE, "ba9876543210"))
        await second.until(state("container", container.PREPARED, SIDE))
        async with running(journal, stage) as runtime:
            await runtime.submit(StopSandbox(Cause("operator"), force=True))
            await live(runtime)
        assert container_document(journal, SIDE)["stream"] == other
        assert second.pod.vm.state in (vm.LAUNCHING, vm.RUNNING)


async def test_a_projection_that_was_lost_is_written_by_the_next_supervisor(journal: Journal, stage: Stage) -> None:
    async with running(journal, stage) as runtime:
        await live(runtime, state("process", process.RUNNING, SUBJECT))
    from journal import NewRecord, Stamp

    journal.append(
        "vandal",
        [NewRecord("note", "x", {})],
        stamp=Stamp(1, 1, "b"),
        expected_rev=0,
        projections={container_key(ROOT, BOX): None, stream_key(STREAM): b"rubbish"},
    )
    async with running(journal, stage) as runtime:
        await runtime.note("note", "anything", {})
        check(journal, STREAM)
