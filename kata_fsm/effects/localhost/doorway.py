# SPDX-License-Identifier: Apache-2.0
"""Whoever connects to `localhost` in the pod's network namespace on the host, as port-forward of the CRI does, means a
process of the pod. Those are in the guest, whose `localhost` is another; here their connections are taken.

Nobody may be told that a port is open before it is known to be. So a connection's first packet is held: a BPF program gives
every lookup for 127.0.0.1 and ::1 to a listener of ours, whose filter drops first packets without our sign, while a raw
socket shows them to us. Whoever knocked is then *admitted*, by the same packet with the sign, or *refused* by a reset, and
gets from connect(2) what the guest would have answered; a port at which a process of the host listens in the namespace is
*left* to it. What is neither is sent again by whoever sent it, a second later.

All of this is descriptors of this process: it ends with them, and changes nothing that another could see in the namespace.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

from kata_fsm.effects import netns
from kata_fsm.effects.localhost import bpf, packets
from kata_fsm.effects.localhost.packets import Knock

FAMILIES = (socket.AF_INET, socket.AF_INET6)
_ADDRESSES: dict[int, str] = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
# IP_FREEBIND, IPV6_FREEBIND: the address is there when `lo` is up, which it may become later.
_FREEBIND: dict[int, tuple[int, int]] = {
    socket.AF_INET: (socket.IPPROTO_IP, 15),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 78),
}
_BACKLOG = 128
_PORTS_LEFT_MAX = 1024
_PACKET_BYTES = 2048
_LISTENING = "0A"  # /proc/net/tcp
_ANY_OR_LOCAL = {"00000000", "0100007F", "0" * 32, "0" * 24 + "01000000"}

# struct bpf_sk_lookup of linux/bpf.h
_FAMILY, _PROTOCOL, _REMOTE4, _REMOTE6, _LOCAL4, _LOCAL6, _LOCAL_PORT = 8, 12, 16, 20, 40, 44, 60
_WORD4 = int.from_bytes(socket.inet_aton("127.0.0.1"), "little")
_WORDS6 = (0, 0, 0, int.from_bytes(b"\0\0\0\1", "little"))


class Doorway:
    """Standing in the namespace at `path`. Blocks. Raises OSError; then nothing is left. `close` ends it."""

    def __init__(self, path: str) -> None:
        self.listeners: dict[int, socket.socket] = {}  # by family; IPv6 may be switched off
        self.taps: dict[int, socket.socket] = {}
        self._raws: dict[int, socket.socket] = {}
        self._tables: list[int] = []
        with ExitStack() as undo:
            netns.inside(path, lambda: self._open(undo))
            self._left = self._attach(path, undo)
            self._kept = undo.pop_all()

    def _open(self, undo: ExitStack) -> None:
        """What has to be made by a thread that is inside."""
        for family in FAMILIES:
            try:
                listener = undo.enter_context(_socket(family, socket.SOCK_STREAM, 0))
            except OSError as error:
                if family == socket.AF_INET6 and error.errno == errno.EAFNOSUPPORT:
                    continue
                raise
            listener.setsockopt(*_FREEBIND[family], 1)
            listener.bind((_ADDRESSES[family], 0))
            packets.attach(listener, packets.only_admitted(family))
            listener.listen(_BACKLOG)
            # A packet socket would do as well, and make the kernel wait 10 ms when it is closed, our sudden death included.
            tap = undo.enter_context(_socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP))
            packets.attach(tap, packets.only_knocks(family))
            tap.setsockopt(*_FREEBIND[family], 1)
            tap.bind((_ADDRESSES[family], 0))
            self.listeners[family], self.taps[family] = listener, tap
            self._raws[family] = undo.enter_context(_socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW))
            name = "tcp" if family == socket.AF_INET else "tcp6"
            self._tables.append(os.open(f"/proc/thread-self/net/{name}", os.O_RDONLY | os.O_CLOEXEC))
            undo.callback(os.close, self._tables[-1])

    def _attach(self, path: str, undo: ExitStack) -> int:
        """Put the program to work; the map of the ports that are left."""
        held: list[int] = []
        try:
            left = bpf.make_map(bpf.HASH, _PORTS_LEFT_MAX)
            undo.callback(os.close, left)
            held.append(bpf.make_map(bpf.SOCKMAP, len(FAMILIES)))
            for index, family in enumerate(FAMILIES):
                if family in self.listeners:
                    bpf.put(held[0], index, self.listeners[family].fileno())
            held.append(bpf.load(_program(left, held[0])))
            held.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            undo.callback(os.close, bpf.attach(held[1], held[2]))  # which holds the program, and that the maps
        finally:
            for fd in held:
                os.close(fd)
        return left

    def close(self) -> None:
        """Let go of everything: from here on nobody listens."""
        self._kept.close()

    def knocks(self, family: int) -> Iterator[Knock]:
        """Those that have come and were not taken yet."""
        while True:
            try:
                packet = self.taps[family].recv(_PACKET_BYTES)
            except BlockingIOError:
                return
            knock = packets.read(family, packet)
            if knock is not None:
                yield knock

    def is_of_host(self, port: int) -> bool:
        """Whether a process of the host listens in the namespace, at `localhost` or at every address."""
        if port in [listener.getsockname()[1] for listener in self.listeners.values()]:
            return False
        return any(port in _listening(table) for table in self._tables)

    def admit(self, knock: Knock) -> None:
        """Have our listener accept it. Raises OSError."""
        self._send(knock.family, packets.admitted(knock))

    def refuse(self, knock: Knock) -> None:
        """As a port at which nobody listens. Raises OSError."""
        self._send(knock.family, packets.refusal(knock))

    def leave(self, knock: Knock) -> None:
        """Let the host's own listener have it, and everybody who comes to its port until `take_back`. Raises OSError."""
        bpf.put(self._left, knock.port, 1)
        self._send(knock.family, packets.admitted(knock))

    def take_back(self, port: int) -> None:
        """Look again at whoever comes to this port. Raises OSError."""
        bpf.drop(self._left, port)

    def _send(self, family: int, packet: bytes) -> None:
        self._raws[family].sendto(packet, (_ADDRESSES[family], 0))


def _socket(family: int, kind: int, protocol: int) -> socket.socket:
    return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)


def _listening(table: int) -> set[int]:
    """The ports of a /proc/net/tcp, or tcp6, at which somebody listens who could be meant."""
    os.lseek(table, 0, os.SEEK_SET)
    text = b"".join(iter(lambda: os.read(table, 1 << 16), b"")).decode("ascii")
    rows = [line.split() for line in text.splitlines()[1:]]
    local = (row[1].rpartition(":") for row in rows if row[3] == _LISTENING)
    return {int(port, 16) for address, _, port in local if address in _ANY_OR_LOCAL}


def _program(left: int, listeners: int) -> bytes:
    """To each lookup from `localhost` to `localhost`, if its port is not one of `left`: the listener of its family."""
    context, kept, word, stack = 6, 7, 2, 10

    def addresses(*offsets: tuple[int, int]) -> list[bpf.Line | str]:
        pairs = ((bpf.load_word(word, context, at), bpf.unless(word, value, "out")) for at, value in offsets)
        return [line for pair in pairs for line in pair]

    return bpf.assemble(
        [
            bpf.copy(context, 1),
            *addresses((_PROTOCOL, socket.IPPROTO_TCP)),
            bpf.load_word(word, context, _FAMILY),
            bpf.unless(word, socket.AF_INET, "not IPv4"),
            *addresses((_LOCAL4, _WORD4), (_REMOTE4, _WORD4)),
            bpf.number(kept, FAMILIES.index(socket.AF_INET)),
            bpf.go("look"),
            "not IPv4",
            bpf.unless(word, socket.AF_INET6, "out"),
            *addresses(*((start + 4 * at, value) for start in (_LOCAL6, _REMOTE6) for at, value in enumerate(_WORDS6))),
            bpf.number(kept, FAMILIES.index(socket.AF_INET6)),
            "look",
            bpf.load_word(word, context, _LOCAL_PORT),
            bpf.store_word(stack, -4, word),
            bpf.the_map(1, left),
            bpf.copy(2, stack),
            bpf.add(2, -4),
            bpf.call(bpf.MAP_LOOKUP_ELEM),
            bpf.unless_null(0, "out"),
            bpf.store_word(stack, -4, kept),
            bpf.the_map(1, listeners),
            bpf.copy(2, stack),
            bpf.add(2, -4),
            bpf.call(bpf.MAP_LOOKUP_ELEM),
            bpf.if_null(0, "out"),
            bpf.copy(kept, 0),
            bpf.copy(1, context),
            bpf.copy(2, 0),
            bpf.number(3, 0),
            bpf.call(bpf.SK_ASSIGN),
            bpf.copy(1, kept),
            bpf.call(bpf.SK_RELEASE),
            "out",
            bpf.number(0, 1),  # SK_PASS
            bpf.leave(),
        ]
    )
