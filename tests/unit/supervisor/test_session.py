# SPDX-License-Identifier: Apache-2.0
"""A process's stdio: no byte is lost and none doubled, whoever goes away in between."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from journal import Journal
from kata_fsm.limits import STREAM_READ_BYTES
from kata_fsm.machines import container, pod, process, sandbox
from kata_fsm.world import Paths
from kata_wire import envelope
from tests.support.agent_peer import AgentPeer, Message, Refused
from tests.support.house import House, ShimPeer, create_request, exec_request, wait_for
from tests.support.stage import BOX, LIMIT_S, SUBJECT, UID, Stage, of_kind
from tests.support.stage import opened as opened_journal

BIG = 3 << 20  # more than any pipe or socket holds


def pattern(size: int) -> bytes:
    """Bytes of which no stretch can be taken for another."""
    return b"".join(number.to_bytes(4, "big") for number in range(size // 4 + 1))[:size]


async def test_output_input_and_exit_code(house: House, peer: AgentPeer) -> None:
    shim = await house.run()
    workload = peer.process(BOX)
    workload.write(b"out")
    workload.write(b"err", 2)
    await shim.write(b"typed")
    await wait_for(lambda: bytes(workload.input) == b"typed", "the input")
    shim.finish_input()
    await wait_for(lambda: workload.input_eof, "the end of the input")
    workload.finish(code=7)
    assert await shim.exit_code() == 7
    assert shim.received == {"stdout": b"out", "stderr": b"err"}
    await house.until("sandbox", sandbox.STOPPED)
    (drained,) = of_kind(house.journal, "note", "drained")
    assert drained == {"process": SUBJECT, "bytes": {"stdout": 3, "stderr": 3}}


async def test_the_exit_is_told_after_the_last_byte(house: House, peer: AgentPeer) -> None:
    """The pipe holds less than was written: until it has been read the process is not closed, and no exit is told."""
    shim = await house.run()
    workload, text = peer.process(BOX), pattern(BIG)
    workload.write(text)
    workload.finish(code=0)
    await house.until("process", process.EXITED, SUBJECT)
    assert house.runtime.pod.unit("process", SUBJECT).state == process.EXITED
    assert not of_kind(house.journal, "note", "drained")
    assert await shim.exit_code() == 0
    assert shim.received["stdout"] == text


async def test_a_reader_that_is_slow_slows_the_workload(house: House, peer: AgentPeer) -> None:
    """No more is asked for, and so acknowledged, than has gone into the pipe."""
    shim = await house.run()
    workload, text = peer.process(BOX), pattern(BIG * 2)
    workload.write(text)
    await wait_for(lambda: workload.acknowledged[1] == 0 and len(peer.called("ReadStream")) >= 2, "the first read")
    await trio.testing.wait_all_tasks_blocked(0.02)
    assert workload.acknowledged[1] < BIG
    assert await shim.read_until(len(text)) == text
    workload.finish()
    assert await shim.exit_code() == 0


async def test_the_next_answer_is_asked_for_while_one_is_on_its_way(house: House, peer: AgentPeer) -> None:
    """And acknowledges no more for it: what nobody has taken yet can be asked for again."""
    shim = await house.run()
    workload, text = peer.process(BOX), pattern(BIG * 4)
    workload.write(text)
    await wait_for(lambda: any(r.get("skip") for r in peer.called("ReadStream")), "a read ahead")
    await trio.testing.wait_all_tasks_blocked(0.02)
    (ahead,) = [r for r in peer.called("ReadStream") if r.get("skip")]
    assert (ahead.get("offset", 0), ahead["skip"]) == (0, STREAM_READ_BYTES)
    assert workload.acknowledged[1] == 0
    assert await shim.read_until(len(text)) == text
    workload.finish()
    assert await shim.exit_code() == 0


@pytest.mark.parametrize("refused", [False, True])
async def test_an_empty_answer_to_a_read_ahead_ends_nothing(house: House, peer: AgentPeer, refused: bool) -> None:
    """The process has ended, but an agent that has no room for more tells nothing about what is left."""
    shim = await house.run()
    workload, text = peer.process(BOX), pattern(BIG * 3)
    real = peer.ReadStream

    async def full(request: Message) -> Message:
        if request.get("skip"):
            if refused:
                raise Refused(envelope.OUT_OF_RANGE, "never")
            return {"offset": request.get("offset", 0) + request["skip"]}
        return await real(request)

    peer.script["ReadStream"] = full
    workload.write(text)
    workload.finish(code=5)
    assert await shim.exit_code() == 5
    assert shim.received["stdout"] == text


async def test_a_workload_that_reads_nothing_slows_its_input(house: House, peer: AgentPeer) -> None:
    shim = await house.run()
    workload, text = peer.process(BOX), pattern(BIG)
    workload.room = 1000

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shim.write, text)
        await wait_for(lambda: len(workload.input) == 1000, "what there is room for")
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert len(workload.input) == 1000
        assert shim.taken <= 1000
        while len(workload.input) < len(text):
            workload.take(len(text) // 3)
            await trio.sleep(0.001)
    assert workload.input == text


async def test_input_that_is_taken_piecewise_arrives_whole(house: House, peer: AgentPeer) -> None:
    """The agent takes a part of each write, and says so; the rest is sent with its own offset."""
    shim = await house.run()
    workload, text = peer.process(BOX), pattern(50_000)
    real = peer.WriteStream

    async def grudging(request: Message) -> Message:
        return await real({**request, "data": request.get("data", b"")[:777], "eof": False})

    peer.script["WriteStream"] = grudging
    await shim.write(text)
    await wait_for(lambda: len(workload.input) == len(text), "all of the input")
    assert workload.input == text
    offsets = [request.get("offset", 0) for request in peer.called("WriteStream")]
    assert offsets == sorted(offsets)


async def test_input_for_a_process_that_takes_no_more_is_left(house: House, peer: AgentPeer) -> None:
    shim = await house.run()

    async def closed(_: Message) -> Message:
        raise Refused(envelope.FAILED_PRECONDITION, "standard input was closed by its reader")

    peer.script["WriteStream"] = closed
    await shim.write(b"for nobody")
    await wait_for(lambda: bool(peer.called("WriteStream")), "the attempt")
    peer.process(BOX).finish(code=1)
    assert await shim.exit_code() == 1


async def test_without_input_the_workload_is_told_so(house: House, peer: AgentPeer) -> None:
    shim = await house.run()
    shim.finish_input()
    await wait_for(lambda: peer.process(BOX).input_eof, "the end of the input")
    assert peer.called("WriteStream")[-1].get("offset", 0) == 0
    peer.process(BOX).finish()
    assert await shim.exit_code() == 0


async def test_a_shim_without_input_has_none(house: House, peer: AgentPeer) -> None:
    await house.run()
    async with house.connected() as client:
        await client.send(exec_request())
        await client.receive()
        shim = ShimPeer(house.paths, process="e1")
        assert await shim.attach(outputs_only=True) == {"ok": True}
        assert (await client.receive() or {}).get("ok")
    await wait_for(lambda: peer.process(BOX, "e1").input_eof, "the end of the input")
    peer.process(BOX, "e1").finish(code=4)
    assert await shim.exit_code() == 4


async def test_execs_that_the_pod_forgets_are_told_their_ends(
    house: House, peer: AgentPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when more of them end at once than are remembered."""
    monkeypatch.setattr(pod, "EXECS_REMEMBERED", 2)
    await house.run()
    shims = [await house.exec() for _ in range(6)]
    for number in (1, 2, 3):
        peer.process(BOX, f"e{number}").finish(code=number)
        assert await shims[number - 1].exit_code() == number
    assert "box/e1" not in house.runtime.pod.processes
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(house.ask, "delete", container=BOX, force=True))
        for shim in shims[3:]:
            assert await shim.exit_code() == 255
        house.cleaned.set()


async def test_a_terminal_has_one_stream(house: House, peer: AgentPeer) -> None:
    await house.run()
    shim = await house.exec(tty=True)
    await shim.client.send({"op": "winsize", "rows": 50, "cols": 132})  # type: ignore[union-attr]
    workload = peer.process(BOX, "e1")
    workload.write(b"$ ")
    assert await shim.read_until(2) == b"$ "
    await wait_for(lambda: bool(peer.called("TtyWinResize")), "the size")
    sizes = [(request["row"], request["column"]) for request in peer.called("TtyWinResize")]
    assert sizes == [(50, 132)]
    workload.finish(code=0)
    assert await shim.exit_code() == 0
    assert not [r for r in peer.called("ReadStream") if r["exec_id"] == "e1" and r["stream"] == 2]


async def test_a_shim_that_comes_back_gets_the_next_byte(house: House, peer: AgentPeer) -> None:
    shim = await house.run()
    workload, text = peer.process(BOX), pattern(BIG)
    workload.write(text)
    await shim.write(b"one")
    await shim.read_until(100_000)
    for _ in range(3):
        await shim.detach()  # in the middle of a write
        await shim.write(b"two")
        assert await shim.attach() == {"ok": True}
        await shim.read_until(len(shim.received["stdout"]) + 50_000)
    workload.finish(code=5)
    assert await shim.exit_code() == 5
    assert shim.received["stdout"] == text
    assert workload.input == b"onetwotwotwo"


async def test_a_supervisor_that_was_killed_loses_nothing(another: Any, peer: AgentPeer) -> None:
    text = pattern(BIG)
    async with another() as house:
        shim = await house.run()
        workload = peer.process(BOX)
        workload.write(text[:-1000])
        workload.room = 2
        await shim.write(b"abcdef")
        await shim.read_until(200_000)
        await wait_for(lambda: len(workload.input) == 2, "what there is room for")
    await shim.client.aclose()  # type: ignore[union-attr]
    await shim.drain()
    workload.room = 1000
    for _ in range(2):
        async with another() as house:
            assert await shim.attach() == {"ok": True}
            await shim.read_until(len(shim.received["stdout"]) + 100_000)
            await wait_for(lambda: bytes(workload.input) == b"abcdef", "the input")
        await shim.client.aclose()  # type: ignore[union-attr]
        await shim.drain()
    workload.write(text[-1000:])
    workload.finish(code=3)
    async with another():
        assert await shim.attach() == {"ok": True}
        assert await shim.exit_code() == 3
    assert shim.received["stdout"] == text
    assert workload.input == b"abcdef"


async def test_input_that_comes_while_it_attaches_is_counted_once(another: Any, peer: AgentPeer) -> None:
    """A shim goes on reading its caller while its words are under way: what it says it has sent may be less than what
    waits in the socket."""
    async with another() as house:
        shim = await house.run()
        await shim.write(b"before")
        await wait_for(lambda: bytes(peer.process(BOX).input) == b"before", "the input")
    await shim.client.aclose()  # type: ignore[union-attr]
    await shim.drain()
    async with another():
        said = {key: shim.hello()[key] for key in ("stdin_sent", "stdin_taken")}
        await shim.write(b"meanwhile")
        assert await shim.attach(**said) == {"ok": True}
        await wait_for(lambda: bytes(peer.process(BOX).input) == b"beforemeanwhile", "the rest of the input")
        peer.process(BOX).finish()
        assert await shim.exit_code() == 0


async def test_a_connection_to_the_guest_that_breaks_loses_nothing(house: House, peer: AgentPeer) -> None:
    shim = await house.run()
    workload, text = peer.process(BOX), pattern(BIG)
    for cut in range(0, len(text), len(text) // 6):
        workload.write(text[cut : cut + len(text) // 6])
        peer.cut_after = 1 + cut // 7  # within a frame
        await shim.write(b"x" * 100)
        await shim.read_until(min(cut, len(text)))
    workload.finish(code=9)
    assert await shim.exit_code() == 9
    assert shim.received["stdout"] == text
    assert len(workload.input) <= 700
    assert peer.connections > 3
    assert set(workload.input) == set(b"x")


_step = st.one_of(
    st.tuples(st.just("out"), st.integers(1, 70_000)),
    st.tuples(st.just("err"), st.integers(1, 9_000)),
    st.tuples(st.just("in"), st.integers(1, 30_000)),
    st.tuples(st.just("read"), st.integers(1, 70_000)),
    st.tuples(st.just("room"), st.integers(1, 20_000)),
    st.tuples(st.just("cut"), st.integers(0, 40_000)),
    st.tuples(st.just("detach"), st.just(0)),
    st.tuples(st.just("crash"), st.just(0)),
    st.tuples(st.just("chunk"), st.sampled_from([1000, 4096, 1 << 20])),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(program=st.lists(_step, max_size=14))
def test_any_chunking_and_any_cuts(program: list[tuple[str, int]], tmp_path_factory: Any, monkeypatch: Any) -> None:
    """Output and input of any sizes, while connections to the guest, shims and supervisors come and go."""
    monkeypatch.setattr("kata_fsm.supervisor.session.RETRY_S", 0.001)
    monkeypatch.setattr("kata_fsm.supervisor.watch.RETRY_S", 0.001)
    monkeypatch.setattr("kata_fsm.effects.agent.link.VM_DEATH_NOTICE_S", 0.001)
    trio.run(_play, program, tmp_path_factory.mktemp("any"), monkeypatch)


async def _play(program: list[tuple[str, int]], directory: Path, monkeypatch: Any) -> None:
    top = tempfile.mkdtemp(prefix="kfu-")
    monkeypatch.setenv("KATA_FSM_RUN", top + "/run")
    monkeypatch.setenv("KATA_FSM_STATE", top + "/state")
    try:
        with opened_journal(directory / "journal") as journal, trio.fail_after(LIMIT_S):
            async with trio.open_nursery() as nursery:
                player = Player(Paths(UID), journal, nursery)
                await player.begin()
                for what, number in program:
                    await getattr(player, f"do_{what}")(number)
                await player.end()
                nursery.cancel_scope.cancel()
    finally:
        for shim in list(ShimPeer.alive):
            await shim.aclose()
        shutil.rmtree(top)


class Player:
    """Plays a program on one process, and compares at the end."""

    def __init__(self, paths: Paths, journal: Journal, nursery: trio.Nursery) -> None:
        os.makedirs(paths.base)
        self.paths = paths
        self.journal = journal
        self.stage = Stage()
        self.peer = AgentPeer(paths.agent_sock)
        self.nursery = nursery
        self.house: Any = None
        self.written = {"stdout": bytearray(), "stderr": bytearray()}
        self.typed = bytearray()

    async def _open(self) -> None:
        opened = trio.Event()
        self.ended = ended = trio.Event()

        async def live() -> None:
            async with trio.open_nursery() as inner:
                self.house = House(self.paths, self.journal, self.stage, inner)
                await self.house.start()
                opened.set()
                await trio.sleep_forever()
            ended.set()

        self.nursery.start_soon(live)
        await opened.wait()

    async def _kill(self) -> None:
        self.house.crash()
        await self.ended.wait()

    async def begin(self) -> None:
        await self.nursery.start(self.peer.run)
        await self._open()
        self.shim = await self.house.run()
        self.workload = self.peer.process(BOX)
        self.workload.room = 5000

    async def do_out(self, size: int, name: str = "stdout", stream: int = 1) -> None:
        start = len(self.written[name])
        text = pattern(start + size)[start:]
        self.written[name] += text
        self.workload.write(text, stream)

    async def do_err(self, size: int) -> None:
        await self.do_out(size, "stderr", 2)

    async def do_in(self, size: int) -> None:
        text = pattern(len(self.typed) + size)[len(self.typed) :]
        self.typed += text
        self.nursery.start_soon(self.shim.write, text)
        await trio.testing.wait_all_tasks_blocked()

    async def do_read(self, most: int) -> None:
        with trio.move_on_after(0.005):
            await self.shim.read("stdout", most)

    async def do_room(self, size: int) -> None:
        self.workload.take(size)

    async def do_cut(self, after: int) -> None:
        if after:
            self.peer.cut_after = after
        else:
            await self.peer.cut()

    async def do_chunk(self, size: int) -> None:
        self.peer.chunk = size

    async def do_detach(self, _: int) -> None:
        await self.shim.detach()
        assert await self.shim.attach() == {"ok": True}

    async def do_crash(self, _: int) -> None:
        await self._kill()
        await self.shim.detach()
        await self._open()
        assert await self.shim.attach() == {"ok": True}

    async def end(self) -> None:
        self.workload.take(1 << 30)
        self.peer.chunk = 1 << 20
        await wait_for(lambda: self.shim.sent == len(self.typed), "the caller's writes")
        async with trio.open_nursery() as reading:
            reading.start_soon(self.shim.read_until, len(self.written["stdout"]))
            reading.start_soon(self.shim.read_until, len(self.written["stderr"]), "stderr")
            await wait_for(lambda: len(self.workload.input) >= len(self.typed), "all of the input")
        self.workload.finish(code=42)
        assert await self.shim.exit_code() == 42
        assert self.shim.received == self.written
        assert self.workload.input == self.typed
        await self._kill()


async def test_a_dead_shims_output_is_read_and_dropped(house: House, peer: AgentPeer) -> None:
    """Its workload is not blocked by a reader that will never come back."""
    with subprocess.Popen(["sleep", "1000"]) as sleeper:
        shim = ShimPeer(house.paths, pid=sleeper.pid)
        try:
            await _create_with(house, shim)
            workload = peer.process(BOX)
            workload.write(pattern(BIG))
            await shim.read(most=10)
            sleeper.send_signal(signal.SIGKILL)
            await shim.aclose()
            await wait_for(lambda: workload.acknowledged[1] == BIG, "all of it to be dropped")
            await wait_for(lambda: workload.input_eof, "the end of its input")
            workload.finish(code=6)
            await house.until("sandbox", sandbox.STOPPED)
            assert house.runtime.pod.unit("process", SUBJECT).facts["exit_code"] == 6
        finally:
            sleeper.kill()


async def _create_with(house: House, shim: ShimPeer) -> None:
    async with house.connected() as client:
        await client.send(create_request())
        await client.receive()
        assert await shim.attach() == {"ok": True}
        assert await client.receive() == {"ok": True, "pid": shim.pid, "seq": 1}
    assert (await house.ask("start", container=BOX))["ok"]


async def test_output_that_nobody_reads_is_given_up_by_force_only(house: House, peer: AgentPeer) -> None:
    shim = await house.run()
    workload = peer.process(BOX)
    workload.write(pattern(BIG))
    workload.finish(code=2)
    await house.until("process", process.EXITED, SUBJECT)
    await trio.testing.wait_all_tasks_blocked(0.02)
    assert house.runtime.pod.unit("process", SUBJECT).state == process.EXITED
    async with trio.open_nursery() as nursery:

        async def delete() -> None:
            assert await house.ask("delete", container=BOX, force=True) == {"ok": True}

        nursery.start_soon(delete)
        assert await shim.exit_code() == 2
        house.cleaned.set()
    assert house.runtime.pod.unit("container", BOX).state == container.DELETED
    assert house.runtime.pod.unit("process", SUBJECT).facts["undelivered"] is True


async def test_what_the_agent_forgot_ends_the_stream(house: House, peer: AgentPeer) -> None:
    shim = await house.run()

    async def forgotten(_: Message) -> Message:
        raise Refused(envelope.NOT_FOUND, "no such process")

    peer.script["ReadStream"] = forgotten
    peer.process(BOX).write(b"wakes the reader")
    peer.process(BOX).finish(code=8)
    assert await shim.exit_code() == 8


@pytest.mark.parametrize(
    "lie",
    [
        {"offset": 3, "data": b"shifted"},
        {"offset": (1 << 64) - 1, "data": b"far away"},
        {"offset": 0, "data": b"x" * ((1 << 20) + 1)},
    ],
    ids=["shifted", "overflow", "too-much"],
)
async def test_an_agent_that_lies_about_output_is_lost(house: House, peer: AgentPeer, lie: Message) -> None:
    shim = await house.run()

    async def liar(_: Message) -> Message:
        return lie

    peer.script["ReadStream"] = liar
    peer.process(BOX).write(b"wakes the reader")
    assert await shim.exit_code() == 255
    await house.until("sandbox", sandbox.FAILED)
    cause = house.runtime.pod.sandbox.facts["cause"]
    assert cause["kind"] == "agent_lost"
    assert "ReadStream" in cause["message"]


@pytest.mark.parametrize("offset", [0, 1 << 40], ids=["no-progress", "beyond"])
async def test_an_agent_that_lies_about_input_is_lost(house: House, peer: AgentPeer, offset: int) -> None:
    shim = await house.run()

    async def liar(_: Message) -> Message:
        return {"offset": offset}

    peer.script["WriteStream"] = liar
    await shim.write(b"typed")
    assert await shim.exit_code() == 255
    await house.until("sandbox", sandbox.FAILED)
    assert "WriteStream" in house.runtime.pod.sandbox.facts["cause"]["message"]
