# SPDX-License-Identifier: Apache-2.0
"""Goal: podman's bridge networks reach into the virtual machine: ports, names, and bytes between two of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import wire
from tests.support.enclosure import HERE_V4, OUTSIDE_V4
from tests.support.engines import Podman
from tests.support.kata import wait_until

IMAGE = "localhost/bb:latest"


def feature(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.feature("podman", *names)


@pytest.fixture
def served(podman: Podman) -> Iterator[str]:
    """A network with IPv4 and IPv6, and on it the servers of `wire`, with ports published; the digest of their data."""
    podman("network", "create", "--ipv6", "--subnet=10.91.0.0/24", "--subnet=fd00:91::/64", "two")
    ports = (f"-p=8080:{wire.HTTP}", f"-p=8081:{wire.DIGEST}", f"-p=127.0.0.1:8082:{wire.HTTP}")
    podman("run", "-d", "--name=server", "--network=two", *ports, IMAGE, "sh", "-c", wire.SERVE)
    yield wait_until(lambda: podman("logs", "server").stdout, "the servers are up").split()[0]
    podman("rm", "-f", "-t=0", "server")


@feature("-p, --publish", "-p: from another host", "-p: IPv6", "-p with an address", "port")
def test_published_ports(podman: Podman, served: str) -> None:
    assert "80/tcp -> 0.0.0.0:8080" in podman("port", "server").stdout
    assert podman.enclosure is not None
    wire.check_published(podman.enclosure, served, HERE_V4, "127.0.0.1")


@feature(
    "network create",
    "--network NAME: two containers",
    "--network NAME: IPv6",
    "--network NAME: by name",
    "inspect: addresses",
)
def test_two_machines_on_one_network(podman: Podman, served: str) -> None:
    addresses = podman.inspect("server")["NetworkSettings"]["Networks"]["two"]
    v4, v6 = addresses["IPAddress"], addresses["GlobalIPv6Address"]
    script = (
        f"for host in server {v4} '[{v6}]'; do wget -q -O - http://$host:{wire.HTTP}/data | sha256sum; done;"
        f"head -c {wire.SIZE} /dev/urandom >/data; sha256sum </data;"
        f"for host in server {v4} {v6}; do nc $host {wire.DIGEST} </data; done"
    )
    done = podman("run", "--rm", "--network=two", IMAGE, "sh", "-c", script)
    *fetched, sent, by_name, by_v4, by_v6 = [line.split()[0] for line in done.stdout.splitlines()]
    assert fetched == [served] * 3
    assert (by_name, by_v4, by_v6) == (sent, sent, sent)
    podman.kata.process("qemu-system")  # the server's; the client had one of its own


@feature("--network bridge", "--dns: answers", "reaching other hosts")
def test_names_of_the_world_outside(podman: Podman) -> None:
    network = podman.enclosure
    assert network is not None
    with wire.name_server(network.outside, OUTSIDE_V4, "192.0.2.7") as asked:
        done = podman("run", "--rm", f"--dns={OUTSIDE_V4}", IMAGE, "nslookup", "far.example")
    assert "192.0.2.7" in done.stdout
    assert "far.example" in asked
