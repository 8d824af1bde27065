# SPDX-License-Identifier: Apache-2.0
"""Goal: whatever is at systemd's socket, asking it for a scope ends in an answer or in one error."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kata_fsm import systemd
from kata_fsm.errors import WorldError


@contextmanager
def answering(
    path: Path, answer: Callable[[socket.socket], None], until: bytes = b"CollectMode", heard: bytearray | None = None
) -> Iterator[None]:
    """Somebody who lets us in at `path`, and then does `answer`, when he has heard the last thing that a call says."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"OK 0123456789abcdef0123456789abcdef\r\n")
                asked = bytearray() if heard is None else heard
                while until not in asked:
                    asked += connection.recv(65536)
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def reply(kind: int, serial: int, fields: list[tuple[int, str, str]], body: bytes = b"") -> bytes:
    """A message in answer to `serial`."""
    head = systemd.Body()
    head.data += struct.pack("<BBBBII", ord("l"), kind, 0, 1, len(body), 7)

    def fill() -> None:
        head.data.append(5)
        head.variant("u", serial)
        for code, sort, value in fields:
            head.pad(8)
            head.data.append(code)
            head.variant(sort, value)

    head.array(8, fill)
    head.pad(8)
    return bytes(head.data) + body


def refusal(name: str, text: str) -> bytes:
    body = systemd.Body()
    body.string(text)
    return reply(3, 2, [(4, "s", name), (8, "g", "s")], bytes(body.data))


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(systemd, "PRIVATE_SOCKET", str(tmp_path / "private"))
    monkeypatch.setattr(systemd, "BUS_SOCKET", str(tmp_path / "bus"))
    monkeypatch.setattr(systemd, "SYSTEMD_REPLY_S", 2.0)
    return tmp_path / "private"


def test_an_accepted_scope(at: Path) -> None:
    signal = reply(4, 0, [])
    with answering(at, lambda there: there.sendall(signal + reply(2, 2, [(8, "g", "o")]))):
        assert systemd.start_scope("a.scope", "b.slice", 1)


def test_a_scope_that_is_there(at: Path) -> None:
    with answering(at, lambda there: there.sendall(refusal(systemd.EXISTS, "it exists"))):
        assert not systemd.start_scope("a.scope", "b.slice", 1)


def test_a_refusal_is_told(at: Path) -> None:
    with (
        answering(at, lambda there: there.sendall(refusal("org.example.No", "not today"))),
        pytest.raises(WorldError, match="systemd refuses the scope: not today"),
    ):
        systemd.start_scope("a.scope", "b.slice", 1)


def test_limits_are_marshalled(at: Path) -> None:
    heard = bytearray()
    properties = [("MemoryMax", "t", 1 << 33), ("AllowedCPUs", "ay", b"\x05\x80"), ("CPUWeight", "t", 77)]
    with answering(at, lambda there: there.sendall(reply(2, 2, [])), b"CPUWeight\0\1t", heard):
        systemd.set_properties("a.scope", properties)
    assert b"SetUnitProperties" in heard
    assert b"a.scope\0\1\0\0\0" in heard
    body = heard[heard.index(b"\7\0\0\0a.scope\0\1") :]
    # From the body's beginning: each value stands where its type has to (the D-Bus specification, "Marshalling").
    for name, kind, size, data in (
        (b"MemoryMax", b"\1t\0", 8, struct.pack("<Q", 1 << 33)),
        (b"AllowedCPUs", b"\2ay\0", 4, b"\2\0\0\0\x05\x80"),
        (b"CPUWeight", b"\1t\0", 8, struct.pack("<Q", 77)),
    ):
        end = body.index(name + b"\0" + kind) + len(name + b"\0" + kind)
        assert body[end + -end % size :].startswith(data)


def test_a_unit_is_let_go_of_once(at: Path) -> None:
    for answer in (reply(2, 2, [(8, "g", "o")]), refusal(systemd.UNKNOWN, "not loaded")):
        with answering(at, lambda there, answer=answer: there.sendall(answer), b"replace"):
            systemd.stop_unit("a.scope")
        at.unlink()
    with (
        answering(at, lambda there: there.sendall(refusal("org.example.No", "not now")), b"replace"),
        pytest.raises(WorldError, match="not now"),
    ):
        systemd.stop_unit("a.scope")


def test_limits_that_are_refused(at: Path) -> None:
    with (
        answering(at, lambda there: there.sendall(refusal("org.example.No", "no such property")), b"CPUWeight"),
        pytest.raises(WorldError, match=r"systemd refuses the limits of `a.scope`: no such property"),
    ):
        systemd.set_properties("a.scope", [("CPUWeight", "t", 77)])


@pytest.mark.parametrize(
    "answer",
    [b"", b"l", b"\xff" * 64, b"l\2\0\1" + bytes(8) + b"\1\0\0\0" + bytes(8), b"HTTP/1.1 400 Bad Request\r\n\r\n"],
)
def test_nonsense_is_one_error(at: Path, answer: bytes) -> None:
    with (
        answering(at, lambda there: there.sendall(answer)),
        pytest.raises(WorldError, match="systemd does not answer on D-Bus"),
    ):
        systemd.start_scope("a.scope", "b.slice", 1)


def test_nobody_is_there(at: Path) -> None:
    with pytest.raises(WorldError, match="systemd does not answer on D-Bus: No such file"):
        systemd.start_scope("a.scope", "b.slice", 1)
