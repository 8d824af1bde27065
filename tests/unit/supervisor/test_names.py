# SPDX-License-Identifier: Apache-2.0
"""Questions of the guest for Docker's name server: asked in the pod's namespace, else of the host's servers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from kata_fsm.effects import netns
from kata_fsm.effects.network import namespace
from kata_fsm.supervisor import names
from tests.support.agent_peer import AgentPeer, Message
from tests.support.house import House
from tests.support.stage import Stage
from tests.unit.supervisor.test_networking import ETH0, create_with_hooks


@pytest.fixture
def docker(pod: str) -> Iterator[None]:
    """Somebody who answers in there as dockerd does: at once what it knows, and never what it does not."""
    server = netns.inside(pod, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    server.bind((namespace.RESOLVER, 53))

    def serve() -> None:
        while (asked := server.recvfrom(512))[0]:
            if asked[0] != b"far":
                server.sendto(b"docker knows " + asked[0], asked[1])

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    server.sendto(b"", server.getsockname())
    thread.join()
    server.close()


def test_who_listens_is_seen(pod: str, docker: None) -> None:
    assert netns.inside(pod, namespace.has_resolver)


def test_that_nobody_listens_is_seen(pod: str) -> None:
    assert not netns.inside(pod, namespace.has_resolver)


async def test_docker_is_asked_in_the_namespace(pod: str, docker: None) -> None:
    assert await names.ask(pod, b"near") == b"docker knows near"


async def test_after_its_silence_the_host_is_asked(pod: str, docker: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "NAME_SILENCE_S", 0.1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        monkeypatch.setattr(names, "_PORT", server.getsockname()[1])
        monkeypatch.setattr(names, "name_servers", lambda: ["127.0.0.1"])
        answers: list[bytes] = []
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                answers.append(await names.ask(pod, b"far"))

            nursery.start_soon(ask)
            data, client = await trio.to_thread.run_sync(server.recvfrom, 512)
            server.sendto(b"the host knows " + data, client)
    assert answers == [b"the host knows far"]


async def test_a_namespace_that_is_gone_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "name_servers", list)
    assert await names.ask("/no/such", b"near") == b""


def test_the_hosts_servers(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# nameserver 192.0.2.9\nnameserver 192.0.2.1\nnameserver nowhere\nnameserver\nnameserver 2001:db8::1\n"
    )
    assert names.name_servers(str(path)) == ["192.0.2.1", "2001:db8::1"]
    assert names.name_servers(str(tmp_path / "none")) == []


async def test_the_guests_questions_are_carried_while_there_is_a_resolver(
    house: House, stage: Stage, peer: AgentPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter([b"one?", b"two?"])
    answers: dict[int, bytes] = {}
    done = trio.Event()

    async def take(request: Message) -> Message:
        assert request["address"] == namespace.RESOLVER
        for number, data in enumerate(asked):
            return {"number": 7 + number + len(answers), "data": data}
        await trio.sleep_forever()
        raise AssertionError

    async def give(request: Message) -> Message:
        answers[len(answers)] = request["data"]
        if len(answers) == 2:
            done.set()
        return {}

    async def answer(where: str, data: bytes) -> bytes:
        assert where == "/run/x/netns"
        return b"answer to " + data

    monkeypatch.setattr(names, "ask", answer)
    peer.script.update({"TakeQuestion": take, "GiveAnswer": give})
    stage.results["network.change"] = {"interfaces": [ETH0], "routes": [], "neighbours": [], "resolver": True}
    assert (await create_with_hooks(house))["ok"]
    with trio.fail_after(60):
        await done.wait()
    assert sorted(answers.values()) == [b"answer to one?", b"answer to two?"]
