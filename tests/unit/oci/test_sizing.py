# SPDX-License-Identifier: Apache-2.0
"""Goal: a machine is large enough for its container's limits, and no larger than its host."""

from __future__ import annotations

import msgspec
import pytest

from kata_fsm.oci.sizing import Wanted, sized, wanted
from kata_fsm.oci.spec import Resources

CRI = "io.kubernetes.cri.sandbox-"


@pytest.mark.parametrize(
    ("resources", "annotations", "expected"),
    [
        (None, {}, Wanted(0, 0)),
        ({"memory": {"limit": -1}, "cpu": {"quota": -1, "period": 100000}}, {}, Wanted(0, 0)),
        ({"memory": {"limit": 0}, "cpu": {"quota": 0}}, {}, Wanted(0, 0)),
        ({"memory": {"limit": (64 << 20) + 1}}, {}, Wanted(65, 0)),
        ({"cpu": {"quota": 50000, "period": 100000}}, {}, Wanted(0, 1)),
        ({"cpu": {"quota": 250000, "period": 100000}}, {}, Wanted(0, 3)),
        ({"cpu": {"shares": 2}}, {CRI + "memory": str(1 << 30), CRI + "cpu-quota": "200000", CRI + "cpu-period": "100000"},
         Wanted(1024, 2)),
        (None, {CRI + "memory": "much"}, Wanted(0, 0)),
        ({"cpu": {"cpus": "0-2,5"}}, {}, Wanted(0, 4)),
        ({"cpu": {"cpus": "0-2,5", "quota": 150000, "period": 100000}}, {}, Wanted(0, 2)),
        ({"cpu": {"cpus": ""}}, {}, Wanted(0, 0)),
    ],
)  # fmt: skip
def test_what_limits_ask_for(resources, annotations, expected) -> None:
    typed = None if resources is None else msgspec.convert(resources, Resources)
    assert wanted(typed, annotations) == expected


def test_the_host_bounds_it_and_the_configuration_is_the_least() -> None:
    def size(memory: int, cpus: int) -> dict[str, int]:
        return sized(Wanted(memory, cpus), memory_mib=256, vcpus=1, host_mib=2048, host_cpus=2)

    assert size(0, 0) == {"memory_mib": 256, "vcpus": 1}
    assert size(64, 2) == {"memory_mib": 320, "vcpus": 2}
    assert size(1 << 20, 64) == {"memory_mib": 2048, "vcpus": 2}
    assert sized(Wanted(1, 1), memory_mib=4096, vcpus=4, host_mib=2048, host_cpus=2) == {"memory_mib": 4096, "vcpus": 4}
