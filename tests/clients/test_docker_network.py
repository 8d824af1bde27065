# SPDX-License-Identifier: Apache-2.0
"""Goal: what Docker joins to a container from its prestart hook is the virtual machine's network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import wire
from tests.support.docker import IMAGE, Docker
from tests.support.enclosure import OUTSIDE_V4
from tests.support.kata import wait_until


def feature(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.feature("docker", *names)


@pytest.fixture
def served(docker: Docker) -> Iterator[str]:
    """A network with IPv4 and IPv6, and on it the servers of `wire`, with ports published; the digest of their data."""
    docker("network", "create", "--ipv6", "--subnet=10.93.0.0/24", "--subnet=fd00:93::/64", "two")
    ports = (f"-p=8080:{wire.HTTP}", f"-p=8081:{wire.DIGEST}", f"-p=127.0.0.1:8082:{wire.HTTP}")
    docker(
        "run", "-d", "--name=server", "--network=two", "--network-alias=store", *ports, IMAGE, "sh", "-c", wire.SERVE
    )
    yield wait_until(lambda: docker("logs", "server").stdout, "the servers are up").split()[0]
    docker("rm", "-f", "server")


@feature("-p, --publish", "-p: from another host", "-p: IPv6", "-p with an address", "port")
def test_published_ports(docker: Docker, served: str) -> None:
    assert "80/tcp -> 0.0.0.0:8080" in docker("port", "server").stdout
    assert docker.enclosure is not None
    wire.check_published(docker.enclosure, served, "127.0.0.1", "::1")


@feature(
    "network connect: a running container, with `enable_netmon`", "network disconnect: likewise, with `enable_netmon`"
)
def test_a_network_is_connected_while_the_container_runs(docker: Docker, served: str) -> None:
    docker("network", "create", "--subnet=10.94.0.0/24", "late")
    docker("run", "-d", "--name=client", "--runtime=watching", "--network=late", IMAGE, "sleep", "1000")
    docker("network", "connect", "two", "client")
    address = docker.inspect("client")["NetworkSettings"]["Networks"]["two"]["IPAddress"]

    def addresses() -> str:
        return docker("exec", "client", "ip", "-4", "addr").stdout

    wait_until(lambda: address in addresses(), "the guest has the second interface")
    fetch = f"wget -q -O - http://server:{wire.HTTP}/data | sha256sum"
    assert docker("exec", "client", "sh", "-c", fetch).stdout.split()[0] == served
    docker("network", "disconnect", "two", "client")
    wait_until(lambda: address not in addresses(), "the guest has it no more")
    docker("rm", "-f", "client")
    docker("network", "rm", "late")


@feature("network create", "--network NAME: two containers", "--network NAME: IPv6", "--network NAME: by name")
def test_two_machines_on_one_network(docker: Docker, served: str) -> None:
    """As `docker compose` has them: the client knows the server's name, its alias, and its addresses."""
    addresses = docker.inspect("server")["NetworkSettings"]["Networks"]["two"]
    v4, v6 = addresses["IPAddress"], addresses["GlobalIPv6Address"]
    script = (
        f"for host in server store {v4} '[{v6}]'; do wget -q -O - http://$host:{wire.HTTP}/data | sha256sum; done;"
        f"head -c {wire.SIZE} /dev/urandom >/data; sha256sum </data;"
        f"for host in server {v4} {v6}; do nc $host {wire.DIGEST} </data; done;"
        "nslookup far.example"
    )
    network = docker.enclosure
    assert network is not None
    with wire.name_server(network.outside, OUTSIDE_V4, "192.0.2.7") as asked:
        done = docker("run", "--rm", "--network=two", IMAGE, "sh", "-c", script, check=False)
    found = [line.split()[0] for line in done.stdout.splitlines()[:8]]
    assert found[:4] == [served] * 4
    assert found[5:] == [found[4]] * 3
    assert "192.0.2.7" in done.stdout
    assert "far.example" in asked


@feature("--network bridge", "--dns: answers", "reaching other hosts", "--add-host", "--hostname", "/etc/hosts")
def test_the_world_outside(docker: Docker) -> None:
    network = docker.enclosure
    assert network is not None
    script = "nslookup far.example; hostname; grep peer /etc/hosts"
    options = ("--rm", f"--dns={OUTSIDE_V4}", "--hostname=box", "--add-host=peer:192.0.2.9")
    with wire.name_server(network.outside, OUTSIDE_V4, "192.0.2.7") as asked:
        done = docker("run", *options, IMAGE, "sh", "-c", script)
    assert "192.0.2.7" in done.stdout
    assert "far.example" in asked
    assert done.stdout.splitlines()[-2] == "box"
    assert done.stdout.splitlines()[-1].split() == ["192.0.2.9", "peer"]
