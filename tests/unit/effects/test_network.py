# SPDX-License-Identifier: Apache-2.0
"""Goal: what is joined to a namespace is found again by anybody, whole or half done, and leaves it as it was."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import msgspec
import pytest

from kata_fsm import errors, limits
from kata_fsm.effects import netns
from kata_fsm.effects.hypervisor import nic
from kata_fsm.effects.hypervisor.handler import HypervisorLaunch
from kata_fsm.effects.hypervisor.qmp import Monitor
from kata_fsm.effects.hypervisor.settings import HypervisorSettings
from kata_fsm.effects.network import handlers, namespace, rates, tap
from kata_fsm.effects.network.model import Interface, Network, from_facts
from kata_fsm.effects.protocols import Intent
from tests.support import lab as laboratory
from tests.support.lab import Lab, Namespace
from tests.unit.effects.conftest import UID

SETTINGS = HypervisorSettings(accel="tcg")
FIRST = tap.name(UID, 1)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with laboratory.opened() as made:
        yield made


@pytest.fixture
def pod(lab: Lab) -> Namespace:
    """A namespace with two interfaces in use, and routes."""
    made, out = lab.namespace("pod"), lab.namespace("out")
    for number in (0, 1):
        lab.wire(made, f"eth{number}", out, f"up{number}", mtu=1400)
        made.address(f"eth{number}", f"10.6{number}.0.2/24", f"fd6{number}::2/64")
        out.ip("link", "set", "dev", f"up{number}", "up")
    made.settle("eth0", "eth1")
    made.ip("route", "add", "default", "via", "10.60.0.1", "metric", "7")
    made.ip("route", "add", "10.90.0.0/16", "via", "10.61.0.1", "src", "10.61.0.2")
    return made


def intent(pod: Namespace, model: str = "tcfilter") -> Intent:
    return Intent("network.attach", "", {"netns": pod.path, "model": model})


def ours(pod: Namespace) -> list[str]:
    return [name for name in pod.links() if name.startswith(tap.own(UID))]


@pytest.mark.parametrize("model", ["tcfilter", "macvtap"])
async def test_attach_joins_what_is_there_and_detach_leaves_no_trace(place: Any, pod: Namespace, model: str) -> None:
    before = pod.dump()
    attach, detach = handlers.NetworkAttach(place.paths, SETTINGS), handlers.NetworkDetach(place.paths, SETTINGS)
    assert (await attach.probe(intent(pod, model))).done is False
    result = await attach.perform(intent(pod, model))
    network = from_facts(result)
    assert [(each.slot, each.name, each.mtu, each.kind) for each in network.interfaces] == [
        (1, "eth0", 1400, "veth"),
        (2, "eth1", 1400, "veth"),
    ]
    assert [each.mac for each in network.interfaces] == [pod.mac("eth0"), pod.mac("eth1")]
    assert {(route.dest, route.gateway, route.metric, route.source) for route in network.routes} == {
        ("", "10.60.0.1", 7, ""),
        ("10.90.0.0/16", "10.61.0.1", 0, "10.61.0.2"),
    }
    assert ours(pod) == [tap.name(UID, 1), tap.name(UID, 2)]
    seen = await attach.probe(intent(pod, model))
    assert (seen.done, seen.result) == (True, result)
    there = pod.dump()
    assert await attach.perform(intent(pod, model)) == result  # after a crash before the outcome
    assert laboratory.changes(there, pod.dump()) == ""
    assert (await detach.probe(intent(pod, model))).done is False
    assert (await detach.perform(intent(pod, model)))["parted"] == [tap.name(UID, 1), tap.name(UID, 2)]
    assert (await detach.probe(intent(pod, model))).done is True
    assert await detach.perform(intent(pod, model)) == {"removed": False}
    assert laboratory.changes(before, pod.dump()) == ""


HALVES = {
    "a qdisc is missing": [("tc", "qdisc", "del", "dev", "eth0", "ingress")],
    "a filter is missing": [("tc", "filter", "del", "dev", "eth0", "ingress")],
    "the tap is new": [
        ("tc", "qdisc", "del", "dev", "eth0", "ingress"),
        ("tc", "qdisc", "del", "dev", FIRST, "ingress"),
        ("ip", "link", "set", "dev", FIRST, "down"),
    ],
    "the way back is missing": [("tc", "qdisc", "del", "dev", FIRST, "ingress")],
    "one tap is missing": [("tc", "qdisc", "del", "dev", "eth0", "ingress"), ("ip", "link", "del", FIRST)],
}


@pytest.mark.parametrize("half", HALVES)
async def test_what_was_half_done_is_finished_or_taken_back(place: Any, pod: Namespace, half: str) -> None:
    before = pod.dump()
    attach, detach = handlers.NetworkAttach(place.paths, SETTINGS), handlers.NetworkDetach(place.paths, SETTINGS)
    result = await attach.perform(intent(pod))
    for argv in HALVES[half]:
        pod(*argv)
    assert (await attach.probe(intent(pod))).done is False
    assert await attach.perform(intent(pod)) == result
    assert "Redirect to device eth0" in pod.tc("filter", "show", "dev", FIRST, "ingress")
    assert f"Redirect to device {FIRST}" in pod.tc("filter", "show", "dev", "eth0", "ingress")
    for argv in HALVES[half]:
        pod(*argv)
    await detach.perform(intent(pod))
    assert laboratory.changes(before, pod.dump()) == ""


async def test_filters_of_somebody_else_stay(place: Any, pod: Namespace) -> None:
    attach, detach = handlers.NetworkAttach(place.paths, SETTINGS), handlers.NetworkDetach(place.paths, SETTINGS)
    await attach.perform(intent(pod))
    theirs = (
        "protocol",
        "ip",
        "prio",
        "5",
        "u32",
        "match",
        "u32",
        "0",
        "0",
        "action",
        "mirred",
        "egress",
        "mirror",
        "dev",
        "lo",
    )
    pod.tc("filter", "add", "dev", "eth0", "parent", "ffff:", *theirs)
    await detach.perform(intent(pod))
    left = pod.tc("filter", "show", "dev", "eth0", "ingress")
    assert "pref 5" in left
    assert FIRST not in left
    assert ours(pod) == []


async def test_an_ingress_qdisc_of_somebody_else_is_refused(place: Any, pod: Namespace) -> None:
    pod.tc("qdisc", "add", "dev", "eth1", "ingress")
    before = pod.dump()
    attach = handlers.NetworkAttach(place.paths, SETTINGS)
    with pytest.raises(errors.EffectError, match="`eth1` has an ingress qdisc already"):
        await attach.perform(intent(pod))
    await attach.undo(intent(pod))
    assert laboratory.changes(before, pod.dump()) == ""


async def test_a_namespace_that_vanished_is_cleaned_through_our_own_hold(place: Any, pod: Namespace) -> None:
    await handlers.NetworkAttach(place.paths, SETTINGS).perform(intent(pod))
    laboratory.run("umount", pod.path)
    os.unlink(pod.path)
    parted = await handlers.NetworkDetach(place.paths, SETTINGS).perform(intent(pod))
    assert parted == {"removed": True, "parted": [tap.name(UID, 1), tap.name(UID, 2)]}


async def test_what_cannot_be_served_is_named(place: Any, pod: Namespace) -> None:
    attach = handlers.NetworkAttach(place.paths, SETTINGS)
    pod.ip("link", "add", "br0", "type", "bridge")  # down and bare
    pod.ip("link", "set", "dev", "eth1", "master", "br0")  # reached through its master, which is not in use
    assert [each.name for each in from_facts(await attach.perform(intent(pod))).interfaces] == ["eth0"]
    await attach.undo(intent(pod))
    pod.ip("tuntap", "add", "dev", "tun0", "mode", "tun")
    pod.ip("link", "set", "dev", "tun0", "up")
    with pytest.raises(errors.EffectError, match=r"`tun0` cannot be given to the guest: it carries no Ethernet frames"):
        await attach.perform(intent(pod))
    assert ours(pod) == []
    await attach.undo(intent(pod))
    pod.ip("link", "del", "tun0")
    hops = [word for hop in ("10.60.0.1", "10.60.0.3") for word in ("nexthop", "via", hop)]
    pod.ip("route", "add", "10.95.0.0/16", *hops)
    with pytest.raises(errors.EffectError, match=r"`10.95.0.0` has several next hops"):
        await attach.perform(intent(pod))
    await attach.undo(intent(pod))


async def test_the_hosts_own_namespace_is_refused(place: Any) -> None:
    wanted = Intent("network.attach", "", {"netns": "/proc/self/ns/net", "model": "tcfilter"})
    with pytest.raises(errors.EffectError, match="host networking requested, not supported by runtime"):
        await handlers.NetworkAttach(place.paths, SETTINGS).perform(wanted)


async def test_routing_that_no_guest_can_be_told_of_is_named(place: Any, pod: Namespace) -> None:
    attach = handlers.NetworkAttach(place.paths, SETTINGS)
    assert "warning" not in await attach.perform(intent(pod))
    pod.ip("route", "add", "10.93.0.0/16", "via", "10.60.0.1", "table", "77")
    pod.ip("rule", "add", "from", "10.60.0.2", "table", "77", "priority", "100")
    pod.ip("route", "add", "blackhole", "10.92.0.0/16")
    result = await attach.perform(intent(pod))
    wanted = "the guest will not have routing table `77`, `1` routing rules, `1` routes that reject"
    assert result["warning"] == wanted
    await attach.undo(intent(pod))


async def test_a_tap_and_a_persistent_one_of_somebody_else(place: Any, pod: Namespace) -> None:
    pod.ip("tuntap", "add", "dev", "tap0", "mode", "tap")
    pod.address("tap0", "10.66.0.2/24")
    before = pod.dump()
    attach = handlers.NetworkAttach(place.paths, SETTINGS)
    network = from_facts(await attach.perform(intent(pod)))
    assert ("tap0", "tun") in [(each.name, each.kind) for each in network.interfaces]
    await attach.undo(intent(pod))
    assert laboratory.changes(before, pod.dump()) == ""


async def test_more_interfaces_than_buses_are_refused_before_anything_is_made(place: Any, pod: Namespace) -> None:
    before = pod.dump()
    few = HypervisorSettings(accel="tcg", root_ports=2)
    with pytest.raises(errors.EffectError, match="buses for `1` NICs, the network namespace has `eth0`, `eth1`"):
        await handlers.NetworkAttach(place.paths, few).perform(intent(pod))
    await handlers.NetworkAttach(place.paths, few).undo(intent(pod))
    assert laboratory.changes(before, pod.dump()) == ""


def test_a_nic_of_one_queue_and_of_several_with_and_without_vhost() -> None:
    assert nic.backend_arguments(1, ["a"], []) == {"type": "tap", "id": "net1", "fd": "a"}
    assert nic.backend_arguments(2, ["a"], ["v"]) == {
        "type": "tap", "id": "net2", "fd": "a", "vhost": True, "vhostfd": "v",
    }  # fmt: skip
    assert nic.backend_arguments(3, ["a", "b"], ["v", "w"]) == {
        "type": "tap", "id": "net3", "fds": "a:b", "vhost": True, "vhostfds": "v:w",
    }  # fmt: skip
    assert "mq" not in nic.device_arguments(1, "02:00:00:00:00:01", 1)
    several = nic.device_arguments(3, "02:00:00:00:00:01", 2)
    assert (several["mq"], several["vectors"], several["bus"], several["netdev"]) == (True, 6, "rp3", "net3")


async def test_a_tap_of_several_queues_is_opened_as_often(place: Any, pod: Namespace) -> None:
    many = Interface(index=1, name="lo", kind="veth", mac="", mtu=1500, slot=7, queues=3)

    def opened() -> int:
        first = tap.open_queue(tap.name(UID, 7), multi=True)  # it goes with its descriptors: nobody keeps it
        fds, vhost = namespace.open_queues(UID, "tcfilter", many, SETTINGS)
        for fd in (first, *fds, *vhost):
            os.close(fd)
        return len(fds)

    assert pod.inside(opened) == 3
    assert ours(pod) == []


@pytest.mark.parametrize("left", ["nothing", "a descriptor", "a back end", "a NIC"])
async def test_a_nic_is_plugged_after_whatever_was_left_half_done(
    place: Any, pod: Namespace, tiny: Callable[..., HypervisorSettings], left: str
) -> None:
    """A real QEMU; its guest is of no matter here."""
    settings = tiny()
    monitor = Monitor(place.paths.qmp_sock)
    launch = HypervisorLaunch(place.paths, settings, monitor)
    vm = Intent("hypervisor.launch", "", {"sandbox": "n"})
    await launch.perform(vm)
    attach = handlers.NetworkAttach(place.paths, settings)
    first = from_facts(await attach.perform(intent(pod))).interfaces[0]
    plugger = handlers.Plugger(place.paths, settings, monitor, cast(Any, None))
    if left == "a NIC":
        assert await plugger.plug("tcfilter", first) is True
    elif left != "nothing":
        fd = pod.inside(lambda: tap.open_queue(FIRST, multi=False))
        await monitor.pass_fd("nic1q0", fd)
        if left == "a back end":
            await monitor.command("netdev_add", nic.backend_arguments(1, ["nic1q0"], []))
        os.close(fd)
    assert await plugger.plug("tcfilter", first) is (left != "a NIC")
    assert await nic.slots(monitor) == [1]
    with pytest.raises(errors.EffectError, match="busy"):  # QEMU has it, and nobody else can
        pod.inside(lambda: tap.open_queue(FIRST, multi=False))
    await launch.undo(vm)
    await monitor.aclose()
    await attach.undo(intent(pod))


LIMITED = HypervisorSettings(accel="tcg", rx_bits_per_s=8_000_000, tx_bits_per_s=4_000_000)


def buckets(pod: Namespace) -> dict[str, str]:
    """Device to the rate of its bucket."""
    words = [line.split() for line in pod.tc("qdisc", "show").splitlines() if line.startswith("qdisc tbf 4b46:")]
    return {line[4]: line[line.index("rate") + 1] for line in words}


@pytest.mark.parametrize("model", ["tcfilter", "macvtap"])
async def test_limits_of_rate_are_put_where_frames_leave_and_go(place: Any, pod: Namespace, model: str) -> None:
    before = pod.dump()
    attach, detach = handlers.NetworkAttach(place.paths, LIMITED), handlers.NetworkDetach(place.paths, LIMITED)
    result = await attach.perform(intent(pod, model))
    names = [(tap.name(UID, slot), rates.detour_name(UID, slot), f"eth{slot - 1}") for slot in (1, 2)]
    wanted = {inner: "8Mbit" for inner, _, _ in names} | {outer: "4Mbit" for _, _, outer in names}
    if model == "macvtap":
        wanted = {detour: "8Mbit" for _, detour, _ in names} | {inner: "4Mbit" for inner, _, _ in names}
    assert buckets(pod) == wanted
    there = pod.dump()
    assert (await attach.probe(intent(pod, model))).done is True
    assert await attach.perform(intent(pod, model)) == result
    assert laboratory.changes(there, pod.dump()) == ""
    for device in wanted:  # as after a crash half way
        pod.tc("qdisc", "del", "dev", device, "root")
        assert (await attach.probe(intent(pod, model))).done is False
        assert await attach.perform(intent(pod, model)) == result
        assert buckets(pod) == wanted
    if model == "macvtap":
        pod.ip("link", "del", tap.name(UID, 1))  # a detour without its macvtap
    await detach.perform(intent(pod, model))
    assert laboratory.changes(before, pod.dump()) == ""


async def test_a_root_qdisc_of_somebody_else_is_refused_by_a_limit(place: Any, pod: Namespace) -> None:
    pod.tc("qdisc", "add", "dev", "eth1", "root", "handle", "7:", "pfifo", "limit", "50")
    before = pod.dump()
    attach = handlers.NetworkAttach(place.paths, LIMITED)
    with pytest.raises(errors.EffectError, match="interface `eth1` has a root qdisc already"):
        await attach.perform(intent(pod))
    await attach.undo(intent(pod))
    assert laboratory.changes(before, pod.dump()) == ""


@pytest.mark.parametrize("model", ["tcfilter", "macvtap"])
async def test_a_nic_of_several_queues_in_a_real_qemu(
    place: Any, pod: Namespace, tiny: Callable[..., HypervisorSettings], model: str
) -> None:
    """As it is where the host has vhost-net; QEMU itself moves the frames here."""
    settings = tiny(vcpus=2)
    monitor = Monitor(place.paths.qmp_sock)
    launch = HypervisorLaunch(place.paths, settings, monitor)
    vm = Intent("hypervisor.launch", "", {"sandbox": "n"})
    await launch.perform(vm)
    netns.pin(pod.path, place.paths.netns)
    found = pod.inside(lambda: namespace.look(UID, settings, Network())).interfaces[0]
    wide = msgspec.structs.replace(found, queues=2)
    pod.inside(lambda: namespace.join(UID, model, [wide], SETTINGS))
    plugger = handlers.Plugger(place.paths, settings, monitor, cast(Any, None))
    assert await plugger.plug(model, wide) is True
    where = {"path": "/machine/peripheral/nic1"}
    assert await monitor.command("qom-get", {**where, "property": "mq"}) is True
    assert await monitor.command("qom-get", {**where, "property": "mac"}) == wide.mac
    await launch.undo(vm)
    await monitor.aclose()
    await handlers.NetworkAttach(place.paths, settings).undo(intent(pod, model))
    assert ours(pod) == []


async def test_ours_is_made_empty_for_every_model(place: Any) -> None:
    attach = handlers.NetworkAttach(place.paths, SETTINGS)
    wanted = Intent("network.attach", "", {"netns": "", "model": "tcfilter"})
    result = await attach.perform(wanted)
    made = {"netns": place.paths.netns, "created": True, "model": "tcfilter"}
    assert result == {**made, "interfaces": [], "routes": [], "neighbours": []}
    assert (await attach.probe(wanted)).result == result
    assert netns.is_network_namespace(place.paths.netns)
    await attach.undo(wanted)


@pytest.mark.parametrize("model", ["tcfilter", "macvtap"])
async def test_a_kernel_that_does_not_answer_is_given_up_and_what_it_did_late_is_parted(
    place: Any, pod: Namespace, model: str, monkeypatch: pytest.MonkeyPatch, all_back: Any
) -> None:
    """The interface that hangs is named; the second is never begun, and the first leaves no trace when it comes back."""
    before, go_on, begun = pod.dump(), threading.Event(), []
    real = namespace.joining.join

    def slow(netlink: Any, uid: str, model: str, interface: Interface) -> None:
        begun.append(interface.name)
        real(netlink, uid, model, interface)
        go_on.wait()

    monkeypatch.setattr(limits, "HOST_CALL_S", 2.0)
    monkeypatch.setattr(namespace.joining, "join", slow)
    with pytest.raises(errors.TimeoutExceeded, match=r"did not end within 2 s: it hangs at `eth0`") as told:
        await handlers.NetworkAttach(place.paths, SETTINGS).perform(intent(pod, model))
    assert told.value.phase == "netns"
    assert ours(pod)
    monkeypatch.setattr(limits, "HOST_CALL_S", 30.0)
    go_on.set()
    await all_back()
    assert not ours(pod)
    await handlers.NetworkDetach(place.paths, SETTINGS).perform(intent(pod, model))
    assert (begun, pod.dump()) == (["eth0"], before)
