# SPDX-License-Identifier: Apache-2.0
"""The socket: whatever comes in, the supervisor answers it or hangs up, and goes on."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
import trio

from kata_fsm import control
from kata_fsm.machines import agent, container, process, sandbox
from kata_fsm.machines.vocab import Cause
from kata_wire import envelope
from tests.support.agent_peer import AgentPeer, Message, Refused
from tests.support.house import Client, House, ShimPeer, create_request, exec_request, wait_for
from tests.support.stage import BOX, LIMIT_S, STREAM, SUBJECT, of_kind, records


async def alive(house: House) -> bool:
    """Whether it still answers."""
    reply = await house.ask("ping")
    return bool(reply["ok"]) and reply["stream"] == STREAM


async def test_a_request_that_there_is_not(house: House) -> None:
    for op in ("dance", "", None, 7, {"op": "create"}):
        reply = await house.ask(op)  # type: ignore[arg-type]
        assert reply["error"]["family"] == "caller"
        assert "there is no request" in reply["error"]["message"]
        assert "create" in reply["error"]["hint"]
    assert await alive(house)


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\xff\xff\xff",
        (control.CONTROL_FRAME_BYTES_MAX + 1).to_bytes(4, "big"),
        (3).to_bytes(4, "big") + b"{]}",
        (2).to_bytes(4, "big") + b"[]",
        (4).to_bytes(4, "big") + b"\xff\xfe\xfd\xfc",
        (200_000).to_bytes(4, "big") + b"[" * 200_000,
        b"\x00\x00",
        b"",
    ],
    ids=["huge", "large", "not-json", "no-object", "not-text", "deep", "cut", "nothing"],
)
async def test_what_is_no_frame_ends_its_connection_alone(house: House, sent: bytes) -> None:
    async with house.connected() as client:
        await client.stream.send_all(sent)
        await client.stream.send_eof()
        assert await client.receive() is None
    assert await alive(house)


async def test_a_frame_may_come_byte_by_byte(house: House) -> None:
    async with house.connected() as client:
        for byte in control.encode({"op": "ping"}):
            await client.stream.send_all(bytes([byte]))
        assert (await client.receive() or {})["ok"] is True


@pytest.mark.parametrize(
    "request_",
    [
        {"op": "start"},
        {"op": "start", "container": 7},
        {"op": "create"},
        {"op": "create", "container": {"id": "../../escape", "guest_spec": {}}},
        {"op": "create", "container": {"id": BOX}},
        {"op": "exec", "container": BOX},
        {"op": "exec", "container": "nobody", "process": {}},
        {"op": "kill", "container": BOX},
        {"op": "kill", "container": BOX, "signal": "9"},
        {"op": "kill", "container": BOX, "signal": -1},
        {"op": "kill", "container": BOX, "signal": 1 << 40},
        {"op": "update", "container": BOX, "resources": []},
        {"op": "update", "container": BOX, "resources": {"cpu": {"shares": "many"}}},
        {"op": "stats", "container": "nobody"},
        {"op": "ps", "container": "nobody"},
        {"op": "pause", "container": "nobody"},
        {"op": "start", "container": BOX, "actor": "not an object"},
    ],
    ids=str,
)
async def test_a_malformed_request_is_refused_and_changes_nothing(house: House, request_: Message) -> None:
    await house.run()
    before = house.runtime.pod
    reply = await house.ask(**request_)
    assert "error" in reply, reply
    assert house.runtime.pod == before
    assert await alive(house)
    assert not os.path.exists("/tmp/escape.json")


async def test_a_bug_in_a_request_is_told_and_survived(
    house: House, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from kata_fsm.supervisor import verbs

    async def broken(*_: Any) -> Message:
        raise ZeroDivisionError("oh")

    monkeypatch.setitem(verbs.VERBS, "ping", broken)
    reply = await house.ask("ping")
    assert reply["error"]["family"] == "bug"
    assert "ZeroDivisionError: oh" in reply["error"]["message"]
    assert "Traceback" in capfd.readouterr().err  # which is the supervisor's log
    monkeypatch.undo()


async def test_an_answer_that_no_frame_holds_is_an_error(house: House, peer: AgentPeer) -> None:
    """The guest fills it: 4 MiB of what JSON spells with six characters each."""
    await house.run()

    async def flood(_: Message) -> Message:
        return {"stdout": b"\xff" * (3 << 20), "status": 0}

    peer.script["RunPs"] = flood
    reply = await house.ask("ps", container=BOX)
    assert reply["error"]["family"] == "world"
    assert "the answer cannot be sent" in reply["error"]["message"]
    assert await alive(house)


async def test_requests_are_answered_side_by_side(house: House, peer: AgentPeer) -> None:
    await house.run()
    gate = trio.Event()

    async def slow(_: Message) -> Message:
        await gate.wait()
        return {}

    peer.script["StatsContainer"] = slow
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.ask, "stats")

        async def stats() -> None:
            assert (await house.ask("stats", container=BOX))["ok"]

        nursery.start_soon(stats)
        await wait_for(lambda: bool(peer.called("StatsContainer")), "the slow one")
        assert await alive(house)
        gate.set()


async def test_a_client_that_hangs_up_leaves_no_descriptor(house: House) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        async with house.connected() as client:
            reader, writer = os.pipe()
            await client.send({"op": "ping"}, [reader, writer])
            os.close(reader)
            os.close(writer)
            await client.receive()
    await wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before, "descriptors to be closed")


# --- shims ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": 1},
        {"pid": 1 << 40},
        {"pid": None},
        {"pid": "self"},
        {"pid": [1]},
        {"start_ticks": 0},
        {"start_ticks": None},
        {"container": "nobody"},
        {"process": "e9"},
        {"delivered": {"stdout": -1}},
        {"delivered": {"stdout": "all"}},
        {"delivered": {"stderr": 1 << 70}},
        {"stdin_taken": -10},
        {"stdin_taken": [3]},
        {"fds": 1},
        {"fds": 0},
        {"fds": "three"},
    ],
    ids=str,
)
async def test_a_shim_that_lies_is_refused(house: House, changes: Message) -> None:
    """And nothing of it stays: the real one attaches after it."""
    async with house.connected() as client:
        await client.send(create_request())
        await client.receive()
        await house.until("agent", agent.READY)
        before = len(os.listdir("/proc/self/fd"))
        liar = ShimPeer(house.paths)
        answer = await liar.attach(**changes)
        assert answer is not None
        assert "error" in answer, answer
        await liar.aclose()
        await wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before, "descriptors to be closed")
        honest = ShimPeer(house.paths)
        assert await honest.attach() == {"ok": True}
        assert (await client.receive() or {}).get("ok")


async def test_a_shims_input_must_be_a_socket(house: House) -> None:
    async with house.connected() as client:
        await client.send(create_request())
        await client.receive()
        fds = [os.open("/dev/null", os.O_RDWR) for _ in range(3)]
        shim = ShimPeer(house.paths)
        async with house.connected() as other:
            await other.send(shim.hello(), fds)
            for fd in fds:
                os.close(fd)
            answer = await other.receive()
        assert answer is not None
        assert "no socket" in answer["error"]["message"]
        assert await shim.attach() == {"ok": True}
        assert (await client.receive() or {}).get("ok")
    # Whoever closes a descriptor twice closes somebody else's the second time.
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(50)]
    import gc

    gc.collect()
    for fd in held:
        os.fstat(fd)
        os.close(fd)


async def test_a_shim_of_a_closed_process_is_told_its_exit_code(house: House, peer: AgentPeer) -> None:
    shim = await house.run()
    peer.process(BOX).finish(code=11)
    assert await shim.exit_code() == 11
    for _ in range(2):
        late = ShimPeer(house.paths)
        assert await late.attach() == {"exit": 11}


async def test_a_shim_that_attaches_as_its_process_closes_is_told_its_exit_code(
    house: House, peer: AgentPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process was not closed when it knocked, and is when it is let in."""
    from kata_fsm.supervisor.session import Session

    shim = await house.run()
    other = ShimPeer(house.paths)
    real = Session.attach

    async def slowly(self: Session, taken: Any) -> None:
        peer.process(BOX).finish(code=12)
        await real(self, taken)
        await house.until("process", process.CLOSED, SUBJECT)

    monkeypatch.setattr(Session, "attach", slowly)
    assert await other.attach() == {"exit": 12}
    await shim.aclose()


@pytest.mark.parametrize(
    "message",
    [
        {"op": "signal"},
        {"op": "signal", "signal": "9"},
        {"op": "signal", "signal": -9},
        {"op": "signal", "signal": 1 << 40},
        {"op": "winsize"},
        {"op": "winsize", "rows": -1, "cols": 10},
        {"op": "winsize", "rows": "a", "cols": None},
        {"op": "winsize", "rows": 1 << 40, "cols": 10},
        {"op": "stdin_eof"},
        {"op": ["odd"]},
        {},
    ],
    ids=str,
)
async def test_what_a_shim_sends_amiss_is_left_alone(house: House, peer: AgentPeer, message: Message) -> None:
    shim = await house.run()
    assert shim.client is not None
    await shim.client.send(message)
    await shim.client.send({"op": "signal", "signal": 15})
    await wait_for(lambda: bool(peer.called("SignalProcess")), "the signal")
    assert [request["signal"] for request in peer.called("SignalProcess")] == [15]
    assert not peer.called("TtyWinResize")
    assert await alive(house)


@pytest.mark.parametrize("size", [[24, 80], [-1, 80], ["a", "b"], [1], "24x80", None, [1 << 40, 1]], ids=str)
async def test_the_first_window_size(house: House, peer: AgentPeer, size: Any) -> None:
    await house.run()
    async with house.connected() as client:
        await client.send(exec_request(True))
        need = await client.receive() or {}
        shim = ShimPeer(house.paths, process=need["process"], tty=True)
        assert await shim.attach(winsize=size) == {"ok": True}
        assert (await client.receive() or {}).get("ok")
    peer.process(BOX, "e1").finish(code=0)
    if size == [24, 80]:
        await wait_for(lambda: bool(peer.called("TtyWinResize")), "the size")
    assert await shim.exit_code() == 0
    assert [(r["row"], r["column"]) for r in peer.called("TtyWinResize")] == ([(24, 80)] if size == [24, 80] else [])


async def test_signals_are_forwarded_and_noted(house: House, peer: AgentPeer) -> None:
    shim = await house.run()
    assert shim.client is not None
    await shim.client.send({"op": "signal", "signal": 10})
    await wait_for(lambda: bool(of_kind(house.journal, "note", "signal_forwarded")), "the note")

    async def refuse(_: Message) -> Message:
        raise Refused(envelope.INTERNAL, "not today")

    peer.script["SignalProcess"] = refuse
    await shim.client.send({"op": "signal", "signal": 12})
    await wait_for(lambda: bool(of_kind(house.journal, "note", "signal_lost")), "the note")
    assert of_kind(house.journal, "note", "signal_forwarded") == [{"process": SUBJECT, "signal": 10}]
    assert of_kind(house.journal, "note", "signal_lost") == [{"process": SUBJECT, "signal": 12, "error": "not today"}]


async def test_a_shim_whose_pipe_broke_is_let_go(house: House, peer: AgentPeer) -> None:
    """The write fails while the connection is still there: nobody but that shim may notice."""
    shim = await house.run()
    await trio.aclose_forcefully(shim._pipes["stdout"])
    peer.process(BOX).write(b"to nowhere")
    assert shim.client is not None
    assert await shim.client.receive() is None
    assert await alive(house)


async def test_a_second_shim_takes_the_place_of_the_first(house: House, peer: AgentPeer) -> None:
    first = await house.run()
    second = ShimPeer(house.paths)
    assert await second.attach() == {"ok": True}
    assert first.client is not None
    assert await first.client.receive() is None
    peer.process(BOX).write(b"for the second")
    peer.process(BOX).finish(code=3)
    assert await second.exit_code() == 3
    assert second.received["stdout"] == b"for the second"
    assert not first.received["stdout"]


async def test_sessions_are_kept_no_longer_than_their_process(house: House, peer: AgentPeer) -> None:
    await house.run()
    for _ in range(3):
        shim = await house.exec()
        peer.process(BOX, shim.process).finish(code=0)
        assert await shim.exit_code() == 0
    await wait_for(lambda: house.server.shims == 1, "the shims to leave")
    assert list(house.watcher.sessions) == [SUBJECT]


async def test_a_journal_that_is_busy_makes_a_shim_come_again(
    house: House, peer: AgentPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from journal import JournalBusy

    shim = await house.run()
    await shim.detach()

    async def busy(*_: Any) -> None:
        await trio.lowlevel.checkpoint()
        raise JournalBusy("j", 10.0, None)

    with monkeypatch.context() as patch:
        patch.setattr(house.runtime, "submit", busy)
        assert await shim.attach() is None
    await shim.drain()
    assert await shim.attach() == {"ok": True}


async def test_a_deletion_is_answered_when_the_last_trace_is_gone(house: House, peer: AgentPeer) -> None:
    shim = await house.run()
    answered = []

    async def delete() -> None:
        answered.append(await house.ask("delete", container=BOX, force=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(delete)
        await shim.exit_code()
        await house.until("sandbox", sandbox.DELETED)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not answered
        house.cleaned.set()
    assert answered == [{"ok": True}]


async def test_connections_that_cannot_be_accepted_wait(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of descriptors: who is connected stays connected, and who knocks is let in later."""
    import resource

    async with house.connected() as client:
        other = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        other.setblocking(False)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limit[1]))
        try:
            other.connect(house.paths.supervisor_sock)
            await trio.sleep(0.05)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        await client.send({"op": "ping"})
        assert (await client.receive() or {})["ok"]
        second = Client(trio.SocketStream(trio.socket.from_stdlib_socket(other)))
        await second.send({"op": "ping"})
        assert (await second.receive() or {})["ok"]
        await second.aclose()


async def test_nothing_is_recorded_for_nobody(house: House) -> None:
    await alive(house)
    assert not records(house.journal)
    assert house.runtime.pod.unit("container", BOX).state == container.ABSENT
    assert Cause("exited").kind
    assert LIMIT_S
