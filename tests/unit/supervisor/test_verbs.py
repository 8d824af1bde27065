# SPDX-License-Identifier: Apache-2.0
"""What each request does: asked, waited for, answered; refused, or failed and undone."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from kata_fsm.errors import EffectError
from kata_fsm.machines import container, process, sandbox
from kata_fsm.machines.vocab import Cause
from kata_fsm.oci.hosting import Limits
from kata_fsm.projections import container_key
from kata_fsm.supervisor import creation
from kata_fsm.supervisor.limiting import limits_of
from kata_wire import envelope
from tests.support.agent_peer import AgentPeer, Message, Refused
from tests.support.house import House, ShimPeer, create_request, exec_request, wait_for
from tests.support.stage import BOX, ROOT, SUBJECT, Stage, of_kind, records

SECRET = {"ociVersion": "1.1.0", "process": {"args": ["x"], "env": ["TOKEN=hush"], "cwd": "/"}, "root": {"path": "r"}}


def kept(house: House) -> list[Path]:
    return sorted(Path(house.paths.base, "specs").glob("*"))


async def test_creating_asks_for_a_shim_and_answers_its_pid(house: House, peer: AgentPeer) -> None:
    async with house.connected() as client:
        await client.send(create_request(guest_spec=SECRET))
        need = await client.receive()
        assert need == {
            "need": "shim",
            "netns": "/run/x/netns",
            "cgroups": [],
            "container": BOX,
            "process": "init",
            "seq": 1,  # of the record that holds the command
        }
        (file,) = kept(house)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        shim = ShimPeer(house.paths)
        await shim.attach()
        assert await client.receive() == {"ok": True, "pid": os.getpid(), "seq": 1}
    assert json.loads(peer.called("CreateContainer")[0]["OCI"]["raw_json"]) == SECRET
    assert not kept(house)
    assert not [r for r in records(house.journal) if b"hush" in bytes(r.body)], "secrets are not recorded"


async def test_a_creation_that_fails_is_undone_before_it_is_answered(house: House, stage: Stage) -> None:
    stage.fail["hypervisor.launch"] = EffectError("image", "no kernel", hint="build it")
    answered = []

    async def create() -> None:
        async with house.connected() as client:
            await client.send(create_request())
            reply = await client.receive()
            if reply is not None and "need" in reply:
                reply = await client.receive()
            answered.append(reply)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(create)
        await house.until("sandbox", sandbox.DELETED)
        assert not answered
        house.cleaned.set()
    (reply,) = answered
    assert reply["error"]["message"] == f"cannot create container `{BOX}`: no kernel"
    assert reply["error"]["hint"] == "build it"
    assert not kept(house)


async def test_a_caller_that_leaves_before_its_container_is_created(house: House) -> None:
    async with house.connected() as client:
        await client.send(create_request())
        assert "need" in (await client.receive() or {})
    await house.until("sandbox", sandbox.DELETED)
    assert house.runtime.pod.sandbox.facts["cause"]["kind"] == "client_gone"


async def test_a_caller_that_sends_no_shim_in_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(creation, "SHIM_ATTACH_S", 0.05)
    async with house.connected() as client:
        await client.send(create_request())
        await client.receive()
        await house.until("sandbox", sandbox.DELETED)
        house.cleaned.set()
        assert "error" in (await client.receive() or {})


async def test_a_second_creation_does_not_touch_the_first(house: House, peer: AgentPeer) -> None:
    """It is refused; what the first still needs is what the first brought."""
    async with house.connected() as first:
        await first.send(create_request(guest_spec=SECRET))
        await first.receive()
        reply = await house.ask(**create_request(sandbox=False, guest_spec={"process": {"args": ["another"]}}))
        assert "ID already in use" in reply["error"]["message"]
        assert [json.loads(file.read_text()) for file in kept(house)] == [SECRET]
        await ShimPeer(house.paths).attach()
        assert (await first.receive() or {}).get("ok")
    assert json.loads(peer.called("CreateContainer")[0]["OCI"]["raw_json"]) == SECRET


async def test_a_further_container(house: House, peer: AgentPeer) -> None:
    await house.run()
    async with house.connected() as client:
        await client.send(create_request("side", sandbox=False))
        need = await client.receive() or {}
        assert need["container"] == "side"
        shim = ShimPeer(house.paths)
        shim.container = "side"
        assert await shim.attach() == {"ok": True}
        assert (await client.receive() or {}).get("ok")
    assert await house.ask("start", container="side") == {"ok": True}
    peer.process("side").finish(code=1)
    assert await shim.exit_code() == 1
    assert await house.ask("delete", container="side") == {"ok": True}
    assert house.journal.projection(container_key(ROOT, "side")) is None
    assert house.runtime.pod.sandbox.state == sandbox.READY
    assert peer.called("RemoveContainer")[0]["container_id"] == "side"


async def test_a_start_that_fails_says_why(house: House, peer: AgentPeer) -> None:
    await house.create()

    async def refuse(_: Message) -> Message:
        raise Refused(envelope.INTERNAL, "exec: no such file")

    peer.script["StartContainer"] = refuse
    reply = await house.ask("start", container=BOX)
    assert reply["error"]["message"] == f"cannot start container `{BOX}`: exec: no such file"
    reply = await house.ask("start", container=BOX)
    assert reply["error"]["family"] == "illegal"


async def test_pausing_and_resuming(house: House, peer: AgentPeer) -> None:
    await house.run()
    assert (await house.ask("resume", container=BOX))["error"]["family"] == "illegal"
    assert await house.ask("pause", container=BOX) == {"ok": True}
    assert (await house.ask("pause", container=BOX))["error"]["family"] == "illegal"
    assert await house.ask("resume", container=BOX) == {"ok": True}

    async def refuse(_: Message) -> Message:
        raise Refused(envelope.INTERNAL, "frozen solid")

    peer.script["PauseContainer"] = refuse
    reply = await house.ask("pause", container=BOX)
    assert reply["error"]["message"] == f"cannot pause container `{BOX}`: frozen solid"
    assert house.runtime.pod.unit("container", BOX).state == container.RUNNING


async def test_a_pause_that_was_undone_at_once_was_a_pause(house: House) -> None:
    """Whoever asked is told what came of its request, not what somebody else did after it."""
    await house.run()

    def resume_at_once(pod: Any) -> None:
        house.watcher.reconcile(pod)
        if pod.unit("container", BOX).state == container.PAUSED:
            from kata_fsm.machines.vocab import Resume

            house._nursery.start_soon(house.runtime.submit, Resume(BOX))

    house.runtime.on_step = resume_at_once
    for _ in range(5):
        assert await house.ask("pause", container=BOX) == {"ok": True}
        await house.until("container", container.RUNNING, BOX)


async def test_killing_is_recorded_with_what_came_of_it(house: House, peer: AgentPeer) -> None:
    await house.run()
    assert await house.ask("kill", container=BOX, signal=15) == {"ok": True}
    assert await house.ask("kill", container=BOX, signal=9, all=True) == {"ok": True}
    assert [(r.get("exec_id", ""), r["signal"]) for r in peer.called("SignalProcess")] == [(BOX, 15), ("", 9)]

    async def gone(_: Message) -> Message:
        raise Refused(envelope.NOT_FOUND)

    peer.script["SignalProcess"] = gone
    assert (await house.ask("kill", container=BOX, signal=15))["error"]["message"] == "container not running"
    assert [body["ok"] for body in of_kind(house.journal, "outcome", "process.signal")] == [True, True, False]


async def test_updating_is_recorded_with_what_came_of_it(house: House, peer: AgentPeer) -> None:
    await house.run()
    assert await house.ask("update", container=BOX, resources={"cpu": {"shares": 512}}) == {"ok": True}
    (request,) = peer.called("UpdateContainer")
    assert request["resources"]["CPU"]["Shares"] == 512

    async def refuse(_: Message) -> Message:
        raise Refused(envelope.INTERNAL, "too much")

    peer.script["UpdateContainer"] = refuse
    assert (await house.ask("update", container=BOX, resources={}))["error"]["message"] == "too much"
    outcomes = of_kind(house.journal, "outcome", "container.update")
    assert outcomes == [{"subject": BOX, "ok": True}, {"subject": BOX, "ok": False, "message": "too much"}]


async def test_an_update_that_the_guest_refuses_limits_nothing_on_the_host(house: House, peer: AgentPeer) -> None:
    await house.run()
    limited: list[Limits] = []

    async def limit() -> list[str]:
        limited.append(limits_of(house.runtime.pod))
        return ["`linux.resources.cpu.cpus` is not applied on the host: why", "`linux.resources.cpu.shares` neither"]

    assert house.watcher.wiring is not None
    house.watcher.wiring.limit = limit  # type: ignore[method-assign]
    resources = {"cpu": {"shares": 512, "quota": 20000, "period": 100000}}
    assert await house.ask("update", container=BOX, resources=resources) == {
        "ok": True,
        "warnings": ["update: `linux.resources.cpu.shares` neither"],
    }

    async def refuse(_: Message) -> Message:
        raise Refused(envelope.INTERNAL, "too much")

    peer.script["UpdateContainer"] = refuse
    reply = await house.ask("update", container=BOX, resources={"cpu": {"shares": 700, "quota": -1}})
    assert reply["error"]["message"] == "too much"
    first = Limits(shares=512, quota=130000)
    assert limited == [first, Limits(shares=700), first]
    assert limits_of(house.runtime.pod) == first

    asked = len(peer.called("UpdateContainer"))
    await house.ask("update", container=BOX, resources={"cpu": {"cpus": "0"}})
    assert len(peer.called("UpdateContainer")) == asked, "the guest has nothing to do with it"
    assert limits_of(house.runtime.pod) == Limits(shares=512, quota=130000, cpus="0")


async def test_an_update_that_the_host_refuses_does_not_reach_the_guest(house: House, peer: AgentPeer) -> None:
    await house.run()

    async def limit() -> list[str]:
        raise EffectError("cgroup", "the host refuses")

    assert house.watcher.wiring is not None
    house.watcher.wiring.limit = limit  # type: ignore[method-assign]
    reply = await house.ask("update", container=BOX, resources={"cpu": {"shares": 512}})
    assert reply["error"]["message"] == "the host refuses"
    assert peer.called("UpdateContainer") == []
    assert limits_of(house.runtime.pod) == Limits()


async def test_processes_that_are_added_side_by_side_are_each_their_own(house: House, peer: AgentPeer) -> None:
    """Two callers at once: each gets its own name, its own command and its own streams."""
    await house.run()
    shims: dict[str, ShimPeer] = {}

    async def add(word: str) -> None:
        async with house.connected() as client:
            await client.send(exec_request(args=[word]))
            need = await client.receive() or {}
            assert "need" in need, need
            shims[word] = ShimPeer(house.paths, process=need["process"])
            await shims[word].attach()
            assert (await client.receive() or {}).get("ok")

    words = [f"word{number}" for number in range(6)]
    async with trio.open_nursery() as nursery:
        for word in words:
            nursery.start_soon(add, word)
    ran = {
        request["exec_id"]: json.loads(request["process"]["raw_json"])["args"] for request in peer.called("ExecProcess")
    }
    assert ran == {shims[word].process: [word] for word in words}
    assert not kept(house)


async def test_names_of_processes_are_not_used_again(house: House, peer: AgentPeer, another: Any) -> None:
    await house.run()
    await house.ask("pause", container=BOX)
    assert (await house.ask(**exec_request()))["error"]["family"] == "illegal"
    await house.ask("resume", container=BOX)
    shim = await house.exec()
    assert (shim.process, kept(house)) == ("e2", [])
    assert house.server.exec_name(BOX) == "e3"
    house.server._execs.clear()  # another supervisor, which knows what is recorded
    assert house.server.exec_name(BOX) == "e3"
    assert house.server.exec_name("nobody") == "e1"


async def test_a_process_that_cannot_be_added_says_why(house: House, peer: AgentPeer) -> None:
    await house.run()

    async def refuse(_: Message) -> Message:
        raise Refused(envelope.INTERNAL, "no such program")

    peer.script["ExecProcess"] = refuse
    async with house.connected() as client:
        await client.send(exec_request())
        need = await client.receive() or {}
        shim = ShimPeer(house.paths, process=need["process"])
        await shim.attach()
        reply = await client.receive() or {}
    assert reply["error"]["message"] == f"cannot exec in container `{BOX}`: no such program"
    assert await shim.exit_code() == 255
    assert not kept(house)


async def test_a_caller_that_leaves_before_its_process_is_added(house: House) -> None:
    await house.run()
    async with house.connected() as client:
        await client.send(exec_request())
        assert "need" in (await client.receive() or {})
    await house.until("process", process.CLOSED, f"{BOX}/e1")
    await wait_for(lambda: not kept(house), "what was kept to be dropped")
    assert house.runtime.pod.unit("process", f"{BOX}/e1").facts["cause"]["kind"] == "client_gone"


async def test_a_clean_up_that_fails_is_told_and_can_be_asked_for_again(
    house: House, peer: AgentPeer, stage: Stage
) -> None:
    stage.fail["share.release"] = EffectError("umount", "device busy")
    shim = await house.run()
    peer.process(BOX).finish(code=0)
    assert await shim.exit_code() == 0
    await house.until("share", "stuck")
    stage.hold("share.release")
    async with trio.open_nursery() as nursery:
        replies = []

        async def delete() -> None:
            replies.append(await house.ask("delete", container=BOX))

        nursery.start_soon(delete)
        await stage.reached["share.release"].wait()
        stage.release()
    assert "cannot be deleted yet: share: device busy" in replies[0]["error"]["message"]
    del stage.fail["share.release"]
    house.cleaned.set()
    assert await house.ask("delete", container=BOX) == {"ok": True}


async def test_looking_into_the_guest(house: House, peer: AgentPeer) -> None:
    await house.run()
    peer.script["StatsContainer"] = _answer({"cgroup_stats": {"pids_stats": {"current": 3, "limit": 10}}})
    peer.script["RunPs"] = _answer({"stdout": b"PID CMD\n1 sh\n", "status": 0})
    peer.script["ListPids"] = _answer({"pids": [1, 17]})
    stats = await house.ask("stats", container=BOX)
    assert stats == {"ok": True, "stats": {"cgroup_stats": {"pids_stats": {"current": 3, "limit": 10}}}}
    seen = await house.ask("ps", container=BOX, args=["-ef"])
    assert seen == {"ok": True, "pids": [os.getpid()], "guest_pids": [1, 17], "text": "PID CMD\n1 sh\n"}
    peer.script["RunPs"] = _answer({"stderr": b"bad option\n", "status": 1})
    assert "bad option" in (await house.ask("ps", container=BOX))["error"]["message"]


def _answer(message: Message) -> Any:
    async def answer(_: Message) -> Message:
        await trio.lowlevel.checkpoint()
        return message

    return answer


async def test_the_end_of_the_guest_answers_whoever_waits_for_it(house: House, peer: AgentPeer) -> None:
    await house.create()

    async def never(_: Message) -> Message:
        await trio.sleep_forever()
        return {}

    peer.script["StartContainer"] = never
    async with trio.open_nursery() as nursery:
        replies = []

        async def start() -> None:
            replies.append(await house.ask("start", container=BOX))

        nursery.start_soon(start)
        await wait_for(lambda: bool(peer.called("StartContainer")), "the call")
        house.wiring.kill_vm(Cause("vm_killed", "QEMU was killed by SIGKILL"))
    assert "cannot start container" in replies[0]["error"]["message"]
    await house.until("process", process.CLOSED, SUBJECT)
    assert house.runtime.pod.unit("process", SUBJECT).facts["cause"]["kind"] == "vm_killed"


async def test_a_shim_that_was_started_early_waits_for_its_process(house: House, peer: AgentPeer) -> None:
    """`exec` chooses the name and starts the shim before it asks: whichever is there first."""
    await house.run()
    shim = ShimPeer(house.paths, process="x2")
    async with trio.open_nursery() as nursery:
        answers: list[Any] = []

        async def attach() -> None:
            answers.append(await shim.attach(early=True))

        nursery.start_soon(attach)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not answers
        assert (await house.ask(**exec_request(), exec_id="x2"))["ok"] is True
    assert answers == [{"ok": True}]
    peer.process(BOX, "x2").finish(code=1)
    assert await shim.exit_code() == 1
    assert (await house.ask(**exec_request(), exec_id="x2"))["error"]["family"] == "illegal"


def _is_exec(house: House, seq: int) -> bool:
    (record,) = [record for record in records(house.journal) if record.seq == seq]
    return (record.kind, record.type) == ("command", "exec")


async def test_an_error_names_the_record_of_its_command_too(house: House, peer: AgentPeer) -> None:
    async def refuses(_: Any) -> Any:
        raise Refused(9, "crun exec: no such file")

    await house.run()
    peer.script["ExecProcess"] = refuses
    shim = ShimPeer(house.paths, process="x2")
    named = {name: shim.hello()[name] for name in ("pid", "start_ticks")}
    reply = await house.ask(**exec_request(), exec_id="x2", shim=named)
    assert "no such file" in reply["error"]["message"]
    assert _is_exec(house, reply["seq"])
    await shim.aclose()


async def test_a_further_container_is_told_once_that_the_configuration_has_changed(house: House) -> None:
    sandbox = {**create_request()["sandbox"], "config_notes": "a"}
    heard = []
    for name, digest in ((BOX, "a"), ("two", "a"), ("three", "b"), ("four", "b")):
        async with house.connected() as client:
            request = create_request(name, sandbox=name == BOX)
            if name == BOX:
                request["sandbox"] = sandbox
            await client.send({**request, "config_notes": digest})
            need = await client.receive()
            assert need is not None
            heard.append(need.get("config_changed", False))
            shim = ShimPeer(house.paths)
            shim.container = name
            await shim.attach()
            reply = await client.receive()
            assert reply is not None
            assert reply["ok"]
    assert heard == [False, False, True, False]


async def test_a_shim_that_was_named_is_not_waited_for(house: House, peer: AgentPeer) -> None:
    """It is on record, with the declaration, before it comes; its coming is no news."""
    await house.run()
    shim = ShimPeer(house.paths, process="x2")
    named = {name: shim.hello()[name] for name in ("pid", "start_ticks")}
    reply = await house.ask(**exec_request(), exec_id="x2", shim=named)
    assert _is_exec(house, reply.pop("seq"))
    assert reply == {"ok": True, "pid": os.getpid(), "warnings": []}
    assert house.runtime.pod.unit("process", f"{BOX}/x2").facts["shim"]["pid"] == os.getpid()
    assert await shim.attach(early=True) == {"ok": True}
    peer.process(BOX, "x2").finish(code=1)
    assert await shim.exit_code() == 1
    asked = [record.body for record in records(house.journal) if record.kind == "command"]
    assert not [body for body in asked if f"{BOX}/x2".encode() in bytes(body) and b"attach" in bytes(body)]


async def test_a_named_shim_that_never_comes_holds_nothing_up(house: House, peer: AgentPeer) -> None:
    """It is as if it had been killed later: what its process writes is dropped, and the process ends."""
    await house.run()
    with subprocess.Popen(["/bin/sleep", "1000"]) as dead:
        shim = ShimPeer(house.paths, process="x2", pid=dead.pid)
        named = {name: shim.hello()[name] for name in ("pid", "start_ticks")}
        assert (await house.ask(**exec_request(), exec_id="x2", shim=named))["pid"] == dead.pid
        dead.kill()
    peer.process(BOX, "x2").write(b"for nobody")
    peer.process(BOX, "x2").finish(code=3)
    await house.until("process", process.CLOSED, f"{BOX}/x2")
    assert house.runtime.pod.unit("process", f"{BOX}/x2").facts["exit_code"] == 3


async def test_a_shim_that_is_not_there_cannot_be_named(house: House) -> None:
    await house.run()
    before = house.runtime.pod
    for named in ({"pid": os.getpid(), "start_ticks": 1}, {"pid": 1 << 30, "start_ticks": 1}, {"pid": "1"}, {}):
        reply = await house.ask(**exec_request(), exec_id="x2", shim=named)
        assert "is not there" in reply["error"]["message"]
    assert house.runtime.pod == before
    assert not kept(house)


async def test_the_process_of_an_exec_is_checked(house: House) -> None:
    await house.run()
    before = house.runtime.pod
    reply = await house.ask(**exec_request(cwd=5), where="process file `p`")
    assert reply["error"]["message"] == "process file `p`: `cwd`: expected `str`, got `int`"
    assert reply["error"]["family"] == "spec"
    assert (await house.ask(**exec_request(args=[])))["error"][
        "message"
    ] == "exec: `args`: is empty: there is nothing to run"
    assert house.runtime.pod == before
    assert not kept(house)


async def test_what_an_exec_goes_without_is_told(house: House) -> None:
    await house.run()
    named = {name: ShimPeer(house.paths).hello()[name] for name in ("pid", "start_ticks")}
    request = exec_request(capabilities={"bounding": ["CAP_NEW"]}, apparmorProfile="x")
    reply = await house.ask(**request, exec_id="x2", shim=named)
    assert reply["warnings"] == [
        "exec: `capabilities`: `CAP_NEW` is not applied: the guest does not know it",
        "exec: `apparmorProfile` is not applied: the guest has no AppArmor",
    ]


@pytest.mark.parametrize("name", ["init", "a/b", "../x", "x" * 1000, 7, ["x"], "ü"])
async def test_a_name_that_cannot_be_a_processes_is_refused(house: House, name: Any) -> None:
    await house.run()
    before = house.runtime.pod
    reply = await house.ask(**exec_request(), exec_id=name)
    assert "`exec_id`" in reply["error"]["message"]
    assert house.runtime.pod == before
    assert not kept(house)
