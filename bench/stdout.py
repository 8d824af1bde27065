# SPDX-License-Identifier: Apache-2.0
"""stdout: 200 MB of a container's output through `kata-fsm run`, against what a bare virtio-serial port moves.

A: a container prints 25 times 8 MB of random bytes; what arrives at the end of our command's standard output is checked
by length and digest. B: the same machine (QEMU's command line, kernel and initrd are the product's) boots into a shell
instead of the agent, which writes as much straight to the agent's port, with `sendfile`, the fastest of the ways that were
tried. C: as B, but through a pipe first, as a container's output has to come: not a goal, but it shows what the port is
without anything of ours. All of them print from a tmpfs of the guest's, so that none pays for reading.

Throughput is that between the first byte's arrival and the last one's, so boot and tear-down are not in it. The reader
does nothing but read into memory; digests are made afterwards.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Callable

from bench.bare import Bare
from bench.kit import BenchError, Kit, say
from bench.report import AT_LEAST, Claim, Report, Series, ratio

RUNS = 5
GOAL = 0.5
BLOCK = 8_000_000  # no multiple of a page or a buffer, so that a piece in the wrong place shows
TIMES = 25
TOTAL = BLOCK * TIMES
_READ = 1 << 20
_STALL_S = 60.0

_SHELL = (
    "/bin/busybox mount -t devtmpfs dev /dev; /bin/busybox mount -t proc proc /proc; "
    "modprobe virtio_pci; modprobe virtio_console; "
    f"dd if=/dev/urandom of=/block bs={BLOCK} count=1 iflag=fullblock 2>/dev/null; "
    "until test -e /dev/vport*p1; do sleep 0.01; done; "
)
_CAT = "cat " + " ".join(["/block"] * TIMES)
_PLAIN = f"{_CAT} > $(echo /dev/vport*p1); sleep 1000"
_PIPED = f"{_CAT} | cat > $(echo /dev/vport*p1); sleep 1000"
_OURS = "cp /block /dev/shm/block; exec " + _CAT.replace("/block", "/dev/shm/block")


class Received:
    """Reads with `read_into` until the end or until `TOTAL` bytes have come."""

    def __init__(self, read_into: Callable[[memoryview], int]) -> None:
        self.buffer = bytearray(TOTAL + 1)
        view = memoryview(self.buffer)
        self.size = self._first_size = 0
        self._first = self._last = 0.0
        while self.size <= TOTAL:
            got = read_into(view[self.size : self.size + _READ])
            if not got:
                break
            self._last = time.monotonic()
            if not self.size:
                self._first, self._first_size = self._last, got
            self.size += got
            if self.size == TOTAL and not self.wait_for_end:
                break

    wait_for_end = True

    @property
    def mb_per_s(self) -> float:
        return (self.size - self._first_size) / (self._last - self._first) / 1e6

    def check(self, block: bytes | None = None) -> None:
        """Raises BenchError unless it is `block`, or whatever came first, again and again."""
        if self.size != TOTAL:
            raise BenchError(f"{self.size} bytes arrived, not {TOTAL}")
        data = memoryview(self.buffer)[:TOTAL]
        wanted = hashlib.sha256((block or bytes(data[:BLOCK])) * TIMES).hexdigest()
        if hashlib.sha256(data).hexdigest() != wanted:
            raise BenchError("what arrived is not what was sent")


class ReceivedFromPort(Received):
    """The port does not end, so its reader stops by count."""

    wait_for_end = False


def ours(kit: Kit, bundle: str, block: bytes) -> float:
    """MB/s through `kata-fsm run`, everything checked."""
    name = kit.new_id("out")
    with subprocess.Popen(
        kit.argv("run", "--bundle", bundle, name), env=kit.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as command:
        assert command.stdout is not None
        fd = command.stdout.fileno()
        received = Received(lambda view: os.readv(fd, [view]))
        code = command.wait()
    if code:
        raise BenchError(f"`kata-fsm run` exited {code}")
    received.check(block)
    return received.mb_per_s


def bare(writer: str) -> float:
    """MB/s through the port alone, everything checked."""
    with Bare(f'rdinit=/bin/sh -- -c "{_SHELL}{writer}"') as machine:
        port = machine.connect()
        port.settimeout(_STALL_S)
        try:
            received = ReceivedFromPort(port.recv_into)
        except TimeoutError as error:
            raise BenchError(f"the port stalled; the console's end:\n{machine.console()}") from error
        received.check()
        return received.mb_per_s


def run(kit: Kit, runs: int) -> Report:
    """The three in turn."""
    bundle = kit.bundle("out", "sh", "-c", _OURS)
    block = os.urandom(BLOCK)
    (bundle / "rootfs" / "block").write_bytes(block)
    through, plain, piped = (
        Series("stdout of kata-fsm run", "MB/s", []),
        Series("bare virtio-serial port", "MB/s", []),
        Series("bare port, through a pipe first", "MB/s", []),
    )
    for number in range(1, runs + 1):
        through.samples.append(ours(kit, str(bundle), block))
        plain.samples.append(bare(_PLAIN))
        piped.samples.append(bare(_PIPED))
        rates = ", ".join(f"{each.samples[-1]:.0f}" for each in (through, plain, piped))
        say(f"stdout {number}/{runs}: {rates} MB/s")
    goal = Claim("stdout / bare port", AT_LEAST, GOAL, ratio(through, plain))
    notes = [
        f"{runs} times {TOTAL} bytes arrived whole (length and SHA-256)",
        f"against the port behind a pipe: {ratio(through, piped):.2f} times",
    ]
    return Report("stdout", [through, plain, piped], [goal], notes)
