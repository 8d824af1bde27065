# SPDX-License-Identifier: Apache-2.0
"""Goal: the engine's cgroup holds everything that a pod costs on the host, and is left empty and removed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kata_fsm.effects import cgroup
from kata_fsm.testing.bundle import config
from tests.support.kata import Kata, exists, wait_until

SLEEP = ("/bin/sleep", "1000")
CRI_O = "io.kubernetes.cri-o."


@pytest.fixture
def parent() -> Iterator[str]:
    """A cgroup's path in every hierarchy, made beforehand and still there, empty, afterwards: as a kubelet's pod has one."""
    path = f"/kf-test-{os.getpid()}"
    made = [each.point + path for each in cgroup.hierarchies()]
    for directory in made:
        os.mkdir(directory)
        for name in ("cpuset.cpus", "cpuset.mems"):  # a new v1 cpuset takes no process before it has these
            given = Path(directory).parent / name
            if given.exists():
                (Path(directory) / name).write_text(given.read_text())
    yield path
    for directory in made:
        os.rmdir(directory)


def linux(path: str, **resources: Any) -> dict[str, Any]:
    """The `linux` section of a specification with that cgroup."""
    return {**config(())["linux"], "cgroupsPath": path, **({"resources": resources} if resources else {})}


def inside(path: str) -> dict[str, set[int]]:
    """The processes in a cgroup's path, by hierarchy."""
    return {each.name: set(cgroup.pids(each.point + path)) for each in cgroup.hierarchies()}


def own(kata: Kata) -> set[int]:
    """The sandbox's own processes."""
    return {pid for word in ("qemu-system", " supervisor ", "virtiofsd") for pid in kata.processes(word)}


def test_everything_of_a_sandbox_is_in_its_cgroup(kata: Kata, parent: str) -> None:
    path = f"{parent}/pod/box"
    bundle = kata.bundle("b", *SLEEP, linux=linux(path, memory={"limit": 32 << 20}))
    kata.detached("box", bundle)
    processes = own(kata)
    assert len(processes) >= 3
    for name, found in inside(path).items():
        assert processes <= found, f"{name}: {processes} of {found}"
    kata("exec", "box", "sh", "-c", "dd if=/dev/zero of=/dev/shm/much bs=1M count=60; true")  # more than the limit
    (memory,) = [each for each in cgroup.hierarchies() if "memory" in each.name.split(",") or each.unified][:1]
    limit = Path(f"{memory.point}{path}/memory.limit_in_bytes")
    if limit.exists():
        assert int(limit.read_text()) > 512 << 20, "the container's limit is not the machine's"

    (supervisor,) = kata.processes(" supervisor ")
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: not exists(supervisor), "the supervisor is gone")
    wait_until(lambda: kata.processes(" supervisor "), "the shim has started another")
    kata("exec", "box", "true")
    supervisor = kata.process(" supervisor ")
    wait_until(lambda: all(supervisor in found for found in inside(path).values()), "it has gone where it belongs")

    kata("delete", "--force", "box")
    assert not any(os.path.exists(f"{each.point}{parent}/pod") for each in cgroup.hierarchies())
    assert not any(found for found in inside(parent).values())


def test_the_keys_of_cri_o(kata: Kata, parent: str) -> None:
    pod = kata.bundle(
        "pod",
        *SLEEP,
        annotations={f"{CRI_O}ContainerType": "sandbox", f"{CRI_O}SandboxID": "pod"},
        linux=linux(f"{parent}/crio-pod"),
    )
    kata.detached("pod", pod)
    member = {f"{CRI_O}ContainerType": "container", f"{CRI_O}SandboxID": "pod"}
    for name in ("one", "two"):
        changed = linux(f"{parent}/crio-{name}")
        kata.detached(name, kata.bundle(name, *SLEEP, annotations=member, linux=changed))
    script = ("cat", "/proc/sys/kernel/random/boot_id")
    assert len({kata("exec", name, *script).stdout for name in ("pod", "one", "two")}) == 1
    assert len(kata.processes("qemu-system")) == 1
    found = inside(f"{parent}/crio-one")
    assert all(pids and not pids & own(kata) for pids in found.values()), "a member's holds its own shim alone"
    for name in ("one", "two", "pod"):
        kata("delete", "--force", name)
    assert not any(found for found in inside(parent).values())


def test_the_limit_above_is_the_machines(kata: Kata, parent: str) -> None:
    """Whoever limits a pod's cgroup below what its machine needs is told so: QEMU was killed for it."""
    limits = [Path(f"{each.point}{parent}/memory.limit_in_bytes") for each in cgroup.hierarchies()]
    given = next((path for path in limits if path.exists()), None)
    if given is None:
        pytest.skip("this host has no memory controller of cgroup v1")
    given.write_text(str(100 << 20))
    bundle = kata.bundle("b", *SLEEP, linux=linux(f"{parent}/box"))
    done = kata("create", "--bundle", str(bundle), "box", check=False)
    assert done.returncode != 0
    assert "OOM killer" in done.stderr
    assert not any(found for found in inside(parent).values())
