# SPDX-License-Identifier: Apache-2.0
"""Questions for a name server on the host: taken once each, answered to whoever asked."""

import socket
import subprocess

import pytest

from kata_fsm.effects import netns
from kata_wire import envelope
from tests.support.agent_process import LIMIT_S, AgentProcess, CallError, Client

ADDRESS = "127.0.0.11"
TAKE = {"address": ADDRESS}


def opened(agent: AgentProcess) -> int:
    """A first call, which opens the port and waits; its stream."""
    agent.client.call("QueryState")  # it is in its namespaces
    subprocess.run(["nsenter", "-t", str(agent.process.pid), "-n", "ip", "link", "set", "lo", "up"], check=True)
    waiting = agent.client.start("TakeQuestion", TAKE)
    agent.client.call("QueryState")  # answered after the other was begun
    return waiting


def asker(agent: AgentProcess) -> socket.socket:
    """A process of the guest, as far as the network is concerned."""
    inside = f"/proc/{agent.process.pid}/ns/net"
    made = netns.inside(inside, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    made.settimeout(LIMIT_S)
    made.connect((ADDRESS, 53))
    return made


def test_each_question_is_taken_once_and_its_answer_finds_who_asked(agent: AgentProcess) -> None:
    waiting = opened(agent)
    with asker(agent) as one, asker(agent) as two:
        one.send(b"first?")
        first = agent.client.finish(waiting)
        two.send(b"second?")
        second = agent.client.call("TakeQuestion", TAKE)
        assert (first["data"], second["data"]) == (b"first?", b"second?")
        agent.client.call("GiveAnswer", {"number": second["number"], "data": b"2"})
        agent.client.call("GiveAnswer", {"number": first["number"], "data": b"1"})
        assert (one.recv(100), two.recv(100)) == (b"1", b"2")
        agent.client.call("GiveAnswer", {"number": first["number"], "data": b"again"})  # nobody remembers it: dropped
        one.send(b"third?")
        assert agent.client.call("TakeQuestion", TAKE)["data"] == b"third?"


def test_questions_wait_for_the_next_session(agent: AgentProcess) -> None:
    opened(agent)
    with asker(agent) as one:
        again = Client(agent.sock)  # the call that waited ended with its session
        one.send(b"anybody?")
        assert again.call("TakeQuestion", TAKE)["data"] == b"anybody?"


def test_old_questions_give_way_to_new_ones(agent: AgentProcess) -> None:
    opened(agent)
    again = Client(agent.sock)
    with asker(agent) as one:
        for number in range(300):
            one.send(str(number).encode())
            again.call("QueryState")  # so that the agent reads as fast as we write
        assert int(again.call("TakeQuestion", TAKE)["data"]) > 0


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("", envelope.INVALID_ARGUMENT),
        ("192.0.2.1", envelope.INVALID_ARGUMENT),
        ("127.x", envelope.FAILED_PRECONDITION),
    ],
)
def test_an_address_that_cannot_be(client: Client, address: str, code: int) -> None:
    with pytest.raises(CallError) as caught:
        client.call("TakeQuestion", {"address": address})
    assert caught.value.code == code
