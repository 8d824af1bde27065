# SPDX-License-Identifier: Apache-2.0
"""Goal: a pod has limits on the host as well, for the processes that its machine is made of; they follow its containers."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from kata_fsm.effects import cgroup
from kata_fsm.oci.hosting import for_pod, with_room
from kata_fsm.testing.bundle import config
from tests.support.kata import LIMIT_S, Kata, exists, wait_until

SLEEP = ("/bin/sleep", "1000")
CRI = "io.kubernetes.cri."
NONE = 1 << 60  # about what cgroup v1 says where there is no limit


def linux(path: str, **resources: Any) -> dict[str, Any]:
    return {**config(())["linux"], "cgroupsPath": path, **({"resources": resources} if resources else {})}


def require_v1(*controllers: str) -> None:
    """These tests read the files of cgroup v1; those of v2 are in tests/unit/effects/test_cgroup_limits.py."""
    for name in controllers:
        if not Path(f"/sys/fs/cgroup/{name}/cgroup.procs").exists():
            pytest.skip(f"this host has no `{name}` hierarchy of cgroup v1")


def read(path: str, file: str) -> str:
    """A file of a cgroup, in the hierarchy of its controller."""
    return Path(f"/sys/fs/cgroup/{file.split('.')[0]}{path}/{file}").read_text().strip()


def memory_for(memory_mib: int, overhead_mib: int = 512) -> int:
    found = for_pod([{"memory": 1}], memory_mib=memory_mib, overhead_mib=overhead_mib).memory
    assert found is not None
    return found


def test_the_limits_of_one_container(kata: Kata) -> None:
    """Written before its machine is born, changed by `update`, the same after a crash of the supervisor."""
    require_v1("cpu", "cpuset", "memory")
    path = f"/kf-limits-{os.getpid()}"
    limits = {
        "memory": {"limit": 64 << 20},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0", "mems": "0"},
    }
    kata.detached("box", kata.bundle("b", *SLEEP, linux=linux(path, **limits)))

    def found() -> tuple[str, ...]:
        names = ("cpuset.cpus", "cpuset.mems", "cpu.shares", "cpu.cfs_quota_us", "memory.limit_in_bytes")
        return tuple(read(path, name) for name in names)

    first = ("0", "0", "512", str(with_room(50000)), str(memory_for(256 + 64)))
    assert found() == first
    (qemu,) = kata.processes("qemu-system")
    assert "Cpus_allowed_list:\t0\n" in Path(f"/proc/{qemu}/status").read_text()

    (supervisor,) = kata.processes(" supervisor ")
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: not exists(supervisor), "the supervisor is gone")
    kata("exec", "box", "true")
    assert found() == first

    every = cgroup_text("cpuset.cpus")
    kata("update", "--cpuset-cpus", every, "--cpu-share", "300", "--cpu-quota", "70000", "box")
    assert found()[:4] == (every, "0", "300", str(with_room(70000)))
    kata("update", "--memory", "-1", "--cpu-quota", "-1", "box")
    assert found()[3] == "-1"
    assert int(found()[4]) > NONE
    kata("update", "--memory", "48m", "box")
    assert found()[4] == first[4], "the machine is as large as before"
    refused = kata("update", "--cpuset-cpus", "4095", "box", check=False)
    assert refused.returncode == 1
    assert "`cpu.cpus`: the host has" in refused.stderr
    assert found()[0] == every
    kata("delete", "--force", "box")
    assert not any(os.path.exists(each.point + path) for each in cgroup.hierarchies())


def cgroup_text(file: str) -> str:
    return Path(f"/sys/fs/cgroup/{file.split('.')[0]}/{file}").read_text().strip()


def test_a_pod_has_the_limits_of_its_living_containers(kata: Kata) -> None:
    require_v1("cpu", "cpuset", "memory")
    path = f"/kf-limits-{os.getpid()}/pod"
    keys = {f"{CRI}container-type": "sandbox", f"{CRI}sandbox-id": "pod"}
    pause = linux(path, cpu={"shares": 2})
    kata.detached("pod", kata.bundle("pod", *SLEEP, annotations=keys, linux=pause))
    every = cgroup_text("cpuset.cpus")
    assert (read(path, "cpu.shares"), read(path, "cpuset.cpus"), read(path, "cpu.cfs_quota_us")) == (
        "1024",
        every,
        "-1",
    )

    member = {**keys, f"{CRI}container-type": "container"}

    def add(name: str, **resources: Any) -> None:
        own = linux(f"{path}-{name}", **resources)
        kata.detached(name, kata.bundle(name, *SLEEP, annotations=member, linux=own))

    def found() -> tuple[str, str, str, bool]:
        limited = int(read(path, "memory.limit_in_bytes")) < NONE
        return read(path, "cpu.shares"), read(path, "cpuset.cpus"), read(path, "cpu.cfs_quota_us"), limited

    add("one", cpu={"shares": 512, "quota": 20000, "period": 50000, "cpus": "0"}, memory={"limit": 32 << 20})
    assert found() == ("512", "0", str(with_room(40000)), True)
    add("two", cpu={"shares": 100, "quota": 30000, "cpus": every}, memory={"limit": 16 << 20})
    assert found() == ("612", every, str(with_room(70000)), True)
    add("free")
    assert found() == (str(612 + 1024), every, "-1", False)
    kata("delete", "--force", "free")
    assert found() == ("612", every, str(with_room(70000)), True)
    kata("kill", "two", "KILL")
    wait_until(lambda: found() == ("512", "0", str(with_room(40000)), True), "what has ended counts no more")
    for name in ("two", "one", "pod"):
        kata("delete", "--force", name)


def test_a_set_that_the_host_does_not_have(kata: Kata) -> None:
    bundle = kata.bundle("b", *SLEEP, linux=linux("/kf-limits-x", cpu={"cpus": "0,4000-4003"}))
    done = kata("create", "--bundle", str(bundle), "box", check=False)
    assert done.returncode == 1
    assert "config.json: `linux.resources.cpu.cpus`: the host has" in done.stderr
    assert "`4000-4003`" in done.stderr
    assert kata.processes("supervisor") == []


def test_a_set_that_the_cgroup_above_does_not_allow(kata: Kata) -> None:
    """One clean message, and nothing is left."""
    require_v1("cpuset")
    every = cgroup_text("cpuset.cpus")
    if every == "0":
        pytest.skip("this host has one processor")
    above = f"/kf-limits-above-{os.getpid()}"
    directory = Path(f"/sys/fs/cgroup/cpuset{above}")
    directory.mkdir()
    try:
        (directory / "cpuset.mems").write_text("0")
        (directory / "cpuset.cpus").write_text("0")
        bundle = kata.bundle("b", *SLEEP, linux=linux(f"{above}/box", cpu={"cpus": every}))
        done = kata("create", "--bundle", str(bundle), "box", check=False)
        assert done.returncode == 1
        assert "`linux.resources.cpu.cpus` cannot be applied on the host" in done.stderr
        assert kata("list", "--quiet").stdout == ""
        assert not (directory / "box").exists()
    finally:
        directory.rmdir()
        for each in cgroup.hierarchies():
            if os.path.isdir(each.point + above):
                os.rmdir(each.point + above)


def test_a_quota_above_that_is_tighter_stays_the_one(kata: Kata) -> None:
    """As a kubelet's on the pod's cgroup: the kernel would refuse a looser one below it."""
    require_v1("cpu")
    above = f"/kf-limits-quota-{os.getpid()}"
    made = [each.point + above for each in cgroup.hierarchies()]
    for directory in made:
        os.mkdir(directory)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if Path(f"{directory}/{name}").exists():
                Path(f"{directory}/{name}").write_text(cgroup_text(name))
    try:
        Path(f"/sys/fs/cgroup/cpu{above}/cpu.cfs_quota_us").write_text("120000")
        limited = linux(f"{above}/box", cpu={"quota": 30000, "period": 100000})
        kata.detached("box", kata.bundle("b", *SLEEP, linux=limited))
        assert read(f"{above}/box", "cpu.cfs_quota_us") == "-1"
        kata("update", "--cpu-quota", "10000", "box")
        assert read(f"{above}/box", "cpu.cfs_quota_us") == str(with_room(10000))
        kata("update", "--cpu-quota", "50000", "box")
        assert read(f"{above}/box", "cpu.cfs_quota_us") == "-1"
        Path(f"/sys/fs/cgroup/cpu{above}/cpu.cfs_quota_us").write_text("110000")
        kata("delete", "--force", "box")
    finally:
        for directory in made:
            os.rmdir(directory)


def test_weights_of_io(kata: Kata) -> None:
    require_v1("blkio")
    path = f"/kf-limits-{os.getpid()}/io"
    bundle = kata.bundle("b", *SLEEP, linux=linux(path, blockIO={"weight": 300}))
    kata.detached("box", bundle)
    names = [
        name for name in ("blkio.weight", "blkio.bfq.weight") if Path(f"/sys/fs/cgroup/blkio{path}/{name}").exists()
    ]
    said = (kata.base / "log").read_text()
    if names:
        assert read(path, names[0]) == "300"
        assert "is not applied on the host" not in said
        kata("update", "--blkio-weight", "20", "box")
        assert read(path, names[0]) == "20"
    else:
        assert (
            "`linux.resources.blockIO.weight` is not applied on the host: no cgroup of the host has a control" in said
        )
    kata("delete", "--force", "box")


def test_a_machine_over_its_limit_is_killed_with_that_cause(kata: Kata) -> None:
    """With an overhead that leaves no room: what the limit is for."""
    require_v1("memory")
    (kata.base / "c.toml").write_text("[runtime]\nhost_memory_overhead = 1\n[hypervisor.qemu]\ndefault_memory = 128\n")
    path = f"/kf-limits-{os.getpid()}/small"
    script = "echo up; sleep 1000"
    bundle = kata.bundle("b", "/bin/sh", "-c", script, linux=linux(path, memory={"limit": 16 << 20}))
    runner = kata.spawn("--config", str(kata.base / "c.toml"), "run", "--bundle", str(bundle), "c1")
    assert runner.stdout is not None
    with runner, runner.stdout:
        assert runner.stdout.readline() == "up\n"
        limit = Path(f"/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")
        assert int(limit.read_text()) == memory_for(128 + 16, 1)
        # Its own limit, made tighter than any setting makes it: some of what it holds already is to go.
        used = int(limit.with_name("memory.usage_in_bytes").read_text())
        limit.write_text(str(used + (2 << 20)))
        kata("exec", "c1", "/bin/dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=60", check=False)
        assert runner.wait(LIMIT_S) == 255
    rows = [row for row in kata.story("c1") if row.get("machine") == "sandbox" and row["what"] == "stop"]
    assert rows[0]["detail"]["cause"]["kind"] == "host_oom", rows
