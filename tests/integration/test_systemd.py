# SPDX-License-Identifier: Apache-2.0
"""Goal: with `--systemd-cgroup` systemd makes the cgroups, as units that it knows; without systemd one line says so."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_fsm.testing.bundle import config
from tests.support.engines import require_packages
from tests.support.kata import COMMAND, Kata, clean_up_by_force, exists, kill_rest, wait_until
from tests.support.machine import Machine, systemd

SLEEP = ("/bin/sleep", "1000")


@pytest.fixture
def machine(kata: Kata) -> Iterator[Machine]:
    """A systemd; the command of `kata` runs under it."""
    require_packages("systemd")
    with systemd(kata.base) as machine:
        wrapper = kata.base / "kata-fsm"
        wrapper.write_text(f'#!/bin/sh\nexec {" ".join(machine.argv(str(COMMAND)))} --systemd-cgroup "$@"\n')
        wrapper.chmod(0o755)
        kata.command = wrapper
        try:
            yield machine
        finally:
            clean_up_by_force(kata)
            kill_rest(kata)
            kata.command = COMMAND


def bundle(kata: Kata, name: str, path: str, **changes: object) -> Path:
    return kata.bundle(name, *SLEEP, linux={**config(())["linux"], "cgroupsPath": path}, **changes)


def cgroups(pid: int) -> list[str]:
    return [line.split(":", 2)[2] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]


def test_scopes_are_systemds(kata: Kata, machine: Machine) -> None:
    keys = "io.kubernetes.cri-o."
    pod = {f"{keys}ContainerType": "sandbox", f"{keys}SandboxID": "pod"}
    member = {**pod, f"{keys}ContainerType": "container"}
    kata.detached("pod", bundle(kata, "pod", "kf-test.slice:kf:pod", annotations=pod))
    kata.detached("box", bundle(kata, "box", "kf-test.slice:kf:box", annotations=member))
    assert machine.units("kf-*.scope") == {"kf-pod.scope", "kf-box.scope"}
    (qemu,), (supervisor,) = kata.processes("qemu-system"), kata.processes(" supervisor ")
    for pid in (qemu, supervisor):
        assert any(path.endswith("/kf.slice/kf-test.slice/kf-pod.scope") for path in cgroups(pid))
    (shim,) = kata.processes(" shim ", "--container box")
    assert any(path.endswith("/kf-test.slice/kf-box.scope") for path in cgroups(shim))
    assert kata("exec", "box", "echo", "alive").stdout == "alive\n"

    kata("delete", "--force", "box")
    wait_until(lambda: machine.units("kf-*.scope") == {"kf-pod.scope"}, "the member's scope is gone")
    kata("delete", "--force", "pod")
    wait_until(lambda: not machine.units("kf-*.scope"), "the pod's scope is gone")
    wait_until(lambda: not exists(supervisor), "the supervisor is gone")


def test_limits_are_systemds(kata: Kata, machine: Machine) -> None:
    """It knows them, so that it does not write others; and the cgroup has them."""
    resources = {"memory": {"limit": 64 << 20}, "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0"}}
    linux = {**config(())["linux"], "cgroupsPath": "kf-test.slice:kf:box", "resources": resources}
    kata.detached("box", kata.bundle("box", *SLEEP, linux=linux))
    (qemu,) = kata.processes("qemu-system")

    def found(controller: str, file: str) -> str:
        (line,) = [line for line in Path(f"/proc/{qemu}/cgroup").read_text().splitlines() if f":{controller}:" in line]
        return Path(f"/sys/fs/cgroup/{controller}{line.split(':', 2)[2]}/{file}").read_text().strip()

    def known() -> tuple[str, ...]:
        names = ("CPUShares", "CPUQuotaPerSecUSec", "MemoryLimit")
        told = machine.show("kf-box.scope", *names)
        return tuple(told[name] for name in names)

    memory = known()[2]
    assert known() == ("512", "1.750000s", memory)
    assert int(memory) > 320 << 20
    assert found("memory", "memory.limit_in_bytes") == memory
    assert found("cpuset", "cpuset.cpus") == "0"
    # Where systemd could not mount the hierarchy of `cpu` the sandbox runs all the same, and what it goes without is named.
    has_cpu = " - cgroup cgroup rw,cpu" in machine.run("cat", "/proc/self/mountinfo").replace("rw,cpuset", "")
    said = (kata.base / "log").read_text()
    for field in ("cpu.shares", "cpu.quota"):
        told = f"`linux.resources.{field}` is not applied on the host: no cgroup of the host has a control" in said
        assert told != has_cpu
    assert "`linux.resources.memory.limit` is not" not in said
    kata("update", "--cpu-share", "300", "--cpu-quota", "-1", "--memory", "-1", "box")
    assert known() == ("300", "infinity", "infinity")
    assert int(found("memory", "memory.limit_in_bytes")) > 1 << 60
    kata("update", "--memory", "80m", "box")
    machine.run("systemctl", "daemon-reload")
    assert (known()[2], found("memory", "memory.limit_in_bytes")) == (memory, memory)
    (supervisor,) = kata.processes(" supervisor ")
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: not exists(supervisor), "the supervisor is gone")
    assert kata("exec", "box", "echo", "alive").stdout == "alive\n"
    assert (known()[2], found("memory", "memory.limit_in_bytes")) == (memory, memory)
    kata("delete", "--force", "box")
    wait_until(lambda: not machine.units("kf-*.scope"), "the scope is gone")


def test_a_path_that_systemd_cannot_mean(kata: Kata, machine: Machine) -> None:
    done = kata("create", "--bundle", str(bundle(kata, "b", "/some/path")), "box", check=False)
    assert done.returncode != 0
    assert 'format "slice:prefix:name"' in done.stderr
    done = kata("create", "--bundle", str(bundle(kata, "c", "no-slice:kf:box")), "box", check=False)
    assert done.returncode != 0
    assert "`no-slice` in the cgroups path is not a slice" in done.stderr


def test_where_systemd_does_not_run(kata: Kata) -> None:
    kata_argv = ("--systemd-cgroup", "create", "--bundle", str(bundle(kata, "b", "kf-test.slice:kf:box")), "box")
    done = kata(*kata_argv, check=False)
    assert done.returncode != 0
    assert "systemd" in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
