# SPDX-License-Identifier: Apache-2.0
"""rtnetlink, as much as the network calls need: links, addresses, routes, neighbours. linux/rtnetlink.h, rtnetlink(7).

Messages are `nlmsghdr`, a fixed structure, and attributes (length, type, value, padded to 4 bytes), in the machine's byte
order. The kernel answers a request before `send` returns, so reading never waits.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, AF_NETLINK, SOCK_CLOEXEC, SOCK_RAW, inet_ntop, inet_pton, socket
from os import strerror
from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADER = Struct("=IHHII")  # length, type, flags, sequence, port id
_ATTRIBUTE = Struct("=HH")
_ERROR = Struct("=i")
LINK = Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
ADDRESS = Struct("=BBBBi")  # struct ifaddrmsg: family, prefix length, flags, scope, index
ROUTE = Struct("=BBBBBBBBI")  # struct rtmsg: family, dst len, src len, tos, table, protocol, scope, type, flags
NEIGHBOUR = Struct("=BxxxiHBB")  # struct ndmsg: family, index, state, flags, type

_NETLINK_ROUTE = 0
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
REQUEST, ACK, ROOT_MATCH, REPLACE, CREATE, APPEND, EXCL = 0x1, 0x4, 0x300, 0x100, 0x400, 0x800, 0x200
NEW_LINK, GET_LINK = 16, 18
NEW_ADDRESS, DELETE_ADDRESS, GET_ADDRESS = 20, 21, 22
NEW_ROUTE, DELETE_ROUTE, GET_ROUTE = 24, 25, 26
NEW_NEIGHBOUR = 28
_TYPE_MASK = 0x3FFF  # the two bits above say "nested" and "network byte order"
_RECEIVE_BYTES = 256 << 10

Attributes = dict[int, bytes]


class NetlinkError(OSError):
    """The kernel's refusal, with its errno."""


class Netlink:
    """One socket; use it in a `with`."""

    def __init__(self) -> None:
        self._socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, _NETLINK_ROUTE)
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def change(self, kind: int, flags: int, body: bytes, attributes: list[tuple[int, bytes]]) -> None:
        """Ask for a change. Raises NetlinkError."""
        for _ in self._ask(kind, flags | ACK, body, attributes):
            pass

    def dump(self, kind: int, body: bytes) -> list[tuple[bytes, Attributes]]:
        """Everything of a kind: (fixed part and attributes undivided, attributes) of each. Raises NetlinkError."""
        size = {GET_LINK: LINK.size, GET_ADDRESS: ADDRESS.size, GET_ROUTE: ROUTE.size}[kind]
        found = self._ask(kind, ROOT_MATCH, body, [])
        return [(payload[:size], parse_attributes(payload, size)) for payload in found]

    def _ask(self, kind: int, flags: int, body: bytes, attributes: list[tuple[int, bytes]]) -> Iterator[bytes]:
        self._sequence += 1
        payload = body + b"".join(pack_attribute(number, value) for number, value in attributes)
        header = _HEADER.pack(_HEADER.size + len(payload), kind, flags | REQUEST, self._sequence, 0)
        self._socket.send(header + payload)
        while True:
            data = self._socket.recv(_RECEIVE_BYTES)
            at = 0
            while at + _HEADER.size <= len(data):
                length, answer, _, sequence, _ = _HEADER.unpack_from(data, at)
                content = data[at + _HEADER.size : at + length]
                at += (length + 3) & ~3
                if sequence != self._sequence:
                    continue
                if answer == _NLMSG_DONE:
                    return
                if answer == _NLMSG_ERROR:
                    code = -_ERROR.unpack_from(content)[0]
                    if code:
                        raise NetlinkError(code, strerror(code))
                    return
                yield content


def pack_attribute(number: int, value: bytes) -> bytes:
    """One attribute with its padding."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, number) + value + b"\0" * (-length % 4)


def parse_attributes(data: bytes, at: int) -> Attributes:
    """type -> value, from position `at` on."""
    found: Attributes = {}
    while at + _ATTRIBUTE.size <= len(data):
        length, number = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            break
        found[number & _TYPE_MASK] = data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def address_bytes(text: str) -> tuple[int, bytes]:
    """(address family, network bytes). Raises OSError, ValueError for what is no address."""
    family = AF_INET6 if ":" in text else AF_INET
    return family, inet_pton(family, text)


def address_text(family: int, value: bytes) -> str:
    """The usual spelling."""
    return inet_ntop(family, value)


def u32(value: int) -> bytes:
    """A 32-bit number as an attribute's value."""
    return value.to_bytes(4, "little")


def number(value: bytes) -> int:
    """The same, read."""
    return int.from_bytes(value, "little")
