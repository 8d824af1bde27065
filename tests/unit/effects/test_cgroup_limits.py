# SPDX-License-Identifier: Apache-2.0
"""Goal: limits reach the files of both versions of cgroups, only where we have made the directory, and are let go of again.

The directories are ordinary ones with such files in them: what a kernel does with them is tried in tests/integration.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kata_fsm import errors
from kata_fsm.effects import cgroup_limits
from kata_fsm.effects.cgroup import Hierarchy
from kata_fsm.effects.cgroup_limits import Place, apply, io_weight_of, systemds, told, weight_of
from kata_fsm.oci.hosting import FIELDS, Limits
from tests.unit.effects.conftest import Place as Directory

V1 = {
    "cpuset.cpus": "0-3",
    "cpuset.mems": "0",
    "cpu.shares": "1024",
    "cpu.cfs_quota_us": "-1",
    "cpu.cfs_period_us": "50000",
    "memory.limit_in_bytes": "9223372036854771712",
    "blkio.bfq.weight": "100",
}
V2 = {
    "cpuset.cpus": "",
    "cpuset.mems": "",
    "cpuset.cpus.effective": "0-1",
    "cpuset.mems.effective": "0",
    "cpu.weight": "100",
    "cpu.max": "max 100000",
    "memory.max": "max",
    "memory.current": "1000",
    "memory.stat": "anon 700\ninactive_file 200\nactive_file 100",
    "io.weight": "default 100\n8:0 50",
}
EVERY = Limits(cpus="0-1", mems="0", shares=512, quota=150000, memory=1 << 30, io_weight=500)


class Fake:
    """A hierarchy's root with one cgroup below `above`, whose files say what they usually do."""

    def __init__(self, top: Path, files: dict[str, str], *, unified: bool, ours: bool = True) -> None:
        self.directory = top / "above" / "box"
        self.directory.mkdir(parents=True)
        for where in (top, top / "above", self.directory):
            for name, text in files.items():
                (where / name).write_text(text)
        self.place = Place(Hierarchy("unified" if unified else "all", str(top), unified), str(self.directory), ours)

    def says(self, name: str) -> str:
        return (self.directory / name).read_text().strip()


@pytest.fixture
def v1(place: Directory) -> Fake:
    return Fake(place.work / "v1", V1, unified=False)


@pytest.fixture
def v2(place: Directory) -> Fake:
    return Fake(place.work / "v2", V2, unified=True)


def test_every_limit_in_version_1(v1: Fake) -> None:
    done = apply([v1.place], EVERY)
    assert {os.path.basename(path): value for path, value in done.written.items()} == {
        "cpuset.cpus": "0-1",
        "cpu.shares": "512",
        "cpu.cfs_quota_us": "150000",
        "memory.limit_in_bytes": str(1 << 30),
        "blkio.bfq.weight": "500",
    }
    assert done.unheld == {}
    assert v1.says("cpuset.cpus") == "0-1"
    assert (v1.says("cpu.cfs_quota_us"), v1.says("cpu.cfs_period_us")) == ("150000", "100000")
    assert apply([v1.place], EVERY).written == {}, "it says so already"
    apply([v1.place], Limits())
    assert v1.says("cpuset.cpus") == "0-3", "as the one above"
    assert (v1.says("cpu.shares"), v1.says("cpu.cfs_quota_us"), v1.says("blkio.bfq.weight")) == ("1024", "-1", "100")
    assert v1.says("memory.limit_in_bytes") == "-1"


def test_every_limit_in_version_2(v2: Fake) -> None:
    done = apply([v2.place], EVERY)
    assert {os.path.basename(path): value for path, value in done.written.items()} == {
        "cpuset.mems": "0",
        "cpuset.cpus": "0-1",
        "cpu.weight": "20",
        "cpu.max": "150000 100000",
        "memory.max": str(1 << 30),
        "io.weight": "4950",
    }
    assert done.unheld == {}
    assert apply([v2.place], EVERY).written == {}
    apply([v2.place], Limits(shares=512))
    assert (v2.says("cpuset.cpus"), v2.says("cpu.weight"), v2.says("cpu.max")) == ("", "20", "max 100000")
    assert (v2.says("memory.max"), v2.says("io.weight")) == ("max", "100")


def test_what_somebody_else_has_set_stays(v1: Fake, v2: Fake) -> None:
    (v1.directory / "cpu.shares").write_text("77")
    (v2.directory / "cpu.max").write_text("5000 100000")
    assert apply([v1.place, v2.place], Limits()).written == {}
    assert (v1.says("cpu.shares"), v2.says("cpu.max")) == ("77", "5000 100000")


def test_a_cgroup_that_was_there_before_is_left_as_it_is(place: Directory) -> None:
    theirs = Fake(place.work / "v1", V1, unified=False, ours=False)
    done = apply([theirs.place], EVERY)
    assert done.written == {}
    assert set(done.unheld) == set(FIELDS)
    assert theirs.says("cpu.shares") == "1024"
    (line,) = told(apply([theirs.place], Limits(cpus="0")).unheld)
    assert line.startswith("`linux.resources.cpu.cpus` is not applied on the host: the cgroup")


def test_what_the_host_has_no_control_for_is_named(v1: Fake) -> None:
    for name in ("cpuset.cpus", "blkio.bfq.weight"):
        (v1.directory / name).unlink()
    assert told(apply([v1.place], EVERY).unheld) == [
        f"`{field}` is not applied on the host: no cgroup of the host has a control for it"
        for field in ("linux.resources.cpu.cpus", "linux.resources.blockIO.weight")
    ]
    assert told(apply([], Limits()).unheld) == []


def test_one_file_is_enough(v1: Fake, v2: Fake) -> None:
    """On a hybrid host each controller is in one of the trees."""
    for name in V1:
        if not name.startswith("cpu."):
            (v1.directory / name).unlink()
    for name in ("cpu.weight", "cpu.max"):
        (v2.directory / name).unlink()
    assert apply([v1.place, v2.place], EVERY).unheld == {}
    assert (v1.says("cpu.shares"), v2.says("memory.max")) == ("512", str(1 << 30))


@pytest.mark.parametrize(
    ("quota", "period", "kept"), [(120000, 100000, "-1"), (50000, 25000, "150000"), (-1, 100000, "150000")]
)
def test_a_tighter_quota_above_stays_the_one(v1: Fake, quota: int, period: int, kept: str) -> None:
    above = v1.directory.parent
    (above / "cpu.cfs_quota_us").write_text(str(quota))
    (above / "cpu.cfs_period_us").write_text(str(period))
    apply([v1.place], Limits(quota=150000))
    assert v1.says("cpu.cfs_quota_us") == kept


def test_memory_in_use_is_never_taken_away(v2: Fake) -> None:
    """The kernel of version 2 would kill for it. What files have cached does not count."""
    apply([v2.place], Limits(memory=800))
    assert v2.says("memory.max") == "800"
    with pytest.raises(
        errors.EffectError, match=r"`linux.resources.memory.limit` cannot be applied on the host"
    ) as told:
        apply([v2.place], Limits(memory=600))
    assert "use more already" in (told.value.hint or "")
    assert v2.says("memory.max") == "800"
    apply([v2.place], Limits())
    assert v2.says("memory.max") == "max"


def test_a_set_that_would_not_be_in_force_is_refused(v2: Fake) -> None:
    """The kernel of version 2 takes any set, and applies another one."""
    with pytest.raises(
        errors.EffectError, match=r"`linux.resources.cpu.cpus` .*: only `0-1` of it would be in force"
    ) as told:
        apply([v2.place], Limits(cpus="1-2"))
    assert told.value.hint == "the cgroup above allows fewer"
    assert v2.says("cpuset.cpus") == ""


def test_a_file_that_refuses_is_an_error_that_names_the_field(v1: Fake) -> None:
    (v1.directory / "cpuset.cpus").unlink()
    (v1.directory / "cpuset.cpus").mkdir()
    with pytest.raises(errors.EffectError, match=r"`linux.resources.cpu.cpus` cannot be applied on the host: `.*cpus`"):
        apply([v1.place], EVERY)


def test_weights_are_the_kernels() -> None:
    assert [weight_of(shares) for shares in (2, 1024, 1 << 18)] == [1, 39, 10000]
    assert [io_weight_of(weight) for weight in (10, 500, 1000)] == [1, 4950, 10000]


def test_the_properties_of_systemd() -> None:
    unset = (1 << 64) - 1
    assert {name: value for name, _, value in systemds(EVERY, unified=False)} == {
        "CPUQuotaPerSecUSec": 1_500_000,
        "CPUShares": 512,
        "MemoryLimit": 1 << 30,
        "BlockIOWeight": 500,
    }
    assert {name: value for name, _, value in systemds(EVERY, unified=True)} == {
        "CPUQuotaPerSecUSec": 1_500_000,
        "CPUWeight": 20,
        "MemoryMax": 1 << 30,
        "IOWeight": 4950,
        "AllowedCPUs": b"\x03",
        "AllowedMemoryNodes": b"\x01",
    }
    assert {value for _, kind, value in systemds(Limits(), unified=True) if kind == "t"} == {unset}
    assert {value for _, kind, value in systemds(Limits(), unified=True) if kind == "ay"} == {b""}
    assert cgroup_limits._bits("0,9,16") == b"\x01\x02\x01"
