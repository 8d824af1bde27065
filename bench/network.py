# SPDX-License-Identifier: Apache-2.0
"""network: TCP and ping of a pod over `tcfilter`, against the same through a bare veth pair on the host.

One namespace holds the far end of a veth pair and a peer (a few lines of Python); the near end is `eth0` of the pod's
namespace. A: a container in the pod's VM. B: the same busybox on the host, in a namespace behind a pair of the same sort.
Out: busybox's `httpd` serves a file of `TOTAL` bytes from memory (by sendfile, so that the program is not what is measured)
and the peer counts them; throughput is that between the first byte's arrival and the last one's. In: `nc` takes as much to
/dev/null, and the peer's clock counts from its first byte until the other side hangs up in order. Ping is busybox's, the
median of `PINGS`, after one that resolves neighbours.
"""

from __future__ import annotations

import re
import secrets
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable

from bench.kit import LIMIT_S, BenchError, Kit, say
from bench.report import Report, Series, ratio
from kata_fsm.effects import netns
from kata_fsm.testing.bundle import BUSYBOX, config

RUNS = 5
TOTAL = 64 << 20
PINGS = 20
_PEER, _POD = "10.77.0.1", "10.77.0.2"
_PORT = 9000
_HEADERS_MAX = 1024
_SERVE = f"mkdir /dev/shm/srv; head -c {TOTAL} /dev/zero > /dev/shm/srv/file; httpd -p {_PORT} -h /dev/shm/srv"


class Pair:
    """Two namespaces joined by a veth pair: `near` is the pod's, or stands in for it."""

    def __init__(self) -> None:
        name = "kfb" + secrets.token_hex(3)
        self.near, self.far = f"{name}n", f"{name}f"
        for each in (self.near, self.far):
            _ip("netns", "add", each)
        _ip("-n", self.near, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", self.far)
        for each, address in ((self.near, _POD), (self.far, _PEER)):
            _ip("-n", each, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", each, "link", "set", "dev", "eth0", "up")

    def close(self) -> None:
        for each in (self.near, self.far):
            _ip("netns", "del", each)

    def listener(self) -> socket.socket:
        """A socket of the far side that the near side's `nc` connects to."""

        def made() -> socket.socket:
            listening = socket.socket()
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((_PEER, _PORT))
            listening.listen(1)
            listening.settimeout(LIMIT_S)
            return listening

        return netns.inside(f"/run/netns/{self.far}", made)


def _ip(*argv: str) -> None:
    subprocess.run(["ip", *argv], check=True)


Shell = Callable[[str], str]
"""Runs a line of shell on the near side and answers what it printed."""


def sent(pair: Pair) -> float:
    """MB/s from the near side, whose server runs, to the far one."""

    def connected() -> socket.socket:
        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                return socket.create_connection((_POD, _PORT), timeout=LIMIT_S)
            except ConnectionRefusedError:  # the server is just starting
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    buffer, size = bytearray(1 << 20), 0
    sock: socket.socket = netns.inside(f"/run/netns/{pair.far}", connected)
    with sock:
        sock.sendall(b"GET /file HTTP/1.0\r\n\r\n")
        first = sock.recv_into(buffer)
        started = time.monotonic()
        while got := sock.recv_into(buffer):
            size += got
        ended = time.monotonic()
    if not TOTAL <= first + size <= TOTAL + _HEADERS_MAX:
        raise BenchError(f"{first + size} bytes arrived, not {TOTAL} and some headers")
    return size / (ended - started) / 1e6


def received(pair: Pair, shell: Shell) -> float:
    """MB/s from the far side to the near one."""
    with pair.listener() as listener:
        rates: list[float] = []

        def send() -> None:
            accepted, _ = listener.accept()
            accepted.settimeout(LIMIT_S)
            block = bytes(1 << 20)
            with accepted:
                started = time.monotonic()
                for _ in range(TOTAL >> 20):
                    accepted.sendall(block)
                accepted.shutdown(socket.SHUT_WR)
                if accepted.recv(1) == b"":  # one that had not read everything would reset the connection
                    rates.append(TOTAL / (time.monotonic() - started) / 1e6)

        sender = threading.Thread(target=send)
        sender.start()
        shell(f"nc {_PEER} {_PORT} > /dev/null")
        sender.join()
    if not rates:
        raise BenchError("the receiver did not take everything")
    return rates[0]


def pinged(shell: Shell) -> float:
    """Milliseconds, the median."""
    shell(f"ping -c 1 {_PEER}")
    found = [float(word) for word in re.findall(r"time=([0-9.]+) ms", shell(f"ping -i 0.1 -c {PINGS} {_PEER}"))]
    if len(found) != PINGS:
        raise BenchError(f"{len(found)} of {PINGS} pings came back")
    return statistics.median(found)


def _pod(kit: Kit, pair: Pair) -> tuple[str, Shell]:
    linux = config(["sleep", "100000"])["linux"]
    for each in linux["namespaces"]:
        if each["type"] == "network":
            each["path"] = f"/run/netns/{pair.near}"
    name = kit.new_id("net")
    bundle = kit.bundle(name, "sleep", "100000", linux=linux)
    kit.verb("create", "--bundle", str(bundle), name)
    kit.verb("start", name)
    return name, lambda line: kit.verb("exec", name, "sh", "-c", line).out.decode()


def _bare(pair: Pair) -> Shell:
    def shell(line: str) -> str:
        # The applets of the very same busybox, as the container has them.
        argv = ["nsenter", f"--net=/run/netns/{pair.near}", BUSYBOX, "sh", "-c", line]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        if done.returncode:
            raise BenchError(f"`{line}`: {done.stderr}")
        return done.stdout

    return shell


def _served(kit: Kit, pair: Pair) -> subprocess.Popen[bytes]:
    """The bare side's web server."""
    directory = kit.base / "srv"
    directory.mkdir()
    (directory / "file").write_bytes(bytes(TOTAL))
    argv = ["nsenter", f"--net=/run/netns/{pair.near}", BUSYBOX, "httpd", "-f", "-p", str(_PORT), "-h", str(directory)]
    return subprocess.Popen(argv)


def run(kit: Kit, runs: int) -> Report:
    """Pod and bare pair in turn."""
    series = [
        Series(f"{what}, {where}", unit, [])
        for what, unit in (("TCP out", "MB/s"), ("TCP in", "MB/s"), ("ping", "ms"))
        for where in ("pod over tcfilter", "bare veth")
    ]
    one, other = Pair(), Pair()
    server = None
    try:
        name, inside = _pod(kit, one)
        outside = _bare(other)
        inside(_SERVE)
        server = _served(kit, other)
        for number in range(1, runs + 1):
            found = [
                *(sent(one), sent(other)),
                *(received(one, inside), received(other, outside)),
                *(pinged(inside), pinged(outside)),
            ]
            for each, value in zip(series, found, strict=True):
                each.samples.append(value)
            say(f"network {number}/{runs}: " + ", ".join(f"{value:.3g}" for value in found))
        kit.delete(name)
    finally:
        if server is not None:
            server.kill()
            server.wait()
        one.close()
        other.close()
    notes = [f"{TOTAL} bytes each time, every one of them"]
    for a, b in zip(series[::2], series[1::2], strict=True):
        notes.append(f"{a.name.partition(',')[0]}: {ratio(a, b):.3g} times the bare pair's; no goal is set")
    return Report("network", series, [], notes)
