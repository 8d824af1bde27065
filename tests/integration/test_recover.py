# SPDX-License-Identifier: Apache-2.0
"""Goal: whatever was killed, `recover` says what is left over, does what it said, and has nothing to do the second time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from journal import Journal
from tests.support.kata import LIMIT_S, Kata, exists, wait_until

SLEEP = ("/bin/sleep", "1000")
FREEZER = Path("/sys/fs/cgroup/freezer")
PENDING = 9


def kill(kata: Kata, *words: str) -> None:
    """SIGKILL every process of this installation whose command line holds `words`, and see it gone."""
    pids = kata.kill(*words)
    assert pids, f"no process of {words}"
    for pid in pids:
        wait_until(lambda pid=pid: not exists(pid), f"process {pid} is gone")


def kill_guards(kata: Kata, name: str) -> None:
    """Kill the shim first: it would start another supervisor. By stream: another sandbox's uid may hold `name`."""
    kill(kata, " shim ", f" {name}@")
    kill(kata, " supervisor ", f" {name}@")


def head(kata: Kata) -> int:
    with Journal.open(kata.base / "s" / "journal", read_only=True) as journal:
        return journal.head().seq


def document(kata: Kata, *args: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kata("recover", "--json", *args, check=False).stdout)
    return found


def nothing_to_do(kata: Kata) -> None:
    """Once more: nothing is found, nothing is done, nothing is written."""
    before = head(kata)
    assert "nothing to do" in kata("recover").stdout
    assert kata("recover", "--check", check=False).returncode == 0
    assert "nothing to do" in kata("recover", "--apply", "--orphans", "kill").stdout
    assert head(kata) == before


def elsewhere(kata: Kata, over: str, text: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a verb in a mount namespace in which the file `over` says `text`: another boot, or another host."""
    file = kata.base / "over"
    file.write_text(text + "\n")
    script = 'mount --bind "$0" "$1" && shift && exec "$@"'
    argv = ["unshare", "-m", "/bin/sh", "-c", script, str(file), over, *kata.argv(*args)]
    return subprocess.run(argv, env=kata.env, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def test_the_plan_is_shown_first_then_done_and_then_there_is_nothing_to_do(kata: Kata) -> None:
    kata.detached("c1", kata.bundle("c1", *SLEEP))
    nothing_to_do(kata)
    kill_guards(kata, "c1")
    kill(kata, "qemu-system", "sandbox-c1")
    before = head(kata)
    (plan,) = document(kata)["sandboxes"]
    assert (plan["sandbox"], plan["kind"], plan["outcome"]) == ("c1", "unsupervised", None)
    assert "container c1 running" in plan["believed"]
    assert "is gone" in plan["observed"]
    shown = kata("recover").stdout
    for step in ("vm_died", "hypervisor.stop", "network.detach", "container.unstage c1", "share.release"):
        assert step in shown
        assert any(step in each for each in plan["steps"])
    assert "Nothing was changed" in shown
    assert kata("recover", "--check", check=False).returncode == PENDING
    assert kata("recover", "--check", "--only", "stuck", check=False).returncode == 0
    assert head(kata) == before, "a plan was written"
    (done,) = document(kata, "--apply", "--reason", "the night shift")["sandboxes"]
    assert done["outcome"]["ok"]
    assert done["outcome"]["state"] == "failed"
    assert "the night shift" in kata("replay", "c1", "--full").stdout
    nothing_to_do(kata)
    assert kata.status("c1") == "stopped"
    kata("delete", "c1")


def test_what_still_runs_goes_on(kata: Kata) -> None:
    kata.detached("c1", kata.bundle("c1", *SLEEP))
    kill_guards(kata, "c1")
    assert "it goes on: `ready`" in kata("recover", "c1").stdout
    kata("recover", "c1", "--apply")
    nothing_to_do(kata)
    assert kata("exec", "c1", "/bin/true").returncode == 0
    kata("delete", "--force", "c1")


def test_a_supervisor_that_does_not_answer_is_replaced(kata: Kata) -> None:
    kata.detached("c1", kata.bundle("c1", *SLEEP))
    (stopped,) = kata.processes("supervisor", "c1")
    os.kill(stopped, signal.SIGSTOP)
    try:
        (plan,) = document(kata)["sandboxes"]
        assert plan["kind"] == "unanswering"
        assert "does not answer" in plan["observed"]
        kata("recover", "--apply")
    finally:
        if exists(stopped):
            os.kill(stopped, signal.SIGKILL)
    assert stopped not in kata.processes("supervisor", "c1")
    told = "its shim has come to the new supervisor, which is recorded"
    wait_until(lambda: kata("replay", "c1").stdout.count("attach_shim") > 1, told)
    nothing_to_do(kata)
    kata("delete", "--force", "c1")


def test_after_a_reboot_ids_are_free_and_exit_codes_are_kept(kata: Kata) -> None:
    """The run directory is gone, and so is everything that ran; the boot id is another."""
    kata.detached("c1", kata.bundle("c1", *SLEEP))
    kata.detached("c2", kata.bundle("c2", "/bin/sh", "-c", "exit 7"))
    wait_until(lambda: kata.status("c2") == "stopped", "c2 has exited")
    for word in ("shim", "supervisor", "qemu-system", "virtiofsd"):
        kata.kill(word)
    wait_until(lambda: not kata.processes(), "nothing runs")
    forget_the_host(kata)
    boot = ("/proc/sys/kernel/random/boot_id", "11111111-2222-3333-4444-555555555555")
    shown = elsewhere(kata, *boot, "recover")
    assert "host_rebooted" in shown.stdout
    assert "its ids are free" in shown.stdout
    assert elsewhere(kata, *boot, "recover", "--check").returncode == PENDING
    done = elsewhere(kata, *boot, "recover", "--all", "--apply", "--only", "unknown", "--only", "stuck")
    assert done.returncode == 0, done
    assert elsewhere(kata, *boot, "recover", "--check").returncode == 0
    before = head(kata)
    assert "nothing to do" in elsewhere(kata, *boot, "recover", "--apply").stdout
    assert head(kata) == before
    assert kata("list", "--quiet", "--no-recover").stdout == ""
    told = {name: json.loads(kata("replay", name, "-o", "json").stdout) for name in ("c1", "c2")}
    assert told["c1"]["cause"]["kind"] == "host_reboot"
    assert told["c2"]["exit_code"] == 7


def _busy(top: Path) -> bool:
    """Whether it, or what is in it, cannot be removed yet."""
    try:
        for where, _, _ in os.walk(top, topdown=False):
            os.rmdir(where)
    except OSError:
        return True
    return False


def forget_the_host(kata: Kata) -> None:
    """What a reboot takes away without our doing: mounts, cgroups, and the run directory."""
    run = kata.base / "r"
    points = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in [point for point in points if point.startswith(str(run))][::-1]:
        subprocess.run(["umount", "-l", point], check=True)
    uids = [path.name for path in (run / "sandboxes").iterdir()]
    tops = [hierarchy / "kata-fsm" / uid for hierarchy in Path("/sys/fs/cgroup").iterdir() for uid in uids]
    wait_until(
        lambda: not any(_busy(top) for top in tops), "the cgroups are gone"
    )  # a zombie is in its own until reaped
    shutil.rmtree(run)


def test_without_a_journal_orphans_are_found_and_removed(kata: Kata) -> None:
    kata.detached("c1", kata.bundle("c1", *SLEEP))
    (qemu,) = kata.processes("qemu-system", "sandbox-c1")
    shutil.rmtree(kata.base / "s" / "journal")
    found = document(kata)
    assert not found["journal"]
    (orphan,) = found["orphans"]  # also its supervisor, whose journal is gone
    kinds = {trace["kind"] for trace in orphan["traces"]}
    assert kinds == {"supervisor", "shim", "qemu", "virtiofsd", "netns", "mount", "cgroup", "directory"}
    assert orphan["name"] == "c1"
    assert f"qemu pid {qemu} (`sandbox-c1`)" in kata("recover").stdout
    assert kata("recover", "--check", "--only", "leaks", check=False).returncode == PENDING
    assert kata("recover", "--apply").returncode == 0
    assert exists(qemu), "orphans are kept unless they are to be removed"
    assert kata("recover", "remove", "4194305", "--reason", "no such pid", check=False).returncode == 1
    kata("recover", "remove", str(qemu), "--reason", "the disk was replaced")
    assert not kata.processes()
    assert (kata.bundles / "c1" / "rootfs" / "bin" / "busybox").exists(), "a bundle was reached into"
    nothing_to_do(kata)
    with Journal.open(kata.base / "s" / "journal", read_only=True) as journal:
        notes = {record.type: record.data for record in journal.read() if record.kind == "note"}
    assert notes["orphan_remove"]["reason"] == "the disk was replaced"
    assert notes["orphan_removed"]["ok"]


def test_what_another_journal_has_is_left_alone(kata: Kata) -> None:
    """Two journals over one run directory: alive or not, the other one's sandbox is not ours to touch."""
    kata.detached("c1", kata.bundle("c1", *SLEEP))
    other = {**kata.env, "KATA_FSM_JOURNAL": str(kata.base / "other")}
    recover = [*kata.argv("recover", "--apply", "--orphans", "kill"), "--json"]

    def orphans() -> Any:
        done = subprocess.run(recover, env=other, capture_output=True, text=True, timeout=LIMIT_S, check=True)
        return json.loads(done.stdout)["orphans"]

    assert orphans() == []
    kill_guards(kata, "c1")
    assert orphans() == []
    kata("recover", "--apply")
    assert kata.status("c1") == "running"
    kata("delete", "--force", "c1")


def test_a_journal_of_another_host_is_read_and_not_written(kata: Kata) -> None:
    kata.detached("c1", kata.bundle("c1", *SLEEP))
    kata("delete", "--force", "c1")
    before = head(kata)
    other = ("/etc/machine-id", "0123456789abcdef0123456789abcdef")
    refused = elsewhere(kata, *other, "create", "--bundle", str(kata.bundle("c2", *SLEEP)), "c2")
    assert refused.returncode != 0
    assert "belongs to `host-" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    for verb in (("recover",), ("recover", "--apply"), ("recover", "--check")):
        refused = elsewhere(kata, *other, *verb)
        assert refused.returncode == 12
        assert "belongs to `host-" in refused.stderr
    assert "container c1" in elsewhere(kata, *other, "replay", "c1", "--full").stdout
    assert head(kata) == before


@pytest.fixture
def ice() -> Iterator[Any]:
    """Makes processes that no signal ends: a frozen cgroup of version 1 holds them until they are let go."""
    if not (FREEZER / "cgroup.procs").exists():
        pytest.skip("the host has no freezer of version 1")
    directory = FREEZER / f"kf-test-{os.getpid()}"
    directory.mkdir()

    def freeze(pid: int) -> None:
        (directory / "cgroup.procs").write_text(str(pid))
        (directory / "freezer.state").write_text("FROZEN")
        wait_until(lambda: (directory / "freezer.state").read_text() == "FROZEN\n", "it is frozen")

    def thaw() -> None:
        (directory / "freezer.state").write_text("THAWED")

    freeze.thaw = thaw  # type: ignore[attr-defined]
    yield freeze
    thaw()
    wait_until(lambda: not (directory / "cgroup.procs").read_text(), "the cgroup is empty")
    directory.rmdir()


def test_a_vmm_that_cannot_be_killed_is_told_and_blocks_nobody(kata: Kata, ice: Any) -> None:
    kata.detached("c1", kata.bundle("c1", *SLEEP))
    kata.detached("c2", kata.bundle("c2", *SLEEP))
    (qemu,) = kata.processes("qemu-system", "sandbox-c1")
    ice(qemu)
    refused = kata("delete", "--force", "c1", check=False)
    assert refused.returncode == 1
    assert f"process `{qemu}` is still there" in refused.stderr
    kill_guards(kata, "c2")
    kill(kata, "qemu-system", "sandbox-c2")
    started = time.monotonic()
    plans = {plan["sandbox"]: plan for plan in document(kata, "--apply")["sandboxes"]}
    assert time.monotonic() - started < 60, "bounded"
    assert plans["c2"]["outcome"]["ok"]
    assert plans["c1"]["kind"] == "stuck"
    assert not plans["c1"]["outcome"]["ok"]
    assert f"process `{qemu}` is still there" in plans["c1"]["outcome"]["error"]
    assert "recover resolve c1 --to failed" in plans["c1"]["outcome"]["hint"]
    assert kata("recover", "resolve", "c1", "--to", "failed", check=False).returncode == 2, "a reason is required"
    resolved = kata("recover", "resolve", "c1", "--to", "failed", "--reason", "it hangs in the kernel").stdout
    assert "given up: vm" in resolved
    kata("delete", "--force", "c1")
    kata("delete", "c2")
    assert kata("list", "--quiet").stdout == ""
    (orphan,) = document(kata)["orphans"]  # nothing is forgotten
    assert orphan["traces"][0]["kind"] == "qemu"
    assert "its sandbox is `deleted`" in orphan["why"]
    stays = kata("recover", "--apply", "--orphans", "kill", check=False)
    assert stays.returncode == 1
    assert f"qemu pid {qemu}" in stays.stdout
    assert "stays" in stays.stdout
    ice.thaw()
    kata("recover", "--apply", "--orphans", "kill")
    nothing_to_do(kata)
    assert "it hangs in the kernel" in kata("replay", "c1", "--full").stdout


def test_a_busy_bundle_is_let_go_and_a_foreign_file_is_told(kata: Kata) -> None:
    """Open files and nested mounts do not hold up the end; what is not ours to delete does, and is named."""
    bundle = kata.bundle("c1", *SLEEP)
    nested = bundle / "rootfs" / "mnt"
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(nested)], check=True)
    try:
        kata.detached("c1", bundle)
        (uid,) = os.listdir(kata.base / "r" / "sandboxes")
        tree = kata.base / "r" / "sandboxes" / uid / "shared"
        with open(tree / "c1" / "rootfs" / "mnt" / "held", "w") as held:
            held.write("x")
            foreign = tree / "foreign"
            foreign.write_text("somebody's")
            kill_guards(kata, "c1")
            kill(kata, "qemu-system", "sandbox-c1")
            failed = kata("recover", "--apply", check=False)
            assert failed.returncode == 1
            assert f"cannot remove `{foreign}`" in failed.stdout
            assert (nested / "held").exists()
            (plan,) = document(kata)["sandboxes"]
            assert plan["kind"] == "stuck"
            foreign.unlink()
            kata("recover", "--apply")
            nothing_to_do(kata)
        kata("delete", "c1")
        assert (nested / "held").read_text() == "x"
    finally:
        subprocess.run(["umount", str(nested)], check=True)


def test_one_that_runs_is_forced_to_its_end(kata: Kata) -> None:
    kata.detached("c1", kata.bundle("c1", *SLEEP))
    assert "done" in kata("recover", "resolve", "c1", "--to", "failed", "--reason", "an operator's whim").stdout
    assert kata.status("c1") == "stopped"
    told = json.loads(kata("replay", "c1", "-o", "json").stdout)
    assert (told["cause"]["kind"], told["cause"]["message"]) == ("resolved", "an operator's whim")
    kata("delete", "c1")
