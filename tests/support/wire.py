# SPDX-License-Identifier: Apache-2.0
"""What is said over a network in tests: two servers of busybox in a container, and their clients on the host."""

from __future__ import annotations

import hashlib
import http.client
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kata_fsm.effects import netns
from tests.support.enclosure import HERE_V4, HERE_V6, Enclosure

SIZE = 3_000_000
LIMIT_S = 60.0
HTTP, DIGEST = 80, 81  # the servers' ports

SERVE = (
    f"mkdir /srv; head -c {SIZE} /dev/urandom >/srv/data;"
    f"httpd -p '[::]:{HTTP}' -h /srv; nc -ll -p {DIGEST} -e sha256sum &"
    f'for port in {HTTP} {DIGEST}; do until netstat -tln | grep -q ":$port "; do sleep 0.1; done; done;'
    "sha256sum </srv/data; wait"
)
"""A script that says the digest of what it gives away on `HTTP`, and answers on `DIGEST` with the digest of what it is sent.
Both take IPv4 and IPv6, and listen before it says anything."""


def digest_fetched(address: str, port: int) -> str:
    """Fetch the data; their digest."""
    client = http.client.HTTPConnection(address, port, timeout=LIMIT_S)
    try:
        client.request("GET", "/data")
        body = client.getresponse().read()
    finally:
        client.close()
    assert len(body) == SIZE
    return hashlib.sha256(body).hexdigest()


def digest_answered(address: str, port: int, data: bytes) -> str:
    """Send the data; the digest of what came in, as the other side says."""
    with socket.create_connection((address, port), timeout=LIMIT_S) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while part := client.recv(4096):
            answer += part
    return answer.decode().split()[0]


def check_published(network: Enclosure, served: str, *own: str) -> None:
    """The servers answer on ports 8080 and 8081 of the host: from itself at its `own` addresses, and from the other one by
    IPv4 and IPv6. On port 8082 of 127.0.0.1 the host alone is answered. `served`: the digest of what they give away."""
    data = random.Random(5).randbytes(SIZE)
    taken = hashlib.sha256(data).hexdigest()
    froms = [(network.here, address) for address in own] + [(network.outside, at) for at in (HERE_V4, HERE_V6)]
    for place, address in froms:
        assert network.within(place, lambda at=address: digest_fetched(at, 8080)) == served, (place, address)
        assert network.within(place, lambda at=address: digest_answered(at, 8081, data)) == taken, (place, address)
    assert network.within(network.here, lambda: digest_fetched("127.0.0.1", 8082)) == served
    with pytest.raises(OSError, match=r"refused|timed out"):
        network.within(network.outside, lambda: digest_fetched(HERE_V4, 8082))


@contextmanager
def name_server(network: str, address: str, answer: str) -> Iterator[list[str]]:
    """A name server at `address` in the network namespace, who answers every question for an IPv4 address with `answer`.

    Yields the names that it was asked for. RFC 1035, section 4: header, question, and one record that points to the name.
    """
    server = netns.inside(network, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    server.bind((address, 53))
    asked: list[str] = []

    def serve() -> None:
        while True:
            question, client = server.recvfrom(512)
            if not question:
                return
            end = question.index(b"\0", 12)
            asked.append(_name(question[12:end]))
            kind = struct.unpack("!H", question[end + 1 : end + 3])[0]
            records = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + socket.inet_aton(answer) if kind == 1 else b""
            head = question[:2] + b"\x81\x80" + struct.pack("!HHHH", 1, bool(records), 0, 0)
            server.sendto(head + question[12 : end + 5] + records, client)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield asked
    finally:
        server.sendto(b"", server.getsockname())
        thread.join()
        server.close()


def _name(labels: bytes) -> str:
    parts = []
    while labels:
        parts.append(labels[1 : 1 + labels[0]].decode())
        labels = labels[1 + labels[0] :]
    return ".".join(parts)
