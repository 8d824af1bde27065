# SPDX-License-Identifier: Apache-2.0
"""Goal: of the devices in a config.json each is made in the guest, given to it, left out, or refused by name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kata_fsm.errors import SpecError
from kata_fsm.oci import devices
from kata_fsm.oci.devices import Disk, Wanted
from kata_fsm.oci.example import example
from kata_fsm.oci.guest import Adapted, Source, adapt
from kata_fsm.oci.sandbox import SINGLE
from kata_fsm.oci.spec import DeviceRule, Loaded, Spec

DENY: dict[str, Any] = {"allow": False, "access": "rwm"}
ALLOW: dict[str, Any] = {"allow": True, "access": "rwm"}
NULL = {"type": "c", "path": "/dev/null", "major": 1, "minor": 3}
KMSG = {"type": "c", "path": "/dev/kmsg", "major": 1, "minor": 11}
LOOP = {"type": "b", "path": "/dev/xvda", "major": 7, "minor": 3}
THERE = {"/sys/dev/block/7:3", "/sys/dev/block/7:4", "/sys/dev/block/254:0"}


def rule(access: str, major: int | None = None, minor: int | None = None, *, allow: bool = True) -> dict[str, Any]:
    return {"allow": allow, "type": "b", "major": major, "minor": minor, "access": access}


def adapted(*asked: dict[str, Any], rules: list[dict[str, Any]] | None, spare: bool = False, **linux: Any) -> Adapted:
    document = example()
    document["linux"].update(devices=list(asked), resources={"devices": rules}, **linux)
    loaded = Loaded(msgspec.convert(document, Spec), document, "/bundle", "/bundle/rootfs")

    def look(path: str) -> Source:
        return Source("dir" if path in THERE else "missing")

    return adapt(loaded, key="key", kind=SINGLE, look=look, spare_devices=spare)


def rules_of(found: Adapted) -> list[dict[str, Any]]:
    return list(found.guest_spec["linux"]["resources"]["devices"])


def test_a_block_device_stays_in_the_document_and_becomes_a_disk() -> None:
    found = adapted(NULL, LOOP, rules=[DENY, rule("r", 7, 3)])
    assert found.disks == [Disk(7, 3, True, "/dev/xvda")]
    assert found.guest_spec["linux"]["devices"] == [NULL, LOOP]
    assert rules_of(found) == [DENY, {**rule("rwm", 7, 3), "allow": False}, rule("r", 7, 3)]
    assert (found.warnings, found.left_out) == ([], [])


@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        ([], "rwm"),
        ([DENY], ""),
        ([DENY, rule("r", 7, 3)], "r"),
        ([DENY, rule("rw", 7, 4)], ""),
        ([DENY, rule("rw", 7)], "rw"),
        ([DENY, rule("rw", 7, -1)], "rw"),
        ([DENY, rule("rw")], "rw"),
        ([DENY, rule("rw", 7, 3), rule("w", 7, 3, allow=False)], "r"),
        ([DENY, {"allow": True, "type": "c", "access": "rwm"}], ""),
        ([DENY, {"allow": True, "type": "a"}], "rwm"),
        ([rule("w", 7, 3, allow=False), ALLOW], "rwm"),
    ],
)
def test_the_last_rule_that_names_a_device_counts(rules: list[dict[str, Any]], allowed: str) -> None:
    typed = msgspec.convert(rules, list[DeviceRule])
    assert devices.access(typed, "b", 7, 3) == allowed
    found = adapted(LOOP, rules=rules)
    assert [disk.readonly for disk in found.disks] == ["w" not in allowed]
    if rules:
        own = [{**rule("rwm", 7, 3), "allow": False}, *([rule(allowed, 7, 3)] if allowed else [])]
        assert rules_of(found)[-len(own) :] == own


def test_rules_for_block_devices_of_the_host_that_are_not_given_do_not_reach_the_guest() -> None:
    rules = [DENY, rule("m"), rule("rw", 7), rule("rwm", 254, 0), rule("rwm", 8, 0, allow=False), rule("r", 7, 3)]
    found = adapted(LOOP, rules=rules)
    assert rules_of(found) == [DENY, rule("m"), {**rule("rwm", 7, 3), "allow": False}, rule("rwm", 7, 3)]
    assert found.warnings == [
        "config.json: `linux.resources.devices[3]` is not applied: the guest is given no such block device"
    ]


def test_a_disk_with_two_names_has_its_rules_once() -> None:
    found = adapted(LOOP, {**LOOP, "path": "/dev/again"}, rules=[DENY, rule("rw", 7, 3)])
    assert [disk.path for disk in found.disks] == ["/dev/xvda", "/dev/again"]
    assert len(rules_of(found)) == 3
    assert devices.wanted_by({"disks": msgspec.to_builtins(found.disks)}) == [Wanted(7, 3, False)]


@pytest.mark.parametrize(
    ("device", "told"),
    [
        (KMSG, r"`linux.devices\[0\]`: host device `/dev/kmsg` \(c 1:11\) cannot be given to the guest"),
        ({**KMSG, "type": "u"}, r"`/dev/kmsg` \(u 1:11\) cannot be given to the guest"),
        ({**LOOP, "major": 9}, r"`/dev/xvda` \(b 9:3\) does not exist"),
    ],
)
def test_what_cannot_be_given_is_refused_by_name(device: dict[str, Any], told: str) -> None:
    for spare in (False, True):  # nobody asked for everything
        with pytest.raises(SpecError, match=told):
            adapted(device, rules=[DENY], spare=spare)


def test_a_user_namespace_and_a_disk_do_not_go_together() -> None:
    with pytest.raises(SpecError, match="user namespace"):
        adapted(LOOP, rules=[DENY], namespaces=[{"type": "user"}, {"type": "network"}])


def test_a_privileged_container_is_refused_with_the_key_that_leaves_the_hosts_devices_out() -> None:
    with pytest.raises(SpecError) as caught:
        adapted(NULL, KMSG, rules=[ALLOW])
    assert "`runtime.privileged_without_host_devices`" in str(caught.value.hint)
    found = adapted(NULL, KMSG, LOOP, rules=[ALLOW], spare=True)
    assert found.guest_spec["linux"]["devices"] == [NULL]
    assert (found.disks, found.left_out, rules_of(found)) == ([], ["/dev/kmsg", "/dev/xvda"], [ALLOW])
    (warning,) = found.warnings
    assert "`/dev/kmsg`, `/dev/xvda`" in warning


def test_without_that_key_a_privileged_container_is_given_disks() -> None:
    found = adapted(NULL, LOOP, rules=[ALLOW])
    assert found.disks == [Disk(7, 3, False, "/dev/xvda")]


def test_who_may_use_every_device() -> None:
    def everything(*rules: dict[str, Any]) -> bool:
        return devices.allows_everything(msgspec.convert(list(rules), list[DeviceRule]))

    assert everything(ALLOW)
    assert everything(DENY, {"allow": True, "type": "a", "access": "rwm"})
    assert everything(rule("rwm"), {"allow": True, "type": "c", "access": "rwm"})
    assert not everything()
    assert not everything(ALLOW, DENY)
    assert not everything(DENY, rule("rwm"))
    assert not everything(DENY, rule("m"), {"allow": True, "type": "c", "access": "m"})


def test_a_serial_number_fits_into_virtios_twenty_bytes() -> None:
    assert len(Wanted(4095, (1 << 20) - 1, True).serial.encode()) <= 20
