# SPDX-License-Identifier: Apache-2.0
"""Goal: whatever ends a sandbox is told truly, with what it was concluded from, and the engine never sees a made-up 0."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kata_fsm.testing.bundle import config
from tests.support.kata import LIMIT_S, Kata, wait_until

SLEEP = ("/bin/sh", "-c", "echo up; sleep 1000")
MEMORY = Path("/sys/fs/cgroup/memory")


def cause_of(kata: Kata, name: str, machine: str = "sandbox", what: str = "stop") -> dict[str, Any]:
    """The cause that a sandbox ended with, evidence and all."""
    found = [row for row in kata.story(name) if row.get("machine") == machine and row["what"] == what]
    cause: dict[str, Any] = next(row["detail"]["cause"] for row in found if "cause" in row["detail"])
    return cause


def unwatch(kata: Kata) -> None:
    """Kill who watches the machine of `c1`: first its shim, which would start another supervisor at once."""
    kata.kill("shim", "c1")
    kata.kill("supervisor", "c1")


def run_and_end(kata: Kata, name: str, end: Any, *args: str, env: dict[str, str] | None = None, **changes: Any) -> int:
    """Run a container until it has said `up`, let `end` happen, and answer what the engine sees."""
    runner = kata.spawn("run", "--bundle", str(kata.bundle(name, *(args or SLEEP), **changes)), name)
    assert runner.stdout is not None
    with runner, runner.stdout:
        assert runner.stdout.readline() == "up\n"
        end()
        return runner.wait(LIMIT_S)


def let_go_on(kata: Kata, bundle: Path, first: Callable[[], None] = lambda: None) -> None:
    """Run a workload that says "up", waits for a line and then brings about its end, which nobody knows the code of; `first`
    is done before it gets that line."""
    runner = kata.spawn("run", "--bundle", str(bundle), "c1", stdin=subprocess.PIPE)
    assert runner.stdout is not None
    assert runner.stdin is not None
    with runner, runner.stdout:
        assert runner.stdout.readline() == "up\n"
        first()
        runner.stdin.write("now\n")
        runner.stdin.close()
        assert runner.wait(LIMIT_S) == 255


def ended_by_the_kernel(kata: Kata, key: str, before: str = "true") -> dict[str, Any]:
    """Have the guest's kernel do what `key` means to /proc/sysrq-trigger, from a container that may write there, once
    `before` is done; the cause that is told."""
    linux = config([])["linux"]
    linux["readonlyPaths"] = []
    script = f"{before}; echo up; read line; echo {key} >/proc/sysrq-trigger; sleep 1000"
    bundle = kata.bundle("c1", "/bin/sh", "-c", script, linux=linux)
    let_go_on(kata, bundle)
    return cause_of(kata, "c1")


@pytest.mark.parametrize(
    ("number", "kind"),
    [(signal.SIGKILL, "vm_killed"), (signal.SIGSEGV, "vm_crashed"), (signal.SIGABRT, "vm_crashed")],
)
def test_a_vmm_that_a_signal_ends(kata: Kata, number: signal.Signals, kind: str) -> None:
    def end() -> None:
        (qemu,) = kata.processes("qemu-system", "sandbox-c1")
        os.kill(qemu, number)

    assert run_and_end(kata, "c1", end) == 255
    cause = cause_of(kata, "c1")
    assert (cause["kind"], cause["evidence"]["exit"]["signal"]) == (kind, number)
    assert number.name in cause["message"]
    assert "kata-agent" in cause["evidence"]["console"]


def test_a_panic_of_the_guest_is_told_by_its_panic_device(kata: Kata) -> None:
    """A container that may write to /proc/sysrq-trigger, as a privileged one may.

    The device's driver is loaded when nothing else wants the processor; before that the console alone tells of a panic.
    """
    driver = 'until [ "$(cat /sys/module/pvpanic_mmio/initstate 2>/dev/null)" = live ]; do sleep 0.1; done'
    cause = ended_by_the_kernel(kata, "c", driver)
    assert cause["kind"] == "guest_panic"
    assert "sysrq triggered crash" in cause["message"]
    assert cause["evidence"]["panic"]["action"] in ("poweroff", "pause", "run")  # QEMU heard it from the device
    assert "Kernel panic" in cause["evidence"]["console"]


def test_an_agent_that_is_killed(kata: Kata) -> None:
    """By the guest's own kernel: what it kills then is every process but the first. The machine ends with its agent."""
    cause = ended_by_the_kernel(kata, "i")
    assert cause["kind"] == "agent_lost"
    assert cause["message"] == "the agent in the guest was killed by SIGKILL, and its machine was switched off"
    assert cause["evidence"]["shutdown"]["guest"] is True
    assert "Kill All Tasks" in cause["evidence"]["console"]


def test_the_agent_is_spared_by_the_guests_oom_killer_and_what_it_starts_is_not(kata: Kata) -> None:
    """Nothing inherits it: neither a container's own process nor an exec's."""
    kata.detached("c1", kata.bundle("c1", "/bin/sh", "-c", "cat /proc/self/oom_score_adj >/adj; sleep 1000"))
    adj = kata.bundles / "c1" / "rootfs" / "adj"
    wait_until(lambda: adj.exists() and adj.read_text().endswith("\n"), "the container has looked")
    assert adj.read_text() == "0\n"
    assert kata("exec", "c1", "cat", "/proc/self/oom_score_adj").stdout == "0\n"
    kata("delete", "--force", "c1")


def test_a_container_over_its_memory_limit(kata: Kata) -> None:
    linux = {**config([])["linux"], "resources": {"memory": {"limit": 16 << 20}}}
    bundle = kata.bundle("c1", "/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1", linux=linux)
    with kata.spawn("run", "--bundle", str(bundle), "c1") as runner:
        assert runner.wait(LIMIT_S) == 137
    cause = cause_of(kata, "c1", "process", "exited")
    assert (cause["kind"], cause["evidence"]["signal"]) == ("guest_oom", 9)


def test_a_lost_virtiofsd(kata: Kata) -> None:
    assert run_and_end(kata, "c1", lambda: kata.kill("virtiofsd")) == 255
    cause = cause_of(kata, "c1")
    assert (cause["kind"], cause["evidence"]["exit"]["signal"]) == ("virtiofsd_lost", 9)
    assert cause_of(kata, "c1", "process", "exited") == cause  # not that the agent killed it when it was dismissed


def test_a_vmm_whose_end_nobody_saw(kata: Kata) -> None:
    """Its wait status is lost with its supervisor, and that is said."""
    kata.detached("c1", kata.bundle("c1", *SLEEP))
    (qemu,) = kata.processes("qemu-system", "sandbox-c1")
    unwatch(kata)
    os.kill(qemu, signal.SIGKILL)
    wait_until(lambda: kata.status("c1") == "stopped", "the container is stopped")
    cause = cause_of(kata, "c1")
    assert (cause["kind"], cause["evidence"]["wait_status"]) == ("vm_killed", "unknown")
    assert "while no supervisor was watching" in cause["message"]
    kata("delete", "c1")


@pytest.mark.parametrize(
    ("key", "kind", "words"),
    [
        ("o", "guest_shutdown", "reboot: Power down"),
        ("i", "agent_lost", "the agent in the guest was killed by SIGKILL"),
    ],
)
def test_a_guest_that_ended_while_nobody_watched(kata: Kata, key: str, kind: str, words: str) -> None:
    """QEMU told nobody; the console's end does: it was switched off, or its agent was killed. QEMU was not, so nothing says
    that it was."""
    linux = config([])["linux"]
    linux["readonlyPaths"] = []
    script = f"until [ -e /go ]; do sleep 0.1; done; echo {key} >/proc/sysrq-trigger; sleep 1000"
    bundle = kata.bundle("c1", "/bin/sh", "-c", script, linux=linux)
    kata.detached("c1", bundle)
    (qemu,) = kata.processes("qemu-system", "sandbox-c1")
    unwatch(kata)
    (bundle / "rootfs" / "go").touch()
    wait_until(lambda: qemu not in kata.processes("qemu-system", "sandbox-c1"), "the machine is off")
    wait_until(lambda: kata.status("c1") == "stopped", "the container is stopped")
    cause = cause_of(kata, "c1")
    assert (cause["kind"], cause["evidence"]["wait_status"]) == (kind, "unknown")
    assert words in cause["message"]
    kata("delete", "c1")


@pytest.fixture
def memory_cgroup() -> Iterator[Path]:
    """A memory cgroup of version 1, below which a sandbox has its own."""
    if not (MEMORY / "memory.limit_in_bytes").exists():
        pytest.skip("the host has no memory cgroups of version 1")
    directory = MEMORY / f"kf-test-{os.getpid()}"
    directory.mkdir()
    yield directory
    wait_until(lambda: not (directory / "cgroup.procs").read_text(), "the cgroup is empty")
    directory.rmdir()


def test_a_host_out_of_memory(kata: Kata, memory_cgroup: Path) -> None:
    """The OOM killer of a cgroup above the one that QEMU runs in takes it, as the largest in there."""
    script = "echo up; read line; dd if=/dev/zero of=/dev/null bs=100M count=1; sleep 1000"
    linux = {**config([])["linux"], "cgroupsPath": f"/{memory_cgroup.name}/c1"}
    bundle = kata.bundle("c1", "/bin/sh", "-c", script, linux=linux)

    def tighten() -> None:
        used = int((memory_cgroup / "memory.usage_in_bytes").read_text())
        (memory_cgroup / "memory.limit_in_bytes").write_text(str(used + (24 << 20)))

    let_go_on(kata, bundle, tighten)
    cause = cause_of(kata, "c1")
    assert cause["kind"] == "host_oom", cause
    assert cause["evidence"]["exit"]["signal"] == 9
    assert cause["evidence"]["cgroup_oom_kills"] or cause["evidence"]["kernel_log"]
