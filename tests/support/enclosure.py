# SPDX-License-Identifier: Apache-2.0
"""A host for an engine that changes the network: bridges, firewall rules and forwarding, seen by nobody else."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import TypeVar

from kata_fsm.effects import netns

HERE_V4, OUTSIDE_V4 = "198.51.100.1", "198.51.100.2"
HERE_V6, OUTSIDE_V6 = "2001:db8:51::1", "2001:db8:51::2"

T = TypeVar("T")


def _hold(options: list[str], script: str) -> subprocess.Popen[bytes]:
    """A process in namespaces of its own, prepared by `script`; it lives as long as its stdin, so never longer than we."""
    argv = ["unshare", *options, "sh", "-e", "-c", f"{script}; echo up; exec cat"]
    holder = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    if holder.stdout.readline() != b"up\n":
        raise RuntimeError(f"`{script}` failed in namespaces of its own")
    return holder


class Enclosure:
    """Network and mount namespaces of their own: an empty /run, `lo`, and a wire to another host, `outside`.

    The file system is the host's otherwise, but for /etc/resolv.conf, which names that other host. The wire carries IPv4
    and IPv6: `HERE_*` are the enclosure's addresses on it.
    """

    def __init__(self) -> None:
        lo = "ip link set lo up"
        self._outside = _hold(["--net"], lo)
        wire = [
            f"ip link add wire type veth peer name wire netns {self._outside.pid}",
            f"ip addr add {HERE_V4}/24 dev wire",
            f"ip addr add {HERE_V6}/64 dev wire nodad",
            "ip link set wire up",
        ]
        files = [
            "mount -t tmpfs tmpfs /run",
            "mkdir /run/lock",
            f"echo nameserver {OUTSIDE_V4} >/run/resolv.conf",
            "mount --bind /run/resolv.conf /etc/resolv.conf",
        ]
        self._holder = _hold(["--net", "--mount", "--propagation=private"], "; ".join([*files, lo, *wire]))
        other = f"ip addr add {OUTSIDE_V4}/24 dev wire; ip addr add {OUTSIDE_V6}/64 dev wire nodad; ip link set wire up"
        subprocess.run(["nsenter", f"--net={self.outside}", "sh", "-e", "-c", other], check=True)

    @property
    def pid(self) -> int:
        """Of a process that is in there."""
        return self._holder.pid

    @property
    def prefix(self) -> list[str]:
        """Words that put a command in there."""
        return ["nsenter", f"--target={self.pid}", "--mount", "--net", "--"]

    @property
    def here(self) -> str:
        """The network namespace of the enclosure."""
        return f"/proc/{self.pid}/ns/net"

    @property
    def outside(self) -> str:
        """That of the other host."""
        return f"/proc/{self._outside.pid}/ns/net"

    @staticmethod
    def within(network: str, work: Callable[[], T]) -> T:
        """What `work` answers in a network namespace: sockets that it makes are of that network."""
        return netns.inside(network, work)

    def close(self) -> None:
        """Let the namespaces go."""
        for holder in (self._holder, self._outside):
            if holder.stdin is not None:
                holder.stdin.close()
            holder.wait(30)
            if holder.stdout is not None:
                holder.stdout.close()
