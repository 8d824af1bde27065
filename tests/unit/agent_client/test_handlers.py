# SPDX-License-Identifier: Apache-2.0
"""Effects in the guest: what is asked of the agent, and what its answers are taken for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from kata_fsm.effects.agent import handlers
from kata_fsm.effects.agent.link import Link
from kata_fsm.effects.protocols import Observed
from kata_fsm.errors import EffectError, TimeoutExceeded
from kata_fsm.machines.vocab import Intent
from kata_fsm.world import WORLD
from kata_wire import envelope
from tests.support.agent_peer import AgentPeer, Message, Refused
from tests.support.stage import LIMIT_S

SPEC: dict[str, Any] = {"ociVersion": "1.1.0", "process": {"args": ["true"], "cwd": "/"}, "root": {"path": "rootfs"}}


def intent(kind: str, subject: str = "box", **params: Any) -> Intent:
    return Intent(kind, subject, params)


@pytest.fixture(autouse=True)
async def _limited() -> Any:
    with trio.fail_after(LIMIT_S):
        yield


async def test_connecting_answers_the_agents_version(link: Link, peer: AgentPeer) -> None:
    assert await handlers.AgentConnect(link, WORLD).perform(intent("agent.connect")) == {"agent_version": "peer"}


async def test_a_version_is_one_bounded_line(link: Link, peer: AgentPeer) -> None:
    """It is recorded for ever."""

    async def verbose(_: Message) -> Message:
        return {"agent_version": "\x1b[31m1\n2" + "x" * (2 << 20)}

    peer.script["Version"] = verbose
    result = await handlers.AgentConnect(link, WORLD).perform(intent("agent.connect"))
    assert len(result["agent_version"]) <= envelope.MAX_ERROR_CHARS
    assert result["agent_version"].isprintable()


async def test_making_a_container_has_the_limit_that_is_configured(link: Link, peer: AgentPeer, tmp_path: Path) -> None:
    async def never(_: Message) -> Message:
        await trio.sleep_forever()
        raise AssertionError

    peer.script["CreateContainer"] = never
    kept = tmp_path / "spec.json"
    kept.write_text(json.dumps(SPEC))
    create = handlers.ContainerCreate(link, WORLD, timeout_s=0.2)
    with pytest.raises(TimeoutExceeded, match=r"0\.2"):
        await create.perform(intent("container.create", spec_file=str(kept)))


async def test_configuring_tells_the_guest_what_is_its_sandboxs(link: Link, peer: AgentPeer) -> None:
    given = intent("agent.configure", "", sandbox="box", hostname="h" * 100, shm_size=None, dns=["9.9.9.9"])
    modules = [{"name": "dummy", "parameters": ["numdummies=3"]}]
    await handlers.AgentConfigure(link, WORLD, modules).perform(given)
    names = [name for name, _ in peer.calls if name not in ("Check", "Version")]
    assert names == ["SetGuestDateTime", "ReseedRandomDev", "CreateSandbox"]
    (sandbox,) = peer.called("CreateSandbox")
    assert (sandbox["hostname"], sandbox["sandbox_id"], sandbox["dns"]) == ("h" * 64, "box", ["9.9.9.9"])
    assert [storage["driver"] for storage in sandbox["storages"]] == ["virtio-fs", "ephemeral"]
    assert sandbox["kernel_modules"] == modules
    (seed,) = peer.called("ReseedRandomDev")
    assert len(set(seed["data"])) > 8


async def test_a_guest_that_does_not_answer_its_dismissal_is_not_waited_for(
    link: Link, peer: AgentPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "DISCONNECT_S", 0.05)

    async def never(_: Message) -> Message:
        await trio.sleep_forever()
        return {}

    peer.script["DestroySandbox"] = never
    result = await handlers.AgentDisconnect(link, WORLD).perform(intent("agent.disconnect", ""))
    assert "did not answer DestroySandbox" in result["unanswered"]


async def test_a_container_is_created_from_what_was_kept(link: Link, peer: AgentPeer, tmp_path: Path) -> None:
    kept = tmp_path / "spec.json"
    kept.write_text(json.dumps(SPEC))
    await handlers.ContainerCreate(link, WORLD).perform(intent("container.create", spec_file=str(kept)))
    (request,) = peer.called("CreateContainer")
    assert request["container_id"] == request["exec_id"] == "box"
    assert json.loads(request["OCI"]["raw_json"]) == SPEC


@pytest.mark.parametrize("kept", [None, "", "[]", "{"], ids=["not-kept", "empty", "list", "cut"])
async def test_a_configuration_that_is_damaged_fails_in_words(
    link: Link, peer: AgentPeer, tmp_path: Path, kept: str | None
) -> None:
    path = tmp_path / "spec.json"
    if kept is not None:
        path.write_text(kept)
    with pytest.raises(EffectError, match="the configuration for the guest"):
        await handlers.ContainerCreate(link, WORLD).perform(
            intent("container.create", spec_file=str(path) if kept != "" else None)
        )
    assert not peer.called("CreateContainer")


@pytest.mark.parametrize(
    ("state", "created", "started"),
    [
        (None, False, False),
        ("created", True, False),
        ("running", True, True),
        ("paused", True, True),
        ("stopped", True, None),  # it may have ended before it was started: asking to start it again tells
    ],
)
async def test_the_agent_is_asked_what_was_brought_about(
    link: Link, peer: AgentPeer, state: str | None, created: bool, started: bool | None
) -> None:
    if state:
        peer.containers["box"] = state
    peer.containers["other"] = "running"
    assert await handlers.ContainerCreate(link, WORLD).probe(intent("container.create")) == Observed(created)
    assert await handlers.ContainerStart(link, WORLD).probe(intent("container.start")) == Observed(started)


@pytest.mark.parametrize(
    ("state", "frozen", "thawed"),
    [(None, False, False), ("running", False, True), ("paused", True, False), ("stopped", False, False)],
)
async def test_the_agent_is_asked_whether_it_is_frozen(
    link: Link, peer: AgentPeer, state: str | None, frozen: bool, thawed: bool
) -> None:
    if state:
        peer.containers["box"] = state
    assert await handlers.ContainerPause(link, WORLD).probe(intent("container.pause")) == Observed(frozen)
    assert await handlers.ContainerResume(link, WORLD).probe(intent("container.resume")) == Observed(thawed)


async def test_the_agent_is_asked_whether_it_knows_a_process(link: Link, peer: AgentPeer) -> None:
    peer.containers["box"] = "running"
    peer.process("box", "e1")
    handler = handlers.ProcessExec(link, WORLD)
    for name, there in (("e1", True), ("e2", False)):
        seen = await handler.probe(intent("process.exec", f"box/{name}", container="box", exec=name))
        assert seen.done is there


@pytest.mark.parametrize("code", [envelope.UNIMPLEMENTED, None])
async def test_an_agent_that_cannot_tell(
    link: Link, peer: AgentPeer, monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    """A stock Kata agent has no such call; one whose connection breaks says nothing."""

    async def cannot(_: Message) -> Message:
        if code is None:
            await peer.cut()
            return {}
        raise Refused(code)

    peer.script["QueryState"] = cannot
    seen = await handlers.ContainerCreate(link, WORLD).probe(intent("container.create"))
    assert seen == Observed(None, later=code is None)


async def test_signalling_what_is_gone_is_no_error(link: Link, peer: AgentPeer) -> None:
    async def gone(_: Message) -> Message:
        raise Refused(envelope.NOT_FOUND)

    assert await handlers.signal_process(link, "box", "box", 15) is True
    peer.script["SignalProcess"] = gone
    assert await handlers.signal_process(link, "box", "box", 15) is False
    assert await handlers.ContainerKill(link, WORLD).perform(intent("container.kill")) == {}


async def test_adding_a_process_can_be_repeated(link: Link, peer: AgentPeer, tmp_path: Path) -> None:
    """After a crash it is performed again unless the agent can tell: what it needs must still be there."""
    kept = tmp_path / "process.json"
    kept.write_text(json.dumps(SPEC["process"]))
    given = intent("process.exec", "box/e1", container="box", exec="e1", process_file=str(kept))
    for _ in range(2):
        await handlers.ProcessExec(link, WORLD).perform(given)
    assert [request["exec_id"] for request in peer.called("ExecProcess")] == ["e1", "e1"]


@pytest.mark.parametrize(
    ("handler", "method"),
    [
        (handlers.ContainerStart, "StartContainer"),
        (handlers.ContainerPause, "PauseContainer"),
        (handlers.ContainerResume, "ResumeContainer"),
        (handlers.ContainerRemove, "RemoveContainer"),
        (handlers.ContainerKill, "SignalProcess"),
    ],
)
async def test_each_effect_is_one_call_and_fails_as_the_agent_says(
    link: Link, peer: AgentPeer, handler: type[handlers.AgentHandler], method: str
) -> None:
    made = handler(link, WORLD)
    assert await made.perform(intent("any")) == {}  # type: ignore[attr-defined]
    assert [request["container_id"] for request in peer.called(method)] == ["box"]

    async def refuse(_: Message) -> Message:
        raise Refused(envelope.INTERNAL, "crun said no")

    peer.script[method] = refuse
    with pytest.raises(EffectError, match="crun said no") as caught:
        await made.perform(intent("any"))  # type: ignore[attr-defined]
    assert caught.value.phase == method
    assert await made.undo(intent("any")) == {}
