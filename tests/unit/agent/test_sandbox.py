# SPDX-License-Identifier: Apache-2.0
"""The sandbox's calls: storages, host name, files, network. The agent under test has namespaces of its own."""

import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kata_wire import envelope
from tests.support.agent_process import AgentProcess, CallError, Client, container

REGULAR, DIRECTORY, LINK = 0o100000, 0o040000, 0o120000


def status_of(client: Client, method: str, request: dict[str, Any]) -> int:
    with pytest.raises(CallError) as caught:
        client.call(method, request)
    return caught.value.code


def mounts(agent: AgentProcess) -> str:
    return Path(f"/proc/{agent.process.pid}/mountinfo").read_text()


def inside(agent: AgentProcess, *command: str) -> str:
    """The output of a command in the agent's namespaces."""
    enter = ["nsenter", "-t", str(agent.process.pid), "-u", "-n", "-m"]
    return subprocess.run([*enter, *command], capture_output=True, text=True, check=True).stdout


def test_a_sandbox_gets_its_name_its_storages_and_its_resolver(agent: AgentProcess) -> None:
    base = agent.base / "mounts"
    request = {
        "hostname": "pod-1",
        "dns": ["192.0.2.1", "search example.org"],
        "sandbox_id": "s",
        "storages": [
            {
                "driver": "ephemeral",
                "source": "shm",
                "fstype": "tmpfs",
                "options": ["size=64k"],
                "mount_point": f"{base}/a b",
            },
            {"driver": "local", "mount_point": f"{base}/local"},
        ],
    }
    agent.client.call("CreateSandbox", request)
    agent.client.call("CreateSandbox", request)
    assert mounts(agent).count("mounts/a\\040b") == 1, "mounted once, however often it is asked for"
    assert (base / "local").is_dir()
    assert inside(agent, "uname", "-n") == "pod-1\n"
    assert socket.gethostname() != "pod-1"
    assert (agent.base / "resolv.conf").read_text() == "nameserver 192.0.2.1\nsearch example.org\n"
    agent.client.call("CreateContainer", container("c", "/bin/sleep", "60"))
    agent.client.call("DestroySandbox")
    assert agent.client.call("QueryState").get("containers", []) == []
    agent.client.call("DestroySandbox")


@pytest.mark.parametrize(
    ("storage", "code"),
    [
        ({"driver": "nope", "mount_point": "/x"}, envelope.INVALID_ARGUMENT),
        ({"driver": "ephemeral", "mount_point": "x"}, envelope.INVALID_ARGUMENT),
        ({"driver": "ephemeral", "mount_point": "/x/../y"}, envelope.INVALID_ARGUMENT),
        ({"driver": "ephemeral", "fstype": "nosuchfs", "mount_point": "BASE/x"}, envelope.INTERNAL),
    ],
)
def test_a_storage_that_cannot_be(agent: AgentProcess, storage: dict[str, Any], code: int) -> None:
    good = {"driver": "ephemeral", "mount_point": f"{agent.base}/good"}
    bad = {name: value.replace("BASE", str(agent.base)) for name, value in storage.items()}
    assert status_of(agent.client, "CreateSandbox", {"storages": [good, bad]}) == code
    assert "/good" not in mounts(agent), "what came before it is undone"


def test_a_storage_of_a_container_goes_with_it(agent: AgentProcess) -> None:
    point = f"{agent.base}/volume"
    request = container("c", "/bin/sleep", "60") | {"storages": [{"driver": "ephemeral", "mount_point": point}]}
    agent.client.call("CreateContainer", request)
    assert point in mounts(agent)
    agent.client.call("RemoveContainer", {"container_id": "c"})
    assert point not in mounts(agent)
    assert not Path(point).exists()


def test_settings_of_the_network_are_the_machine_s(agent: AgentProcess) -> None:
    request = container("c", "/bin/sleep", "60")
    raw = request["OCI"]["raw_json"]
    request["OCI"]["raw_json"] = raw.replace(
        b'"namespaces"', b'"sysctl": {"net.ipv4.ip_default_ttl": "77"}, "namespaces"'
    )
    agent.client.call("CreateContainer", request)
    assert inside(agent, "cat", "/proc/sys/net/ipv4/ip_default_ttl") == "77\n"


def test_a_file_comes_in_pieces_and_gets_its_name_when_it_is_whole(agent: AgentProcess) -> None:
    target = agent.base / "shared/dir/file"
    piece = {"path": str(target), "file_size": 6, "file_mode": REGULAR | 0o751, "dir_mode": DIRECTORY | 0o700}
    agent.client.call("CopyFile", {**piece, "data": b"abc"})
    assert not target.exists()
    agent.client.call("CopyFile", {**piece, "data": b"abc"})
    agent.client.call("CopyFile", {**piece, "offset": 3, "data": b"def"})
    assert target.read_bytes() == b"abcdef"
    assert target.stat().st_mode & 0o7777 == 0o751
    assert target.parent.stat().st_mode & 0o7777 == 0o700
    assert [p.name for p in target.parent.iterdir()] == ["file"]
    assert status_of(agent.client, "CopyFile", {**piece, "offset": 4, "data": b"def"}) == envelope.INVALID_ARGUMENT


def test_directories_and_links(agent: AgentProcess) -> None:
    base = f"{agent.base}/shared"
    for _ in range(2):
        agent.client.call("CopyFile", {"path": f"{base}/d", "file_mode": DIRECTORY | 0o711})
        agent.client.call("CopyFile", {"path": f"{base}/l", "file_mode": LINK | 0o777, "data": b"/etc"})
    assert Path(base, "d").stat().st_mode & 0o7777 == 0o711
    assert Path(base, "l").readlink() == Path("/etc")


@pytest.mark.parametrize("path", ["/etc/x", "BASE/../x", "BASE/./x", "BASE//x", "BASE/", "BASE", "BASE-not/x", "x", ""])
def test_a_file_outside_the_shared_root(agent: AgentProcess, path: str) -> None:
    request = {"path": path.replace("BASE", f"{agent.base}/shared"), "file_mode": REGULAR | 0o600}
    assert status_of(agent.client, "CopyFile", request) == envelope.INVALID_ARGUMENT


def test_a_link_planted_by_a_container_is_not_followed(agent: AgentProcess) -> None:
    shared, outside = agent.base / "shared", agent.base / "outside"
    shared.mkdir()
    outside.mkdir()
    (shared / "trap").symlink_to(outside)
    (shared / "file").symlink_to(outside / "victim")
    for name in ("trap/x", "file"):
        request = {"path": f"{shared}/{name}", "file_size": 1, "file_mode": REGULAR | 0o600, "data": b"x"}
        if name == "file":
            agent.client.call("CopyFile", request)
        else:
            assert status_of(agent.client, "CopyFile", request) == envelope.INTERNAL
    assert list(outside.iterdir()) == []
    assert (shared / "file").read_bytes() == b"x", "the link itself was replaced"


def test_interfaces_routes_and_neighbours(agent: AgentProcess) -> None:
    client = agent.client
    client.call("CreateSandbox", {})  # raises the loopback
    inside(agent, "python3", "-c", ADD_VETH, str(Path(__file__).parents[3]))
    mac = next(i["hwAddr"] for i in client.call("ListInterfaces")["Interfaces"] if i["name"] == "v0")
    wanted = {
        "hwAddr": mac.upper(),
        "name": "eth0",
        "mtu": 1400,
        "IPAddresses": [{"address": "10.1.2.3", "mask": "24"}, {"family": 1, "address": "fd00::5", "mask": "64"}],
    }
    for _ in range(2):
        found = client.call("UpdateInterface", {"interface": wanted})
        assert (found["name"], found["mtu"], found["hwAddr"]) == ("eth0", 1400, mac)
        assert found["raw_flags"] & 1, "up"
        assert found["IPAddresses"][:2] == [
            {"address": "10.1.2.3", "mask": "24"},
            {"family": 1, "address": "fd00::5", "mask": "64"},
        ]
    wanted["IPAddresses"] = [{"address": "10.1.2.4", "mask": "24"}]
    found = client.call("UpdateInterface", {"interface": wanted})
    assert [a["address"] for a in found["IPAddresses"] if not a["address"].startswith("fe80")] == ["10.1.2.4"]
    routes = [
        {"dest": "", "gateway": "10.9.9.9", "device": "eth0"},  # reachable only through the next one
        {"dest": "10.9.9.9/32", "device": "eth0", "source": "10.1.2.4"},
        {"dest": "fd01::/48", "device": "eth0", "family": 1},
        {"dest": "10.7.0.0/16", "device": "eth0", "scope": 253, "metric": 7},
        {"dest": "10.7.0.0/16", "device": "eth0", "scope": 253, "metric": 9},
        {"dest": "fd02::/48", "device": "eth0", "family": 1, "metric": 5},
    ]
    for _ in range(2):
        there = client.call("UpdateRoutes", {"routes": {"Routes": routes}})["Routes"]
        assert {"gateway": "10.9.9.9", "device": "eth0"} in there
        assert {"dest": "10.9.9.9/32", "device": "eth0", "source": "10.1.2.4", "scope": 253} in there
        assert {"dest": "fd01::/48", "device": "eth0", "family": 1} in there
        for route in routes[3:]:
            assert route in there
        assert {"dest": "10.1.2.0/24", "device": "eth0", "source": "10.1.2.4", "scope": 253} in there
    assert client.call("ListRoutes")["Routes"] == there
    neighbour = {"toIPAddress": {"address": "10.1.2.9"}, "device": "eth0", "lladdr": "02:00:00:00:00:09"}
    client.call("AddARPNeighbors", {"neighbors": {"ARPNeighbors": [neighbour]}})
    with pytest.raises(CallError, match="route to `default`: the kernel refused it: Network is unreachable"):
        client.call("UpdateRoutes", {"routes": {"Routes": [{"gateway": "203.0.113.1", "device": "eth0"}]}})
    assert status_of(client, "UpdateRoutes", {"routes": {"Routes": [{"device": "nope"}]}}) == envelope.NOT_FOUND
    assert status_of(client, "UpdateInterface", {"interface": {}}) == envelope.INVALID_ARGUMENT
    wanted["IPAddresses"] = [{"address": "10.1", "mask": "24"}]
    assert status_of(client, "UpdateInterface", {"interface": wanted}) == envelope.INVALID_ARGUMENT


def test_two_interfaces_may_exchange_their_names(agent: AgentProcess) -> None:
    client = agent.client
    inside(agent, "python3", "-c", ADD_VETH, str(Path(__file__).parents[3]))
    macs = {i["name"]: i["hwAddr"] for i in client.call("ListInterfaces")["Interfaces"]}
    client.call("UpdateInterface", {"interface": {"hwAddr": macs["v0"], "name": "a"}})
    client.call("UpdateInterface", {"interface": {"hwAddr": macs["veth0"], "name": "b"}})
    client.call("UpdateInterface", {"interface": {"hwAddr": macs["v0"], "name": "b"}})
    client.call("UpdateInterface", {"interface": {"hwAddr": macs["veth0"], "name": "a"}})
    names = {i["hwAddr"]: i["name"] for i in client.call("ListInterfaces")["Interfaces"]}
    assert (names[macs["v0"]], names[macs["veth0"]]) == ("b", "a")


# a pair of veths, v0 and veth0, made with the agent's own netlink (3 is IFLA_IFNAME, 18 IFLA_LINKINFO, in it 1 the kind)
ADD_VETH = """
import sys
sys.path.insert(0, sys.argv[1])
from guest.agent import netlink
with netlink.Netlink() as kernel:
    kernel.change(netlink.NEW_LINK, netlink.CREATE | netlink.EXCL, netlink.LINK.pack(0, 0, 0, 0, 0),
                  [(3, b"v0\\0"), (18, netlink.pack_attribute(1, b"veth"))])
"""


def test_what_the_guest_is(client: Client) -> None:
    details = client.call("GetGuestDetails", {"mem_block_size": True, "mem_hotplug_probe": True})["agent_details"]
    assert "katafsm.streams" in details["extra_features"]
    assert "virtio-fs" in details["storage_handlers"]
    assert client.call("Version")["agent_version"] == details["version"]
