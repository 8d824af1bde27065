# SPDX-License-Identifier: Apache-2.0
"""Goal: a pod has the network of its namespace, and leaves the namespace as it was."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kata_fsm.testing.bundle import config
from tests.support import lab as laboratory
from tests.support.kata import LIMIT_S, Kata, wait_until
from tests.support.lab import Lab, Namespace

SLEEP = ("/bin/sleep", "1000")
BYTES = 8 << 20


@pytest.fixture
def lab(kata: Kata) -> Iterator[Lab]:
    """Namespaces that go before the check for what was left behind."""
    with laboratory.opened() as made:
        yield made


def bundle(kata: Kata, name: str, namespace: Namespace | None, *args: str) -> Path:
    """A bundle in a given namespace."""
    linux: dict[str, Any] = config(args)["linux"]
    if namespace is not None:
        for each in linux["namespaces"]:
            if each["type"] == "network":
                each["path"] = namespace.path
    return kata.bundle(name, *args, linux=linux)


def payload(path: Path, size: int = BYTES) -> str:
    """A file of bytes that nobody can have made up; its digest."""
    data = random.Random(size).randbytes(size)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def guest(kata: Kata, name: str, *argv: str) -> str:
    return kata("exec", name, *argv).stdout


def pings(kata: Kata, name: str, address: str) -> bool:
    """Whether all three come back; whatever else the verb has to say is shown by a test that fails."""
    done = kata("exec", name, "/bin/ping", "-c", "3", "-W", "5", address, check=False)
    print(done)
    return ", 0% packet loss" in done.stdout


def pair(lab: Lab) -> tuple[Namespace, Namespace]:
    """A pod's namespace with `eth0`, wired to another with `far0`."""
    pod, out = lab.namespace("pod"), lab.namespace("out")
    lab.wire(pod, "eth0", out, "far0", mtu=1400)
    pod.address("eth0", "10.61.0.2/24", "fd61::2/64")
    out.address("far0", "10.61.0.1/24", "fd61::1/64")
    pod.ip("route", "add", "default", "via", "10.61.0.1", "metric", "77")
    pod.ip("-6", "route", "add", "default", "via", "fd61::1")
    pod.settle("eth0")
    return pod, out


def test_two_sandboxes_over_a_bridge(kata: Kata, lab: Lab) -> None:
    switch = lab.namespace("switch")
    switch.ip("link", "add", "br0", "type", "bridge")
    switch.ip("link", "set", "br0", "up")
    pods = []
    for number in (1, 2):
        pod = lab.namespace(f"pod{number}")
        lab.wire(pod, "eth0", switch, f"port{number}")
        switch.ip("link", "set", f"port{number}", "master", "br0", "up")
        pod.address("eth0", f"10.60.0.{number}/24", f"fd60::{number}/64")
        pod.settle("eth0")
        pods.append(pod)
    before = [pod.dump() for pod in pods]
    serving = bundle(kata, "b1", pods[0], "/bin/httpd", "-f", "-p", "80", "-h", "/srv")
    digest = payload(serving / "rootfs" / "srv" / "file")
    kata.detached("c1", serving)
    kata.detached("c2", bundle(kata, "b2", pods[1], *SLEEP))
    for address in ("10.60.0.1", "fd60::1"):
        assert pings(kata, "c2", address)
        host = f"[{address}]" if ":" in address else address
        assert digest in guest(kata, "c2", "/bin/sh", "-c", f"wget -q -O - http://{host}/file | sha256sum")
    for name in ("c1", "c2"):
        kata("delete", "--force", name)
    assert [pod.dump() for pod in pods] == before


def test_a_pod_and_the_host_side_both_ways(kata: Kata, lab: Lab) -> None:
    pod, out = pair(lab)
    before = pod.dump()
    mac = pod.mac("eth0")
    made = bundle(kata, "b", pod, "/bin/httpd", "-f", "-p", "80", "-h", "/srv")
    digest = payload(made / "rootfs" / "srv" / "file")
    kata.detached("c1", made)
    shown = guest(kata, "c1", "/bin/sh", "-c", "ip link show eth0; ip route; ip -6 route; ip addr show lo")
    assert mac in shown
    assert "mtu 1400" in shown
    assert "default via 10.61.0.1 dev eth0  metric 77" in shown
    assert "default via fd61::1 dev eth0  metric 1024" in shown
    assert "LOOPBACK,UP" in shown
    for family, address, own in ((socket.AF_INET, "10.61.0.2", "10.61.0.1"), (socket.AF_INET6, "fd61::2", "fd61::1")):
        assert pings(kata, "c1", own)
        assert out("/bin/busybox", "ping", "-c", "2", "-W", "5", address)
        assert _fetched(out, family, address) == digest
        assert _sent(kata, out, family, own) == digest
    kata("delete", "--force", "c1")
    assert laboratory.changes(before, pod.dump()) == ""


def _fetched(out: Namespace, family: int, address: str) -> str:
    """The digest of what the pod's web server answers somebody outside."""

    def connected() -> socket.socket:
        made = socket.socket(family, socket.SOCK_STREAM)
        made.settimeout(LIMIT_S)
        made.connect((address, 80))
        return made

    with out.inside(connected) as sock:
        sock.sendall(b"GET /file HTTP/1.0\r\n\r\n")
        data = b"".join(iter(lambda: sock.recv(1 << 16), b""))
    return hashlib.sha256(data.partition(b"\r\n\r\n")[2]).hexdigest()


def _sent(kata: Kata, out: Namespace, family: int, address: str) -> str:
    """The digest of what somebody outside receives from the pod."""

    def listening() -> socket.socket:
        made = socket.socket(family, socket.SOCK_STREAM)
        made.settimeout(LIMIT_S)
        made.bind((address, 9000))
        made.listen(1)
        return made

    digest = hashlib.sha256()
    with out.inside(listening) as listener:

        def receive() -> None:
            accepted, _ = listener.accept()
            with accepted:
                accepted.settimeout(LIMIT_S)
                while data := accepted.recv(1 << 16):
                    digest.update(data)

        receiver = threading.Thread(target=receive)
        receiver.start()
        guest(kata, "c1", "/bin/sh", "-c", f"nc {address} 9000 < /srv/file")
        receiver.join()
    return digest.hexdigest()


def test_several_interfaces_of_several_kinds(kata: Kata, lab: Lab) -> None:
    pod, out = lab.namespace("pod"), lab.namespace("out")
    lab.wire(pod, "eth0", out, "up0")
    lab.wire(pod, "port", out, "up1")
    out.ip("link", "add", "parent", "type", "veth", "peer", "name", "up2")
    out.ip("link", "add", "mv0", "link", "parent", "type", "macvlan", "mode", "private")
    out.ip("link", "set", "mv0", "netns", pod.name)
    out.ip("link", "set", "parent", "up")
    pod.ip("link", "add", "br0", "type", "bridge")
    pod.ip("link", "set", "port", "master", "br0", "up")
    pod.ip("link", "add", "idle0", "type", "bridge")  # down and bare: no part of the network
    for number, (device, far) in enumerate((("eth0", "up0"), ("br0", "up1"), ("mv0", "up2"))):
        pod.address(device, f"10.62.{number}.2/24", f"fd62:{number}::2/64")
        out.address(far, f"10.62.{number}.1/24", f"fd62:{number}::1/64")
    pod.ip("neigh", "add", "10.62.0.9", "lladdr", "02:00:00:00:00:09", "dev", "eth0", "nud", "permanent")
    pod.ip("route", "add", "10.99.0.0/16", "via", "10.62.1.1", "metric", "5", "mtu", "1300")
    pod.ip("route", "add", "10.98.0.0/16", "dev", "mv0", "scope", "link")
    pod.settle("eth0", "br0", "mv0")
    before = pod.dump()
    kata.detached("c1", bundle(kata, "b", pod, *SLEEP))
    listed = {each["Name"]: each for each in json.loads(kata("network", "list-ifaces", "c1").stdout)}
    for device in ("eth0", "br0", "mv0"):
        assert listed[device]["HwAddr"] == pod.mac(device)
    assert set(listed) == {"lo", "eth0", "br0", "mv0"}
    for number in range(3):
        assert pings(kata, "c1", f"10.62.{number}.1")
        assert pings(kata, "c1", f"fd62:{number}::1")
    routes = {each["Dest"]: each for each in json.loads(kata("kata-network", "list-routes", "c1").stdout)}
    via = routes["10.99.0.0/16"]
    assert (via["Gateway"], via["Device"], via["Metric"], via["Mtu"]) == ("10.62.1.1", "br0", 5, 1300)
    assert (routes["10.98.0.0/16"]["Device"], routes["10.98.0.0/16"]["Scope"]) == ("mv0", 253)
    assert "02:00:00:00:00:09" in guest(kata, "c1", "/bin/cat", "/proc/net/arp")
    kata("delete", "--force", "c1")
    assert laboratory.changes(before, pod.dump()) == ""


def test_macvtap(kata: Kata, lab: Lab, tmp_path: Path) -> None:
    pod, out = pair(lab)
    before = pod.dump()
    settings = tmp_path / "configuration.toml"
    settings.write_text('[runtime]\ninternetworking_model = "macvtap"\n')
    made = bundle(kata, "b", pod, "/bin/httpd", "-f", "-p", "80", "-h", "/srv")
    digest = payload(made / "rootfs" / "srv" / "file")
    kata("--config", str(settings), "create", "--bundle", str(made), "c1")
    kata("start", "c1")
    assert pod.mac("eth0") in guest(kata, "c1", "/bin/ip", "link", "show", "eth0")
    for family, address, own in ((socket.AF_INET, "10.61.0.2", "10.61.0.1"), (socket.AF_INET6, "fd61::2", "fd61::1")):
        assert pings(kata, "c1", own)
        assert _fetched(out, family, address) == digest
        assert _sent(kata, out, family, own) == digest
    kata("delete", "--force", "c1")
    assert laboratory.changes(before, pod.dump()) == ""


@pytest.mark.parametrize("machine", ["q35", "microvm"])
def test_interfaces_come_and_go_while_the_pod_runs(kata: Kata, lab: Lab, tmp_path: Path, machine: str) -> None:
    settings = tmp_path / "configuration.toml"
    settings.write_text(f'[hypervisor.qemu]\nmachine_type = "{machine}"\n')
    kata.env["KATA_CONF_FILE"] = str(settings)
    pod, out = pair(lab)
    kata.detached("c1", bundle(kata, "b", pod, *SLEEP))
    lab.wire(pod, "eth1", out, "up1")
    pod.address("eth1", "10.63.0.2/24")
    out.address("up1", "10.63.0.1/24")
    pod.settle("eth1")
    before = pod.dump()
    asked = tmp_path / "eth1.json"
    asked.write_text(json.dumps({"name": "eth1", "HwAddr": pod.mac("eth1"), "Mtu": 1350}))
    added = {each["Name"]: each for each in json.loads(kata("network", "add-iface", "c1", str(asked)).stdout)}
    assert (added["eth1"]["HwAddr"], added["eth1"]["Mtu"]) == (pod.mac("eth1"), 1350)
    assert pings(kata, "c1", "10.63.0.1")
    refused = kata("network", "add-iface", "c1", str(asked), check=False)
    assert refused.returncode == 1
    assert "has the interface `eth1` already" in refused.stderr
    wanted = [{"Dest": "default", "Gateway": "10.63.0.1", "Device": "eth1", "Metric": 9}]
    asked.write_text(json.dumps(wanted))
    routes = json.loads(kata("network", "update-routes", "c1", str(asked)).stdout)
    assert [r["Gateway"] for r in routes if r["Dest"] == ""] == ["10.63.0.1"]
    (supervisor,) = kata.processes("supervisor", "c1")
    os.kill(supervisor, signal.SIGKILL)
    asked.write_text(json.dumps({"Name": "eth1"}))
    left = json.loads(kata("network", "del-iface", "c1", str(asked)).stdout)
    assert "eth1" not in [each["Name"] for each in left]
    assert pings(kata, "c1", "10.61.0.1")
    assert "eth1" in pod.links()
    pod.ip("link", "del", "eth0")  # the first one vanishes, the second is there again
    found = json.loads(kata("network", "rescan", "c1").stdout)
    assert {each["Name"] for each in found} == {"lo", "eth1"}
    assert pings(kata, "c1", "10.63.0.1")
    kata("delete", "--force", "c1")
    after = pod.dump()
    assert "ingress" not in after["qdiscs"]
    assert [each["ifname"] for each in after["links"]] == ["lo", "eth1"]
    assert next(each for each in before["links"] if each["ifname"] == "eth1") in after["links"]


def test_the_network_is_watched_where_that_is_wanted(kata: Kata, lab: Lab, tmp_path: Path) -> None:
    """Nobody says that something has been moved in; the same pod without it sees nothing."""
    settings = tmp_path / "configuration.toml"
    settings.write_text("[netmon]\nenable_netmon = true\n")
    pod, out = pair(lab)
    made = bundle(kata, "b", pod, *SLEEP)
    kata("--config", str(settings), "create", "--bundle", str(made), "c1")
    kata("start", "c1")

    def interfaces() -> set[str]:
        return {each["Name"] for each in json.loads(kata("network", "list-ifaces", "c1").stdout)}

    def addresses() -> str:
        return guest(kata, "c1", "/bin/ip", "addr")

    def move_in(device: str, number: int) -> None:
        lab.wire(pod, device, out, f"up{number}")
        pod.address(device, f"10.63.{number}.2/24")
        out.address(f"up{number}", f"10.63.{number}.1/24")

    move_in("eth1", 1)
    wait_until(lambda: "10.63.1.2/24" in addresses(), "the guest has eth1, with its address")
    assert pings(kata, "c1", "10.63.1.1")
    (supervisor,) = kata.processes("supervisor", "c1")
    os.kill(supervisor, signal.SIGKILL)
    move_in("eth2", 2)  # while nobody looks
    wait_until(lambda: "eth2" in interfaces(), "the guest has eth2")
    asked = tmp_path / "eth2.json"
    asked.write_text('{"Name": "eth2"}')
    kata("network", "del-iface", "c1", str(asked))
    pod.ip("link", "del", "eth1")
    wait_until(lambda: "eth1" not in interfaces(), "the guest has no eth1")
    assert pings(kata, "c1", "10.61.0.1")
    changes = [each for each in kata.story("c1") if (each["lane"], each["what"]) == ("intent", "network.change")]
    assert 4 <= len(changes) <= 7  # each was found once, in whatever steps the kernel told of it
    kata("delete", "--force", "c1")
    assert [name for name in pod.links() if name not in ("lo", "eth0", "eth2")] == []


def test_a_change_that_fails_half_way_leaves_what_was_there(kata: Kata, lab: Lab, tmp_path: Path) -> None:
    """The guest cannot set a route whose gateway it no longer reaches; by then the interface is unplugged already."""
    pod, out = pair(lab)
    process = config([])["process"]
    for kind in process["capabilities"].values():
        kind.append("CAP_NET_ADMIN")
    linux = config([])["linux"]
    next(each for each in linux["namespaces"] if each["type"] == "network")["path"] = pod.path
    process["args"] = list(SLEEP)
    kata.detached("c1", kata.bundle("b", *SLEEP, linux=linux, process=process))
    lab.wire(pod, "eth1", out, "up1")
    pod.address("eth1", "10.63.0.2/24")
    out.address("up1", "10.63.0.1/24")
    pod.settle("eth1")
    asked = tmp_path / "eth1.json"
    asked.write_text(json.dumps({"Name": "eth1"}))
    kata("network", "add-iface", "c1", str(asked))
    guest(kata, "c1", "/bin/ip", "addr", "flush", "dev", "eth0")
    refused = kata("network", "del-iface", "c1", str(asked), check=False)
    assert refused.returncode == 1
    assert "the network cannot be changed" in refused.stderr
    assert {each["Name"] for each in json.loads(kata("network", "list-ifaces", "c1").stdout)} == {"lo", "eth0", "eth1"}
    assert pings(kata, "c1", "10.63.0.1")
    assert pings(kata, "c1", "10.61.0.1")
    kata("network", "del-iface", "c1", str(asked))
    kata("delete", "--force", "c1")
    assert [name for name in pod.links() if name not in ("lo", "eth0", "eth1")] == []


def test_killed_while_the_network_is_changed(kata: Kata, lab: Lab, tmp_path: Path) -> None:
    pod, out = pair(lab)
    kata.detached("c1", bundle(kata, "b", pod, *SLEEP))
    lab.wire(pod, "eth1", out, "far1")
    pod.address("eth1", "10.63.0.2/24")
    out.address("far1", "10.63.0.1/24")
    before = len([name for name in pod.links() if name.startswith("k")])
    asked = tmp_path / "eth1.json"
    asked.write_text('{"Name": "eth1"}')
    with kata.spawn("network", "add-iface", "c1", str(asked), stderr=subprocess.PIPE) as adding:
        wait_until(lambda: len([name for name in pod.links() if name.startswith("k")]) > before, "a tap for eth1")
        kata.kill("supervisor", "c1")
        adding.communicate(timeout=LIMIT_S)

    def finished() -> bool:  # by the next supervisor, which begins by taking back what is half done
        return ("outcome", "network.change") in [(each["lane"], each["what"]) for each in kata.story("c1")]

    wait_until(finished, "what was begun is finished")
    assert "eth1" in [each["Name"] for each in json.loads(kata("network", "list-ifaces", "c1").stdout)]
    assert pings(kata, "c1", "10.63.0.1")
    assert pings(kata, "c1", "10.61.0.1")
    kata("delete", "--force", "c1")
    assert [name for name in pod.links() if name not in ("lo", "eth0", "eth1")] == []
    assert "ingress" not in pod.tc("qdisc", "show")


def test_a_namespace_of_ours_gets_its_interface_late(kata: Kata, lab: Lab) -> None:
    """Docker's order: the veth is moved in when there is a pid to find the namespace by."""
    out = lab.namespace("out")
    out.ip("link", "add", "far0", "type", "veth", "peer", "name", "eth0")
    out.address("far0", "10.64.0.1/24")
    kata("create", "--bundle", str(bundle(kata, "b", None, *SLEEP)), "c1")
    pid = json.loads(kata("state", "c1").stdout)["pid"]
    out.ip("link", "set", "eth0", "netns", str(pid))
    enter = ("nsenter", f"--net=/proc/{pid}/ns/net")
    for argv in (("addr", "add", "10.64.0.2/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
        laboratory.run(*enter, "ip", *argv)
    found = json.loads(kata("network", "rescan", "c1").stdout)
    assert {each["Name"] for each in found} == {"lo", "eth0"}
    kata("start", "c1")
    assert pings(kata, "c1", "10.64.0.1")
    kata("delete", "--force", "c1")


@pytest.mark.parametrize("when", ["joined", "plugged"])
@pytest.mark.parametrize("victim", ["supervisor", "qemu-system"])
def test_killed_while_the_network_comes_up(kata: Kata, lab: Lab, victim: str, when: str) -> None:
    pod, _ = pair(lab)
    before = pod.dump()
    made = bundle(kata, "b", pod, *SLEEP)
    creating = kata.spawn("create", "--bundle", str(made), "c1", stderr=subprocess.PIPE)

    def killed_in_time() -> list[int]:
        reached = any(name.startswith("k") for name in pod.links())
        if when == "plugged":
            reached = reached and "nic1" in kata("replay", "c1", check=False).stdout
        return kata.kill(victim) if reached else []

    with creating:
        wait_until(killed_in_time, f"{victim} has {when}")
        creating.communicate(timeout=LIMIT_S)
    kata("delete", "--force", "c1")
    assert laboratory.changes(before, pod.dump()) == ""
    assert os.path.exists(pod.path)


def test_a_running_pod_survives_its_supervisor_and_cleans_up_after_qemu(kata: Kata, lab: Lab) -> None:
    pod, _ = pair(lab)
    before = pod.dump()
    kata.detached("c1", bundle(kata, "b", pod, *SLEEP))
    (supervisor,) = kata.processes("supervisor", "c1")
    os.kill(supervisor, signal.SIGKILL)
    assert pings(kata, "c1", "10.61.0.1")
    supervisor = kata.process("supervisor", "c1")
    (shim,) = kata.processes("shim", "c1")
    here, *those = (os.readlink(f"/proc/{each}/ns/net") for each in ("self", supervisor, shim))
    # The shim, which is where engines look for the pod's, has started the other, which is at home.
    assert those[0] == here != those[1]
    assert "KATA_FSM_HOME" not in Path(f"/proc/{supervisor}/environ").read_text(), "what only a shim has use for"
    (qemu,) = kata.processes("qemu-system", "sandbox-c1")
    os.kill(qemu, signal.SIGKILL)
    wait_until(lambda: kata.status("c1") == "stopped", "the container is stopped")
    kata("delete", "c1")
    assert laboratory.changes(before, pod.dump()) == ""


def test_a_pod_that_no_journal_knows_is_taken_from_its_namespace(kata: Kata, lab: Lab) -> None:
    pod, _ = pair(lab)
    before = pod.dump()
    kata.detached("c1", bundle(kata, "b", pod, *SLEEP))
    for word in ("shim", "supervisor", "qemu-system", "virtiofsd"):  # first who would start another supervisor
        kata.kill(word)
    wait_until(lambda: not kata.processes(), "nothing runs")
    shutil.rmtree(kata.base / "s" / "journal")
    assert "ingress" in pod.tc("qdisc", "show")
    kata("recover", "--apply", "--orphans", "kill", "--reason", "the disk was replaced")
    assert laboratory.changes(before, pod.dump()) == ""


def test_a_namespace_that_vanished_is_let_go(kata: Kata, lab: Lab) -> None:
    pod, out = pair(lab)
    kata.detached("c1", bundle(kata, "b", pod, *SLEEP))
    pod.close()
    assert pings(kata, "c1", "10.61.0.1")  # it is held until the pod ends
    kata("delete", "--force", "c1")
    wait_until(lambda: "far0" not in out.links(), "the pair has gone with its namespace")
    refused = kata("create", "--bundle", str(bundle(kata, "b2", pod, *SLEEP)), "c2", check=False)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert f"the network namespace `{pod.path}` cannot be used" in refused.stderr


def test_what_cannot_be_served_is_refused_by_name(kata: Kata, lab: Lab) -> None:
    pod, _ = pair(lab)
    made = bundle(kata, "b", pod, *SLEEP)

    def refused(*words: str) -> None:
        before = pod.dump()
        done = kata("create", "--bundle", str(made), "c1", check=False)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1, done.stderr
        for word in words:
            assert word in done.stderr
        assert laboratory.changes(before, pod.dump()) == ""

    pod.ip("tuntap", "add", "dev", "tun0", "mode", "tun")
    pod.ip("link", "set", "tun0", "up")
    refused("`tun0`", "no Ethernet frames")
    pod.ip("link", "del", "tun0")
    pod.tc("qdisc", "add", "dev", "eth0", "ingress")
    refused("`eth0`", "has an ingress qdisc already")
