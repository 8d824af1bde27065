# SPDX-License-Identifier: Apache-2.0
"""Asking systemd for a scope, a cgroup with processes that somebody else started, for its limits and for its end
(org.freedesktop.systemd1(5)).

Three methods of one service are called, so this speaks just as much D-Bus as that takes (the D-Bus specification, version
0.41: little-endian, types s o b u t and arrays and variants of them). Root's own socket of systemd is tried first: it needs
no bus.
"""

from __future__ import annotations

import os
import socket
import struct

from kata_fsm.errors import WorldError
from kata_fsm.limits import SYSTEMD_REPLY_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PRIVATE_SOCKET = "/run/systemd/private"
BUS_SOCKET = "/run/dbus/system_bus_socket"
EXISTS = "org.freedesktop.systemd1.UnitExists"
UNKNOWN = "org.freedesktop.systemd1.NoSuchUnit"

_CALL, _RETURN, _ERROR = 1, 2, 3
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _DESTINATION, _SIGNATURE = 1, 2, 3, 4, 6, 8
_MESSAGE_BYTES_MAX = 1 << 20


class Refused(WorldError):
    """systemd answered with an error. `name`: its name on the bus."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"systemd refuses the scope: {message or name}")
        self.name = name
        self.said = message or name


def booted() -> bool:
    """Whether systemd runs this host (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def start_scope(unit: str, slice_name: str, pid: int) -> bool:
    """Have systemd make the scope `unit` in `slice_name` with process `pid` in it; False when there is one of that name.

    Answers as soon as the request is accepted: the process may be moved a moment later. Raises `WorldError`.
    """
    properties: list[tuple[str, str, Any]] = [
        ("Description", "s", f"kata-fsm {unit}"),
        ("Slice", "s", slice_name),
        ("PIDs", "au", [pid]),
        ("Delegate", "b", True),  # what is in it is ours to arrange
        ("DefaultDependencies", "b", False),  # it is not ended before the engine at a shutdown
        ("CollectMode", "s", "inactive-or-failed"),
    ]
    body = Body()
    body.string(unit)
    body.string("fail")

    def write_properties() -> None:
        for each in properties:
            body.property(*each)

    body.array(8, write_properties)
    body.array(8, lambda: None)
    try:
        _call("StartTransientUnit", "ssa(sv)a(sa(sv))", bytes(body.data))
    except Refused as refused:
        if refused.name == EXISTS:
            return False
        raise
    return True


def set_properties(unit: str, properties: list[tuple[str, str, Any]]) -> None:
    """Change (name, type, value) of a unit while it lives, and no longer. Raises `WorldError`."""
    body = Body()
    body.string(unit)
    body.number(True)  # until the unit is gone: nothing is kept on disk

    def write_properties() -> None:
        for each in properties:
            body.property(*each)

    body.array(8, write_properties)
    try:
        _call("SetUnitProperties", "sba(sv)", bytes(body.data))
    except Refused as refused:
        raise WorldError(f"systemd refuses the limits of `{unit}`: {refused.said}") from refused


def stop_unit(unit: str) -> None:
    """Let a unit go, if there is one of that name, with what is in it. Raises `WorldError`."""
    body = Body()
    body.string(unit)
    body.string("replace")
    try:
        _call("StopUnit", "ss", bytes(body.data))
    except Refused as refused:
        if refused.name != UNKNOWN:
            raise


class Body:
    """Values, marshalled one after the other."""

    def __init__(self) -> None:
        self.data = bytearray()

    def pad(self, size: int) -> None:
        """Zeros up to a multiple of `size`."""
        self.data += bytes(-len(self.data) % size)

    def number(self, value: int) -> None:
        """A `u`, or a `b`."""
        self.pad(4)
        self.data += struct.pack("<I", value)

    def long_number(self, value: int) -> None:
        """A `t`."""
        self.pad(8)
        self.data += struct.pack("<Q", value)

    def octets(self, value: bytes) -> None:
        """What an `ay` holds."""
        self.data += value

    def numbers(self, values: list[int]) -> None:
        """What an `au` holds."""
        for value in values:
            self.number(value)

    def string(self, text: str) -> None:
        """An `s`, or an `o`."""
        raw = text.encode()
        self.number(len(raw))
        self.data += raw + b"\0"

    def signature(self, text: str) -> None:
        """A `g`."""
        self.data += bytes([len(text)]) + text.encode() + b"\0"

    def array(self, alignment: int, fill: Any) -> None:
        """An array whose elements, aligned to `alignment`, `fill()` writes. Its length leaves out the padding before."""
        self.number(0)
        at = len(self.data) - 4
        self.pad(alignment)
        start = len(self.data)
        fill()
        struct.pack_into("<I", self.data, at, len(self.data) - start)

    def property(self, name: str, kind: str, value: Any) -> None:
        """A `(sv)`."""
        self.pad(8)
        self.string(name)
        self.variant(kind, value)

    def variant(self, kind: str, value: Any) -> None:
        """A `v` of type `s`, `o`, `g`, `b`, `u`, `t`, `au` or `ay`."""
        self.signature(kind)
        if kind in ("s", "o"):
            self.string(value)
        elif kind == "g":
            self.signature(value)
        elif kind == "au":
            self.array(4, lambda: self.numbers(value))
        elif kind == "ay":
            self.array(1, lambda: self.octets(value))
        elif kind == "t":
            self.long_number(value)
        else:
            self.number(int(value))


def message(serial: int, path: str, interface: str, member: str, to: str, signature: str, body: bytes) -> bytes:
    """A method call, marshalled."""
    fields = [(_PATH, "o", path), (_INTERFACE, "s", interface), (_MEMBER, "s", member), (_DESTINATION, "s", to)]
    if signature:
        fields.append((_SIGNATURE, "g", signature))
    head = Body()
    head.data += struct.pack("<BBBBII", ord("l"), _CALL, 0, 1, len(body), serial)

    def fill() -> None:
        for code, kind, value in fields:
            head.pad(8)
            head.data.append(code)
            head.variant(kind, value)

    head.array(8, fill)
    head.pad(8)
    return bytes(head.data) + body


def _call(member: str, signature: str, body: bytes) -> None:
    """Call a method of systemd's manager and wait for its answer. Raises `WorldError`."""
    try:
        with _connect() as connection:
            manager = "org.freedesktop.systemd1"
            call = message(2, "/org/freedesktop/systemd1", f"{manager}.Manager", member, manager, signature, body)
            connection.sendall(call)
            _await_reply(connection, 2)
    except (OSError, IndexError, UnicodeDecodeError, struct.error) as error:
        why = error.strerror or error if isinstance(error, OSError) else "what it says is no D-Bus"
        raise WorldError(
            f"systemd does not answer on D-Bus: {why}",
            hint="without `--systemd-cgroup` cgroups are made without it",
        ) from error


def _connect() -> socket.socket:
    """A connection on which calls can be made. Raises `OSError`."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(SYSTEMD_REPLY_S)
    try:
        try:
            connection.connect(PRIVATE_SOCKET)
            private = True
        except OSError:
            connection.connect(BUS_SOCKET)
            private = False
        uid = str(os.geteuid()).encode().hex()
        connection.sendall(f"\0AUTH EXTERNAL {uid}\r\n".encode())
        if not _line(connection).startswith(b"OK "):
            raise PermissionError(0, "it does not know us")
        connection.sendall(b"BEGIN\r\n")
        if not private:
            bus = "org.freedesktop.DBus"
            connection.sendall(message(1, "/org/freedesktop/DBus", bus, "Hello", bus, "", b""))
            _await_reply(connection, 1)
    except BaseException:
        connection.close()
        raise
    return connection


def _line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\r\n"):
        line += _exactly(connection, 1)
    return line


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise ConnectionResetError(0, "it hung up")
        data += more
    return data


def _await_reply(connection: socket.socket, serial: int) -> None:
    """Read messages up to the answer to `serial`; signals in between are none of our business. Raises `Refused`."""
    while True:
        head = _exactly(connection, 16)
        order = "<" if head[0] == ord("l") else ">"
        size, _, fields_size = struct.unpack(order + "III", head[4:])
        if max(size, fields_size) > _MESSAGE_BYTES_MAX:
            raise ConnectionError(0, "it does not speak D-Bus")
        fields = _fields(order, _exactly(connection, fields_size + -fields_size % 8), fields_size)
        body = _exactly(connection, size)
        if head[1] in (_RETURN, _ERROR) and fields.get(5) == serial:
            if head[1] == _ERROR:
                raise Refused(str(fields.get(_ERROR_NAME, "")), _first_string(order, str(fields.get(8, "")), body))
            return


def _fields(order: str, data: bytes, size: int) -> dict[int, str | int]:
    """The header's fields: each a byte and a variant, of type `s`, `o`, `g` or `u`."""
    found: dict[int, str | int] = {}
    at = 0
    while at < size:
        at += -at % 8
        code, kind = data[at], chr(data[at + 2])
        at += 4
        if kind == "g":
            length = data[at]
            found[code], at = data[at + 1 : at + 1 + length].decode(), at + length + 2
            continue
        at += -at % 4
        (number,) = struct.unpack_from(order + "I", data, at)
        at += 4
        if kind == "u":
            found[code] = number
        else:
            found[code], at = data[at : at + number].decode(errors="replace"), at + number + 1
    return found


def _first_string(order: str, signature: str, body: bytes) -> str:
    if not signature.startswith("s"):
        return ""
    (length,) = struct.unpack_from(order + "I", body)
    return body[4 : 4 + length].decode(errors="replace")
