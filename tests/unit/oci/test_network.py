# SPDX-License-Identifier: Apache-2.0
"""Kata's JSON of interfaces and routes, read in any case and strictly, and printed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kata_fsm.errors import UsageError
from kata_fsm.oci.network import interface_in, interface_out, route_out, routes_in


def test_an_interface_as_kata_writes_it() -> None:
    given = {
        "Device": "eth1",
        "Name": "eth1",
        "IPAddresses": [{"Family": 2, "Address": "10.0.0.5", "Mask": "24"}, {"Address": "fd00::5", "Mask": 64}],
        "Mtu": 1400,
        "HwAddr": "02:AB:00:00:00:01",
        "PciPath": "",
        "LinkType": "veth",
        "RawFlags": 0,
    }
    expected = {
        "name": "eth1",
        "mac": "02:ab:00:00:00:01",
        "mtu": 1400,
        "addresses": [
            {"family": 4, "address": "10.0.0.5", "prefix": 24},
            {"family": 6, "address": "fd00::5", "prefix": 64},
        ],
    }
    assert interface_in(json.dumps(given)) == expected
    assert interface_in(json.dumps({key.lower(): value for key, value in given.items()})) == expected
    bare = {"name": "eth1", "mac": "", "mtu": 0, "addresses": []}
    assert interface_in('{"name": "eth1", "IPAddresses": null}') == bare


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not an object"),
        ("{}", "`Name` is missing"),
        ('{"Name": 3}', "`name` is not a text"),
        ('{"Name": "a", "Colour": "red"}', "no field `Colour`"),
        ('{"Name": "a", "Mtu": -1}', "legal is 0 to 65535"),
        ('{"Name": "a", "Mtu": true}', "legal is 0 to 65535"),
        ('{"Name": "a", "IPAddresses": {}}', "`ipaddresses` is not a list"),
        ('{"Name": "a", "IPAddresses": [{"Address": "10.0.0.300", "Mask": "24"}]}', "10.0.0.300"),
        ('{"Name": "a", "IPAddresses": [{"Address": "10.0.0.3", "Mask": "77"}]}', "77"),
    ],
)
def test_an_interface_that_is_none(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        interface_in(text)


def test_routes_of_both_families() -> None:
    given: list[dict[str, Any]] = [
        {"Dest": "", "Gateway": "10.0.0.1", "Device": "eth0", "Metric": 7},
        {"Dest": "default", "Gateway": "fe80::1", "Device": "eth0", "Flags": 4},
        {"dest": "10.1.2.3/16", "device": "eth0", "scope": 253, "source": "10.0.0.2", "mtu": 1300},
        {"Dest": "::/0", "Gateway": "fd00::1", "Device": "eth1"},
    ]
    plain = {"dest": "", "gateway": "", "source": "", "scope": 0, "metric": 0, "mtu": 0, "onlink": False}
    assert routes_in(json.dumps(given)) == [
        {**plain, "family": 4, "device": "eth0", "gateway": "10.0.0.1", "metric": 7},
        {**plain, "family": 6, "device": "eth0", "gateway": "fe80::1", "onlink": True},
        {
            **plain,
            "family": 4,
            "device": "eth0",
            "dest": "10.1.0.0/16",
            "scope": 253,
            "source": "10.0.0.2",
            "mtu": 1300,
        },
        {**plain, "family": 6, "device": "eth1", "gateway": "fd00::1"},
    ]


@pytest.mark.parametrize(
    ("route", "problem"),
    [
        ({"Dest": "10.0.0.0/8"}, "`Device` is missing"),
        ({"Device": "eth0"}, "neither `Dest` nor `Gateway`"),
        ({"Device": "eth0", "Dest": "10.0.0.0/8", "Gateway": "fd00::1"}, "mixes IPv4 and IPv6"),
        ({"Device": "eth0", "Dest": "10.0.0.0/99"}, "`dest`"),
        ({"Device": "eth0", "Gateway": "nobody"}, "`gateway`"),
        ({"Device": "eth0", "Gateway": "10.0.0.1", "Scope": 256}, "legal is 0 to 255"),
        ("default", "is not an object"),
    ],
)
def test_a_route_that_is_none(route: object, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        routes_in(json.dumps([route]))


def test_there_may_not_be_too_many() -> None:
    with pytest.raises(UsageError, match="legal is up to `1024`"):
        routes_in(json.dumps([{}] * 1025))


def test_what_the_guest_has_is_printed_with_katas_keys() -> None:
    message = {
        "name": "eth0",
        "device": "eth0",
        "hwAddr": "02:00:00:00:00:01",
        "mtu": 1500,
        "IPAddresses": [{"address": "::1", "mask": "64", "family": 1}],
    }
    assert interface_out(message) == {
        "Device": "eth0",
        "Name": "eth0",
        "IPAddresses": [{"Family": 10, "Address": "::1", "Mask": "64"}],
        "Mtu": 1500,
        "RawFlags": 0,
        "HwAddr": "02:00:00:00:00:01",
        "PciPath": "",
        "LinkType": "",
    }
    assert route_out({"gateway": "10.0.0.1", "device": "eth0", "metric": 5})["Metric"] == 5
    assert routes_in(json.dumps([route_out({"gateway": "10.0.0.1", "device": "eth0"})]))[0]["gateway"] == "10.0.0.1"
