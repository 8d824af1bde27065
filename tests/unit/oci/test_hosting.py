# SPDX-License-Identifier: Apache-2.0
"""Goal: a pod's limits on the host protect the host, and never stop what its containers may do."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kata_fsm.limits import HOST_CPU_PERIOD_US
from kata_fsm.oci.hosting import Limits, asked, for_pod, merged, with_room
from kata_fsm.oci.spec import Resources

MIB = 1 << 20


def pod(*containers: dict[str, Any], memory_mib: int = 256, overhead_mib: int = 512) -> Limits:
    return for_pod(containers, memory_mib=memory_mib, overhead_mib=overhead_mib)


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        (None, {}),
        ({}, {}),
        ({"memory": {}, "cpu": {}, "blockIO": {}}, {}),
        ({"memory": {"limit": 0}, "cpu": {"shares": 0, "quota": 0, "cpus": ""}, "blockIO": {"weight": 0}}, {}),
        ({"memory": {"limit": 5}, "cpu": {"shares": 2, "quota": 3, "period": 4, "cpus": "0", "mems": "1"}},
         {"memory": 5, "shares": 2, "quota": 3, "period": 4, "cpus": "0", "mems": "1"}),
        ({"memory": {"limit": -1, "reservation": 7, "swap": 9}, "pids": {"limit": 3}, "blockIO": {"weight": 20}},
         {"memory": -1, "io_weight": 20}),
    ],
)  # fmt: skip
def test_what_of_a_containers_resources_concerns_the_host(resources: Any, expected: dict[str, Any]) -> None:
    typed = None if resources is None else msgspec.convert(resources, Resources)
    assert asked(typed) == expected


@pytest.mark.parametrize(
    ("known", "change", "expected"),
    [
        ({}, {}, {}),
        ({"memory": 5, "cpus": "0"}, {}, {"memory": 5, "cpus": "0"}),
        ({"memory": 5}, {"memory": -1}, {}),
        ({}, {"memory": -1, "quota": -1}, {}),
        ({"quota": 5, "period": 100}, {"quota": 7}, {"quota": 7, "period": 100}),
        ({"cpus": "0", "shares": 2}, {"cpus": "1"}, {"cpus": "1", "shares": 2}),
    ],
)
def test_an_update(known: dict[str, Any], change: dict[str, Any], expected: dict[str, Any]) -> None:
    assert merged(known, change) == expected


@pytest.mark.parametrize("containers", [(), ({},), ({}, {}), ({"period": 100000},)])
def test_who_asks_for_nothing_is_not_limited(containers: tuple[dict[str, Any], ...]) -> None:
    assert pod(*containers) == Limits()


@pytest.mark.parametrize(
    ("sets", "union"),
    [
        (["0"], "0"),
        (["0", None], "0"),
        (["0-1", "3"], "0-1,3"),
        (["2,0", "1"], "0-2"),
        (["0", "0"], "0"),
    ],
)
def test_sets_are_united(sets: list[str | None], union: str) -> None:
    for name in ("cpus", "mems"):
        found = pod(*({name: text} if text else {} for text in sets))
        assert getattr(found, name) == union
        assert found == Limits(**{name: union})


def test_of_who_only_holds_the_pod_the_sets_count() -> None:
    pause = {"cpus": "3", "mems": "1", "shares": 2}
    assert for_pod([], memory_mib=256, overhead_mib=512, holder=pause) == Limits(cpus="3", mems="1")
    one = {"cpus": "0", "quota": 50000, "memory": 5}
    found = for_pod([one], memory_mib=256, overhead_mib=512, holder=pause)
    assert (found.cpus, found.mems, found.shares) == ("0,3", "1", None)
    assert found.quota == with_room(50000)
    assert found.memory


@pytest.mark.parametrize(
    ("shares", "total"),
    [
        ([512], 512),
        ([512, 100], 612),
        ([512, None], 512 + 1024),
        ([1], 2),  # the kernel's least
        ([1 << 18, 5], 1 << 18),
        ([1 << 40], 1 << 18),
    ],
)
def test_shares_are_added(shares: list[int | None], total: int) -> None:
    assert pod(*({"shares": each} if each else {} for each in shares)) == Limits(shares=total)


@pytest.mark.parametrize(
    ("quotas", "total"),
    [
        ([(50000, 100000)], 50000),
        ([(50000, None)], 50000),
        ([(50000, 50000)], HOST_CPU_PERIOD_US),
        ([(1, 3)], 33334),  # rounded up
        ([(50000, 100000), (20000, 10000)], 250000),
        ([(50000, 100000), None], None),
        ([(-1, 100000)], None),
    ],
)
def test_quotas_are_added_with_room(quotas: list[tuple[int, int | None] | None], total: int | None) -> None:
    each: list[dict[str, Any]] = [
        {} if one is None else {"quota": one[0], **({"period": one[1]} if one[1] else {})} for one in quotas
    ]
    assert pod(*each).quota == (None if total is None else with_room(total))
    assert (with_room(0), with_room(50000)) == (100000, 175000)


def test_memory_is_the_machines_and_room() -> None:
    """By its size, not by the containers' limits: it was sized by them and does not shrink."""
    limited = pod({"memory": 64 * MIB}, memory_mib=320)
    assert limited == pod({"memory": MIB}, {"memory": 5 * MIB}, memory_mib=320)
    assert limited.memory == (320 + 512 + 320 // 64 + 800) * MIB
    assert pod({"memory": 64 * MIB}, {}) == Limits()
    assert pod({"memory": -1}) == Limits()
    assert pod({"memory": 5}, overhead_mib=0) == Limits(), "0: no limit of memory"
    large = pod({"memory": 5}, memory_mib=16384, overhead_mib=1)
    assert large.memory == (16384 + 1 + 256 + 2560) * MIB, "virtiofsd opens a million files at most"


@pytest.mark.parametrize(
    ("weights", "total"), [([10], 10), ([300, 200], 500), ([600, 600], 1000), ([10, None], None)]
)  # fmt: skip
def test_weights_of_io_are_added(weights: list[int | None], total: int | None) -> None:
    assert pod(*({"io_weight": each} if each else {} for each in weights)) == Limits(io_weight=total)
