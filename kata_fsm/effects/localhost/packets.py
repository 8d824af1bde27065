# SPDX-License-Identifier: Apache-2.0
"""The first packet of a TCP connection to `localhost`: recognized, read, sent once more or refused (RFC 9293).

The filters are programs of the old kind (linux/filter.h), which a socket runs over each packet before it takes it.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import NamedTuple

SIGN = 1
"""The hop limit of a first packet that is let through. Nobody else's has this one: it could not leave the machine."""

_SYN, _RST, _ACK = 0x02, 0x04, 0x10
_LOCALHOST: dict[int, bytes] = {socket.AF_INET: socket.inet_aton("127.0.0.1"), socket.AF_INET6: bytes(15) + b"\1"}
_HOPS = 64
_HOPS_AT: dict[int, int] = {socket.AF_INET: 8, socket.AF_INET6: 7}
_HEADER6 = 40
_TCP_BYTES_MIN = 20
_SO_ATTACH_FILTER = 26
_NETWORK_HEADER = 0xFFF0_0000  # SKF_NET_OFF: from here on offsets count from the network's header
_WORD, _BYTE = 0x20, 0x30
_ALL, _NOTHING = 0xFFFF_FFFF, 0

Test = list[tuple[int, int, int, int]]


class Knock(NamedTuple):
    """Somebody's first packet. `client` and `port` are the ends' ports, `seq` its number, which a repeated one has too."""

    family: int
    client: int
    port: int
    seq: int
    packet: bytes

    @property
    def key(self) -> tuple[int, int, int]:
        """What tells the connection from all others at the same time."""
        return self.family, self.client, self.port


# --- filters


def attach(sock: socket.socket, lines: Test) -> None:
    """Have a socket take only what passes. Raises OSError."""
    code = b"".join(struct.pack("=HBBI", *line) for line in lines)
    held = ctypes.create_string_buffer(code, len(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(lines), ctypes.addressof(held)))


def _is(kind: int, offset: int, value: int, left: int) -> Test:
    """Go on if what is at an offset is this, else skip `left` further lines."""
    return [(kind, 0, 0, offset), (0x15, 0, left, value)]


def only_knocks(family: int) -> Test:
    """For a raw socket of TCP: first packets from `localhost` to `localhost` that nobody has let through yet."""
    address = _LOCALHOST[family]
    words = struct.unpack(f"!{len(address) // 4}I", address) * 2
    begin = 12 if family == socket.AF_INET else 8
    rest: Test = [
        (_BYTE, 0, 0, _NETWORK_HEADER + _HOPS_AT[family]),
        (0x15, 5, 0, SIGN),
        *_tcp_flags(family),
        (0x54, 0, 0, _SYN | _ACK),
        (0x15, 0, 1, _SYN),
        (0x06, 0, 0, _ALL),
        (0x06, 0, 0, _NOTHING),
    ]
    made: Test = []
    for at, word in enumerate(words):
        made += _is(_WORD, _NETWORK_HEADER + begin + 4 * at, word, 2 * (len(words) - at - 1) + len(rest) - 1)
    return made + rest


def _tcp_flags(family: int) -> Test:
    """Two lines that load them. What such a socket sees begins with the network's header for IPv4, without it for IPv6."""
    if family == socket.AF_INET:
        return [(0xB1, 0, 0, 0), (0x50, 0, 0, 13)]  # behind a header of any length
    return [(0x00, 0, 0, 0), (_BYTE, 0, 0, 13)]


def only_admitted(family: int) -> Test:
    """For a listening TCP socket: of first packets only those that bear the sign; whoever sent another waits, and sends it
    again. All else is answered as any listener does."""
    return [
        (_BYTE, 0, 0, 13),
        (0x54, 0, 0, _SYN | _ACK),
        (0x15, 0, 2, _SYN),
        (_BYTE, 0, 0, _NETWORK_HEADER + _HOPS_AT[family]),
        (0x15, 0, 1, SIGN),
        (0x06, 0, 0, _ALL),
        (0x06, 0, 0, _NOTHING),
    ]


# --- packets


def read(family: int, data: bytes) -> Knock | None:
    """What such a socket has received; None for one that was cut off."""
    packet = data if family == socket.AF_INET else _header6(len(data)) + data
    at = (packet[0] & 0x0F) * 4 if packet else 0
    at = at if family == socket.AF_INET else _HEADER6
    if len(packet) < at + _TCP_BYTES_MIN:
        return None
    client, port, seq = struct.unpack_from("!HHI", packet, at)
    return Knock(family, client, port, seq, packet)


def _header6(size: int) -> bytes:
    address = _LOCALHOST[socket.AF_INET6]
    return struct.pack("!IHBB", 6 << 28, size, socket.IPPROTO_TCP, _HOPS) + address * 2


def admitted(knock: Knock) -> bytes:
    """The packet once more, with the sign. Its checksum has to be computed: on this interface nobody does."""
    packet = bytearray(knock.packet)
    at = (packet[0] & 0x0F) * 4 if knock.family == socket.AF_INET else _HEADER6
    packet[_HOPS_AT[knock.family]] = SIGN
    packet[at + 16 : at + 18] = bytes(2)
    struct.pack_into("!H", packet, at + 16, _checksum(knock.family, bytes(packet[at:])))
    return bytes(packet)


def refusal(knock: Knock) -> bytes:
    """The answer of a port at which nobody listens."""
    head = struct.pack(
        "!HHIIBBHHH", knock.port, knock.client, 0, (knock.seq + 1) & 0xFFFF_FFFF, 0x50, _RST | _ACK, 0, 0, 0
    )
    segment = head[:16] + struct.pack("!H", _checksum(knock.family, head)) + head[18:]
    if knock.family == socket.AF_INET6:
        return _header6(len(segment)) + segment
    # The kernel adds this header's checksum.
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, _HOPS, socket.IPPROTO_TCP, 0)
    return header + _LOCALHOST[socket.AF_INET] * 2 + segment


def _checksum(family: int, segment: bytes) -> int:
    """TCP's, over the segment with a checksum of zero and the addresses."""
    address = _LOCALHOST[family]
    data = address * 2 + struct.pack("!II", len(segment), socket.IPPROTO_TCP) + segment
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
