# SPDX-License-Identifier: Apache-2.0
"""Connections to the guest's `localhost`, opened for the host: bytes both ways, ends, failures, and whose they are."""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest.agent.rpc_connection import CONNECTIONS_MAX, RING_BYTES
from kata_fsm.effects import netns
from kata_wire import envelope
from tests.support.agent_process import LIMIT_S, AgentProcess, CallError, Client

PORT = 8000
AT_ONCE = struct.pack("ii", 1, 0)


class Server:
    """A process of the guest that listens, as far as the network is concerned."""

    def __init__(self, agent: AgentProcess, address: str = "127.0.0.1", port: int = PORT) -> None:
        agent.client.call("QueryState")  # it is in its namespaces
        subprocess.run(["nsenter", "-t", str(agent.process.pid), "-n", "ip", "link", "set", "lo", "up"], check=True)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        inside = f"/proc/{agent.process.pid}/ns/net"
        self.listener = netns.inside(inside, lambda: socket.socket(family, socket.SOCK_STREAM))
        self.listener.bind((address, port))
        self.listener.listen(CONNECTIONS_MAX)
        self.listener.settimeout(LIMIT_S)

    def accept(self) -> socket.socket:
        sock, _ = self.listener.accept()
        sock.settimeout(LIMIT_S)
        return sock


@pytest.fixture
def server(agent: AgentProcess) -> Iterator[Server]:
    made = Server(agent)
    yield made
    made.listener.close()


def opened(client: Client, server: Server, name: str = "c1") -> socket.socket:
    """The server's end of a new connection."""
    client.call("OpenConnection", {"id": name, "port": PORT})
    return server.accept()


def read(client: Client, offset: int, name: str = "c1", timeout_ms: int = 5000) -> tuple[bytes, bool]:
    request = {"exec_id": name, "stream": 1, "offset": offset, "len": 3 << 20, "timeout_ms": timeout_ms}
    answer = client.call("ReadStream", request)
    return bytes(answer.get("data", b"")), bool(answer.get("eof"))


def read_all(client: Client, name: str = "c1", offset: int = 0) -> bytes:
    found, over = b"", False
    while not over:
        data, over = read(client, offset + len(found), name)
        found += data
    return found


def write(client: Client, data: bytes, name: str = "c1", offset: int = 0, eof: bool = True) -> None:
    while True:
        request = {"exec_id": name, "offset": offset, "data": data[: 256 << 10], "eof": eof and len(data) <= 256 << 10}
        wanted = client.call("WriteStream", request).get("offset", 0)
        data, offset = data[wanted - offset :], wanted
        if not data:
            return


def wait_for(condition: object, client: Client) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        client.call("QueryState")


def test_each_way_ends_by_itself(client: Client, server: Server) -> None:
    with opened(client, server) as sock:
        write(client, b"question")
        assert sock.recv(100) == b"question"
        assert sock.recv(100) == b""
        sock.sendall(b"answer")  # though the other end has nothing more to say
        assert read(client, 0)[0] == b"answer"
        sock.shutdown(socket.SHUT_WR)
        assert read(client, 6) == (b"", True)
    client.call("CloseConnection", {"id": "c1"})
    with pytest.raises(CallError) as gone:
        read(client, 6)
    assert gone.value.code == envelope.NOT_FOUND


def test_megabytes_both_ways_at_once(client: Client, server: Server) -> None:
    data = random.Random(1).randbytes(5 << 20)
    with opened(client, server) as sock:
        sock.settimeout(None)  # whoever has it next may block
        echo = subprocess.Popen(["cat"], stdin=sock, stdout=sock)  # which sends only what it has received
    with echo:
        received, sent, writing = bytearray(), 0, 0
        while len(received) < len(data):
            if not writing and sent < len(data):
                writing = client.start(
                    "WriteStream", {"exec_id": "c1", "offset": sent, "data": data[sent:][: 64 << 10]}
                )
            received += read(client, len(received), timeout_ms=0)[0]
            if writing and client.answered(writing):
                sent, writing = client.finish(writing)["offset"], 0
        client.call("WriteStream", {"exec_id": "c1", "offset": sent, "eof": True})
        assert read(client, len(received)) == (b"", True)
    assert echo.returncode == 0
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()


def test_a_host_that_does_not_read_holds_up_the_sender_alone(client: Client, server: Server) -> None:
    sent = 0
    with opened(client, server) as sock, opened(client, server, "c2") as other:
        sock.setblocking(False)

        def full() -> bool:
            nonlocal sent
            try:
                sent += sock.send(bytes(64 << 10))
            except BlockingIOError:
                return True
            return False

        for _ in range(3):  # what the kernel holds is moved to the agent meanwhile
            read(client, 0, timeout_ms=0)
            wait_for(full, client)
        other.sendall(b"lively")
        assert read(client, 0, "c2")[0] == b"lively"
        held, _ = read(client, 0)
        assert len(held) <= RING_BYTES < sent


def test_a_port_that_is_closed(client: Client, server: Server) -> None:
    with pytest.raises(CallError, match="port `81` of the guest's `localhost`: Connection refused") as refused:
        client.call("OpenConnection", {"id": "c1", "port": 81})
    assert refused.value.code == envelope.FAILED_PRECONDITION


def test_a_server_of_ipv6_alone(client: Client, agent: AgentProcess) -> None:
    server = Server(agent, "::1")
    with server.listener, opened(client, server) as sock:
        write(client, b"hello")
        assert sock.recv(100) == b"hello"


@pytest.mark.parametrize(("name", "port"), [("", 80), ("c1", 0), ("c1", 1 << 16), ("c" * 65, 80)])
def test_what_cannot_be_asked(client: Client, name: str, port: int) -> None:
    with pytest.raises(CallError) as refused:
        client.call("OpenConnection", {"id": name, "port": port})
    assert refused.value.code == envelope.INVALID_ARGUMENT


def test_a_broken_connection_is_no_end(client: Client, server: Server) -> None:
    with opened(client, server) as sock:
        sock.sendall(b"half of")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        assert read(client, 0) == (b"half of", False)
    with pytest.raises(CallError, match="the connection broke: Connection reset by peer"):
        read(client, 7)
    with pytest.raises(CallError, match="was closed"):
        write(client, b"too late")
    client.call("CloseConnection", {"id": "c1"})


def test_what_was_accepted_leaves_though_the_host_has_left(client: Client, server: Server) -> None:
    data = bytes(256 << 10)
    with opened(client, server) as sock:
        offset = wanted = 0
        while wanted == offset:  # until the kernel takes no more, and the agent holds some of it
            offset += len(data)
            wanted = client.call("WriteStream", {"exec_id": "c1", "offset": offset - len(data), "data": data})["offset"]
        client.call("CloseConnection", {"id": "c1"})
        with pytest.raises(CallError):
            client.call("OpenConnection", {"id": "c1", "port": PORT})  # it is still leaving
        received = 0
        while got := len(sock.recv(1 << 16)):
            received += got
        assert received == wanted
    opened(client, server).close()


def test_an_aborted_connection_is_told_to_the_server(client: Client, server: Server) -> None:
    with opened(client, server) as sock:
        client.call("CloseConnection", {"id": "c1", "abort": True})
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    client.call("CloseConnection", {"id": "c1", "abort": True})


def test_connections_end_with_their_session(agent: AgentProcess, server: Server) -> None:
    with opened(agent.client, server) as sock:
        again = Client(agent.sock)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        with opened(again, server) as other:
            write(again, b"hello")
            assert other.recv(100) == b"hello"


def test_a_dial_that_nobody_answers_ends_with_the_callers_patience(client: Client, server: Server) -> None:
    server.listener.listen(0)
    fillers = [client.start("OpenConnection", {"id": f"f{n}", "port": PORT}, timeout_ns=300_000_000) for n in range(4)]
    codes = []
    for filler in fillers:
        try:
            client.finish(filler)
        except CallError as error:
            codes.append(error.code)
    assert codes
    assert set(codes) == {envelope.DEADLINE_EXCEEDED}


def test_no_more_than_so_many(client: Client, server: Server) -> None:
    ends = [opened(client, server, f"c{number}") for number in range(CONNECTIONS_MAX)]
    with pytest.raises(CallError) as refused:
        client.call("OpenConnection", {"id": "more", "port": PORT})
    assert refused.value.code == envelope.RESOURCE_EXHAUSTED
    client.call("CloseConnection", {"id": "c0"})
    ends.append(server.accept())  # the one that was refused after it had come about
    ends.append(opened(client, server, "more"))
    for end in ends:
        end.close()


def test_an_agents_state_directory_is_untouched(agent: AgentProcess, server: Server, tmp_path: Path) -> None:
    opened(agent.client, server).close()
    assert not list((tmp_path / "state").iterdir())
