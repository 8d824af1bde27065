# SPDX-License-Identifier: Apache-2.0
"""Goal: `localhost` of the pod's namespace on the host is the guest's, as port-forward expects, and nothing of it stays."""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from kata_fsm.effects import netns
from tests.integration.test_network import bundle, payload
from tests.support import lab as laboratory
from tests.support.kata import LIMIT_S, Kata, wait_until
from tests.support.lab import Lab, Namespace

HTTP, ECHO, DIGEST, CLOSED, OF_HOST = 8000, 9000, 9001, 9002, 9003
SERVERS = (
    f"nc -ll -p {ECHO} -e /bin/cat & nc -ll -p {DIGEST} -e /bin/sha256sum & exec httpd -f -p 127.0.0.1:{HTTP} -h /srv"
)
PARALLEL = 12


@pytest.fixture
def lab(kata: Kata) -> Iterator[Lab]:
    """Namespaces that go before the check for what was left behind."""
    with laboratory.opened() as made:
        yield made


def connect(path: str, port: int, address: str = "127.0.0.1") -> socket.socket:
    """A connection that somebody makes in the namespace at `path`. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = netns.inside(path, lambda: socket.socket(family, socket.SOCK_STREAM))
    made.settimeout(LIMIT_S)
    try:
        made.connect((address, port))
    except OSError:
        made.close()
        raise
    return made


def answers(path: str, port: int) -> bool:
    try:
        connect(path, port).close()
    except ConnectionRefusedError:
        return False
    return True


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))


def exchanged(sock: socket.socket, data: bytes) -> bytes:
    """What comes back of what is sent at the same time."""

    def send() -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    received = read_all(sock)
    sender.join()
    return received


def echoed(path: str, data: bytes, address: str = "127.0.0.1") -> bytes:
    with connect(path, ECHO, address) as sock:
        return exchanged(sock, data)


def digest_of(path: str, data: bytes) -> str:
    """What the guest says of it, when it has heard that no more comes."""
    with connect(path, DIGEST) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock).split()[0].decode()


def sockets(pod: Namespace) -> str:
    return pod("sh", "-c", "cd /proc/self/net; tail -n +2 tcp tcp6 raw raw6 packet")


def served(kata: Kata, pod: Namespace) -> str:
    """A pod with servers, in a namespace; the digest of what its web server has."""
    made = bundle(kata, "b", pod, "/bin/sh", "-c", SERVERS)
    digest = payload(made / "rootfs" / "srv" / "file")
    kata.detached("c1", made)
    for port in (HTTP, ECHO, DIGEST):
        wait_until(lambda port=port: answers(pod.path, port), f"port {port} is open")
    return digest


def test_what_listens_in_the_guest_is_reached_at_localhost(kata: Kata, lab: Lab) -> None:
    pod = lab.namespace("pod")
    before, bare = pod.dump(), sockets(pod)
    digest = served(kata, pod)
    with connect(pod.path, HTTP) as sock:  # the guest's server listens at its own 127.0.0.1 alone
        sock.sendall(b"GET /file HTTP/1.0\r\n\r\n")
        assert hashlib.sha256(read_all(sock).partition(b"\r\n\r\n")[2]).hexdigest() == digest
    data = random.Random(2).randbytes(4 << 20)
    assert digest_of(pod.path, data) == hashlib.sha256(data).hexdigest()
    assert echoed(pod.path, data) == data
    assert echoed(pod.path, b"by IPv6", "::1") == b"by IPv6"
    for address in ("127.0.0.1", "::1"):
        with pytest.raises(ConnectionRefusedError):
            connect(pod.path, CLOSED, address)
    with pytest.raises(ConnectionRefusedError):
        connect(pod.path, ECHO, "127.0.0.2")  # another address is nobody's
    (log,) = (kata.base / "s" / "logs").rglob("supervisor.log")
    assert f"forwarding: port {HTTP} is connected" in log.read_text()
    assert (
        f"port {CLOSED} was refused: port `{CLOSED}` of the guest's `localhost`: Connection refused" in log.read_text()
    )
    kata("delete", "--force", "c1")
    assert not answers(pod.path, HTTP)
    assert laboratory.changes(before, pod.dump()) == ""
    assert [line.split()[:3] for line in sockets(pod).splitlines() if " 0A " in line] == []
    assert [line for line in sockets(pod).splitlines() if " 06 " not in line] == bare.splitlines()  # 06: TIME_WAIT


def test_connections_do_not_disturb_each_other(kata: Kata, lab: Lab) -> None:
    pod = lab.namespace("pod")
    served(kata, pod)
    data = random.Random(3).randbytes(1 << 20)
    with ExitStack() as stack:
        stalled = stack.enter_context(connect(pod.path, ECHO))  # sends, and reads nothing of what comes back
        stalled.setblocking(False)
        while is_writable(stalled):
            stalled.send(data)
        gone = connect(pod.path, ECHO)
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        gone.send(data)
        gone.close()
        several = []
        for _ in range(PARALLEL):  # one after the other: this server lets no more than two wait
            several.append(stack.enter_context(connect(pod.path, ECHO)))
            several[-1].sendall(b"?")
            assert several[-1].recv(1) == b"?"
        found: list[bytes] = []
        talking = [
            threading.Thread(target=lambda sock=sock: found.append(exchanged(sock, data[: 256 << 10])))
            for sock in several
        ]
        for each in talking:
            each.start()
        for each in talking:
            each.join()
        assert found == [data[: 256 << 10]] * PARALLEL
    kata("delete", "--force", "c1")


def is_writable(sock: socket.socket) -> bool:
    """Whether somebody takes something within some time."""
    return bool(select.select([], [sock], [], 2)[1])


def test_what_the_host_has_there_stays_its_own(kata: Kata, lab: Lab) -> None:
    """As Docker's name server, which listens at 127.0.0.11; and a process that somebody has put there."""
    pod = lab.namespace("pod")

    def listening(address: str, port: int) -> socket.socket:
        made = pod.inside(lambda: socket.create_server((address, port)))
        assert isinstance(made, socket.socket)
        return made

    with closing(listening("127.0.0.11", 53)) as names, closing(listening("0.0.0.0", OF_HOST)) as other:
        served(kata, pod)
        for address, port, server in (("127.0.0.11", 53, names), ("127.0.0.1", OF_HOST, other)):
            for _ in range(2):
                with connect(pod.path, port, address), server.accept()[0]:
                    pass
        assert echoed(pod.path, b"the guest's") == b"the guest's"
    with pytest.raises(ConnectionRefusedError):
        connect(pod.path, OF_HOST)
    kata("delete", "--force", "c1")


def test_a_supervisor_that_is_killed_takes_its_connections_along_and_the_next_one_forwards(
    kata: Kata, lab: Lab
) -> None:
    pod = lab.namespace("pod")
    served(kata, pod)
    held = connect(pod.path, ECHO)
    held.sendall(b"x")
    assert held.recv(1) == b"x"
    (supervisor,) = kata.processes("supervisor", "c1")
    os.kill(supervisor, signal.SIGKILL)
    with held:
        try:
            assert held.recv(1) == b""
        except ConnectionResetError:
            pass
    assert "running" in kata("state", "c1").stdout
    wait_until(lambda: answers(pod.path, ECHO), "the next supervisor forwards")
    assert echoed(pod.path, b"again") == b"again"
    (qemu,) = kata.processes("qemu-system", "sandbox-c1")
    with connect(pod.path, ECHO) as held:
        held.sendall(b"x")
        assert held.recv(1) == b"x"
        os.kill(qemu, signal.SIGKILL)
        with pytest.raises(ConnectionResetError):
            held.recv(1)
    wait_until(lambda: not answers(pod.path, ECHO), "nobody listens any more")
    kata("delete", "c1")


def test_a_namespace_of_ours(kata: Kata, lab: Lab) -> None:
    kata.detached("c1", bundle(kata, "b", None, "/bin/nc", "-ll", "-p", str(ECHO), "-e", "/bin/cat"))
    path = f"/proc/{json.loads(kata('state', 'c1').stdout)['pid']}/ns/net"
    wait_until(lambda: answers(path, ECHO), "the port is open")
    assert echoed(path, b"hello") == b"hello"
    kata("delete", "--force", "c1")


def test_a_namespace_that_is_only_lent_is_left_alone(kata: Kata, lab: Lab, tmp_path: Path) -> None:
    """With the model `none` nothing in a given namespace is the guest's, and it could be everybody's."""
    settings = tmp_path / "configuration.toml"
    settings.write_text('[runtime]\ninternetworking_model = "none"\n')
    kata.env["KATA_CONF_FILE"] = str(settings)
    pod = lab.namespace("pod")
    bare = sockets(pod)
    kata.detached("c1", bundle(kata, "b", pod, "/bin/nc", "-ll", "-p", str(ECHO), "-e", "/bin/cat"))

    def listens() -> bool:
        return "0.0.0.0:9000" in kata("exec", "c1", "/bin/netstat", "-ltn").stdout.replace(":::", "0.0.0.0:")

    wait_until(listens, "the guest listens")
    assert not answers(pod.path, ECHO)
    assert sockets(pod) == bare
    kata("delete", "--force", "c1")
