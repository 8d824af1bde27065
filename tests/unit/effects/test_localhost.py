# SPDX-License-Identifier: Apache-2.0
"""Standing at `localhost` of a network namespace: who knocks is held, admitted, refused or left to the host's own."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from kata_fsm.effects import netns
from kata_fsm.effects.localhost import bpf, doorway, packets
from kata_fsm.effects.localhost.doorway import Doorway
from kata_fsm.effects.localhost.packets import Knock

LIMIT_S = 20.0
FAMILIES = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}


@pytest.fixture
def door(pod: str) -> Iterator[Doorway]:
    made = Doorway(pod)
    yield made
    made.close()


def start(pod: str, port: int, address: str = "127.0.0.1", own: str = "") -> Future[socket.socket]:
    """Somebody connects in the namespace; his socket, or his OSError."""
    made: Future[socket.socket] = Future()

    def connect() -> None:
        sock = netns.inside(pod, lambda: socket.socket(FAMILIES.get(address, socket.AF_INET), socket.SOCK_STREAM))
        sock.settimeout(LIMIT_S)
        try:
            if own:
                sock.bind((own, 0))
            sock.connect((address, port))
        except OSError as error:
            sock.close()
            made.set_exception(error)
        else:
            made.set_result(sock)

    threading.Thread(target=connect).start()
    return made


def heard(door: Doorway, address: str = "127.0.0.1", *known: Knock) -> Knock:
    """The next knock of somebody who is not `known`: whoever waits for a second knocks again."""
    family = FAMILIES[address]
    while True:
        assert select.select([door.taps[family]], [], [], LIMIT_S)[0]
        for knock in door.knocks(family):
            if knock.key not in [each.key for each in known]:
                return knock


def accepted(door: Doorway, address: str = "127.0.0.1") -> socket.socket:
    listener = door.listeners[FAMILIES[address]]
    assert select.select([listener], [], [], LIMIT_S)[0]
    sock = listener.accept()[0]
    sock.settimeout(LIMIT_S)
    return sock


def no_knock(door: Doorway, wait_s: float = 0.1) -> bool:
    return not select.select(list(door.taps.values()), [], [], wait_s)[0]


@pytest.mark.parametrize("address", FAMILIES)
def test_who_is_admitted_is_accepted_at_the_port_that_he_wanted(door: Doorway, pod: str, address: str) -> None:
    asked = start(pod, 8080, address)
    knock = heard(door, address)
    assert not select.select([door.listeners[FAMILIES[address]]], [], [], 0.1)[0]
    assert not asked.done()  # nobody was told anything yet
    assert {again.key for again in door.knocks(FAMILIES[address])} <= {knock.key}  # after a second
    door.admit(knock)
    with accepted(door, address) as ours, asked.result(LIMIT_S) as theirs:
        assert ours.getsockname()[:2] == (address, 8080)
        assert ours.getpeername()[1] == knock.client == theirs.getsockname()[1]
        theirs.sendall(b"hello")
        assert ours.recv(10) == b"hello"
        ours.sendall(b"and back")
        assert theirs.recv(10) == b"and back"
    assert no_knock(door)  # what was let through does not knock again


@pytest.mark.parametrize("address", FAMILIES)
def test_who_is_refused_gets_what_a_closed_port_answers(door: Doorway, pod: str, address: str) -> None:
    asked = start(pod, 81, address)
    door.refuse(heard(door, address))
    with pytest.raises(ConnectionRefusedError):
        asked.result(LIMIT_S)


def test_who_is_not_answered_knocks_again(door: Doorway, pod: str) -> None:
    asked = start(pod, 8080)
    first, second = heard(door), heard(door)
    assert (first.key, first.seq) == (second.key, second.seq)
    door.refuse(second)
    with pytest.raises(ConnectionRefusedError):
        asked.result(LIMIT_S)


@pytest.mark.parametrize(
    ("listening", "address"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1")]
)
def test_a_port_of_the_hosts_is_left_to_it(door: Doorway, pod: str, listening: str, address: str) -> None:
    family = socket.AF_INET6 if ":" in listening else socket.AF_INET
    assert not door.is_of_host(8080)
    with netns.inside(pod, lambda: socket.create_server((listening, 8080), family=family)) as server:
        assert door.is_of_host(8080)
        assert not door.is_of_host(8081)
        asked = start(pod, 8080, address)
        first = heard(door, address)
        door.leave(first)
        with server.accept()[0], asked.result(LIMIT_S), start(pod, 8080, address).result(LIMIT_S):
            second = heard(door, address, first)  # it was seen, and not held
        door.take_back(8080)
        door.take_back(8080)
        asked = start(pod, 8080, address)
        door.refuse(heard(door, address, first, second))
        with pytest.raises(ConnectionRefusedError):
            asked.result(LIMIT_S)


def test_our_own_port_is_not_the_hosts(door: Doorway, pod: str) -> None:
    port = door.listeners[socket.AF_INET].getsockname()[1]
    assert not door.is_of_host(port)
    asked = start(pod, port)
    door.refuse(heard(door))
    with pytest.raises(ConnectionRefusedError):
        asked.result(LIMIT_S)


def test_other_addresses_are_not_touched(door: Doorway, pod: str) -> None:
    """Docker's name server answers at 127.0.0.11."""
    server = netns.inside(pod, lambda: socket.create_server(("127.0.0.11", 53)))
    with server, start(pod, 53, "127.0.0.11").result(LIMIT_S), server.accept()[0]:
        pass
    for address, own in (("127.0.0.2", ""), ("127.0.0.1", "127.0.0.2")):
        with pytest.raises(ConnectionRefusedError):
            start(pod, 8080, address, own).result(LIMIT_S)
    assert no_knock(door)


def test_a_stray_packet_is_answered_as_anywhere(door: Doorway, pod: str) -> None:
    """Only first packets are held. Whoever goes on with a connection that nobody has is told so."""
    asked = start(pod, 8080)
    knock = heard(door)
    door.admit(knock)
    ours, theirs = accepted(door), asked.result(LIMIT_S)
    ours.setsockopt(socket.IPPROTO_TCP, 19, 1)  # TCP_REPAIR: this end vanishes without a word
    ours.close()
    with theirs:
        theirs.sendall(b"anybody?")
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)


def test_nothing_stays(pod: str) -> None:
    def sockets() -> list[str]:
        names = ("tcp", "tcp6", "raw", "raw6", "packet")
        return netns.inside(pod, lambda: [Path(f"/proc/thread-self/net/{name}").read_text() for name in names])

    before, open_before = sockets(), os.listdir("/proc/self/fd")
    Doorway(pod).close()
    assert sockets() == before
    assert os.listdir("/proc/self/fd") == open_before
    with pytest.raises(ConnectionRefusedError):
        start(pod, 8080).result(LIMIT_S)


def refused_by(door: Doorway, pod: str, address: str) -> None:
    asked = start(pod, 8080, address)
    knock = heard(door, address)
    door.refuse(knock)
    with pytest.raises(ConnectionRefusedError):
        asked.result(LIMIT_S)
    assert {again.key for again in door.knocks(FAMILIES[address])} <= {knock.key}  # after a second


def test_where_ipv6_is_switched_off(pod: str) -> None:
    def switch_off() -> None:
        Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").write_text("1")

    netns.inside(pod, switch_off)
    door = Doorway(pod)
    refused_by(door, pod, "127.0.0.1")
    with pytest.raises(OSError, match="Cannot assign requested address"):
        start(pod, 8080, "::1").result(LIMIT_S)
    door.close()


def test_without_ipv6(pod: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = doorway._socket

    def unknown(family: int, kind: int, protocol: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return made(family, kind, protocol)

    monkeypatch.setattr(doorway, "_socket", unknown)
    door = Doorway(pod)
    assert list(door.listeners) == [socket.AF_INET]
    refused_by(door, pod, "127.0.0.1")
    door.close()


def test_an_interface_that_goes_down_and_comes_up(pod: str) -> None:
    def switch(state: str) -> None:
        subprocess.run(["nsenter", f"--net={pod}", "ip", "link", "set", "lo", state], check=True)

    switch("down")
    door = Doorway(pod)
    switch("up")
    for family in door.listeners:
        assert list(door.knocks(family)) == []
    for address in FAMILIES:
        refused_by(door, pod, address)
    switch("down")
    for family in door.listeners:
        assert list(door.knocks(family)) == []
    switch("up")
    for address in FAMILIES:
        refused_by(door, pod, address)
    door.close()


@pytest.mark.parametrize("step", ["make_map", "put", "load", "attach"])
def test_a_kernel_that_refuses_leaves_nothing(pod: str, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def refused(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(bpf, step, refused)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(PermissionError):
        Doorway(pod)
    assert os.listdir("/proc/self/fd") == before


def test_a_program_that_the_kernel_does_not_trust_is_explained() -> None:
    with pytest.raises(OSError, match="R0 !read_ok"):
        bpf.load(bpf.assemble([bpf.leave()]))


def test_a_namespace_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Doorway(str(tmp_path / "none"))


@pytest.mark.parametrize(("family", "whole"), [(socket.AF_INET, 40), (socket.AF_INET6, 20)])
def test_a_packet_that_was_cut_off(family: int, whole: int) -> None:
    for size in range(whole):
        assert packets.read(family, b"\x45" * size) is None
    assert packets.read(family, b"\x45" * whole) is not None


def test_what_listens_is_read_of_the_kernels_table(tmp_path: Path) -> None:
    path = tmp_path / "tcp"
    path.write_text(
        "  sl  local_address rem_address   st\n"
        "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n"
        "   1: 0B00007F:0035 00000000:0000 0A 00000000:00000000\n"  # elsewhere
        "   2: 0100007F:1F91 0100007F:8000 01 00000000:00000000\n"  # connected
        "   3: 00000000000000000000000000000000:1F92 00000000000000000000000000000000:0000 0A 0\n"
    )
    fd = os.open(path, os.O_RDONLY)
    assert doorway._listening(fd) == doorway._listening(fd) == {0x1F90, 0x1F92}
    os.close(fd)
