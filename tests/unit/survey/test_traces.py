# SPDX-License-Identifier: Apache-2.0
"""What carries our names, and what only looks like it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_fsm.argv import argv_of
from kata_fsm.effects import cgroup, mounts, process
from kata_fsm.effects.hypervisor.argv import uuid_of
from kata_fsm.survey import orphans, traces
from kata_fsm.survey.traces import Trace, cgroups, classify, directories, mounted, processes
from kata_fsm.world import Paths
from tests.support.kata import wait_until

RUN = "/run/x"
UID = "0123456789ab"
BASE = f"{RUN}/sandboxes/{UID}"
QEMU = ["/usr/bin/qemu-system-x86_64", "-name", "sandbox-web,debug-threads=on", "-uuid", uuid_of(UID)]
STREAM = f"web@{UID}"


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        ([*QEMU, "-pidfile", f"{BASE}/qemu.pid"], ("qemu", UID, "sandbox-web")),
        (["/usr/lib/qemu/virtiofsd", "--fd=9", "-o", f"source={BASE}/served/tree"], ("virtiofsd", UID, "")),
        (["python3", "-IS", "/x/kata-fsm", "supervisor", "web", "--resume", STREAM], ("supervisor", UID, "web")),
        (
            ["/v/bin/python3", "-I", "/v/bin/kata-fsm", "supervisor", "web", "--resume", STREAM],
            ("supervisor", UID, "web"),
        ),
        (
            ["python3", "-IS", "/x/kata-fsm", "shim", "web", "--stream", STREAM, "--container", "web"],
            ("shim", UID, "web"),
        ),
        ([*QEMU, "-pidfile", f"/run/other/sandboxes/{UID}/qemu.pid"], None),  # another installation
        ([*QEMU, "-pidfile", f"{RUN}/sandboxes/ffffffffffff/qemu.pid"], None),  # its uuid says otherwise
        ([*QEMU, "-pidfile"], None),
        (QEMU, None),
        (["qemu-system-x86_64", "-name", "sandbox-web"], None),
        (["virtiofsd", "-o", f"source={RUN}/sandboxes/not-a-uid/served/tree"], None),
        (["vim", f"{BASE}/qemu.pid"], None),
        (["python3", "-IS", "/x/kata-fsm", "delete", "web"], None),
        (["python3", "-IS", "/x/kata-fsm", "supervisor", "web", "--resume"], None),
        (["kata-fsm", "supervisor"], None),
        ([], None),
    ],
)
def test_processes_are_known_by_their_command_lines(argv: list[str], found: tuple[str, str, str] | None) -> None:
    assert classify(argv, RUN) == found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("KATA_FSM_RUN", str(tmp_path / "run"))
    monkeypatch.setenv("KATA_FSM_STATE", str(tmp_path / "state"))
    paths = Paths(UID)
    os.makedirs(paths.base)
    return paths


@pytest.fixture
def impostor(place: Paths) -> Iterator[subprocess.Popen[bytes]]:
    """A process with a virtiofsd's arguments."""
    line = [sys.executable, "-c", "import time; time.sleep(600)", f"source={place.base}/served/tree"]
    with subprocess.Popen(line) as child:
        wait_until(lambda: argv_of(child.pid) == line, "the kernel has its command line")
        yield child
        child.kill()


async def test_a_process_is_found_and_ended_by_its_identity(place: Paths, impostor: subprocess.Popen[bytes]) -> None:
    (trace,) = processes()
    assert (trace.kind, trace.uid) == ("virtiofsd", UID)
    assert trace.identity == process.identify(impostor.pid)
    assert trace.identity is not None
    other = Trace("virtiofsd", UID, "", process.Identity(impostor.pid, 1, trace.identity.boot_id))
    assert await orphans.remove([other]) == []
    assert impostor.poll() is None, "a process of another start time has another identity"
    assert await orphans.remove([trace]) == []
    assert not process.alive(trace.identity)


async def test_mounts_and_directories_are_taken_away_and_nothing_below_a_mount(place: Paths, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "file").touch()
    target = f"{place.base}/shared"
    os.mkdir(target)
    mounts.bind(str(bundle), target)
    try:
        found = mounted(mounts.table())
        assert found == [Trace("mount", UID, target)]
        assert directories() == [Trace("directory", UID, place.base)]
        (left,) = await orphans.remove(directories())
        assert "still mounted" in left.why
        assert (bundle / "file").exists()
        assert await orphans.remove([*found, *directories()]) == []
    finally:
        mounts.unmount_below(target)
    assert (bundle / "file").exists()
    assert not os.path.exists(place.base)


async def test_a_parent_with_a_cgroup_of_another_installation_in_it_is_no_orphan(
    place: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To take it away would take the other's away as well."""
    top, other = f"/kf-test-{os.getpid()}-two", "ffffffffffff"
    cgroup.create(f"{top}/mine", UID)
    try:
        if not cgroups():
            pytest.skip("cgroups take no extended attributes here")
        monkeypatch.setenv("KATA_FSM_RUN", "/run/other")
        cgroup.create(f"{top}/its", other)
        assert {os.path.basename(trace.name) for trace in cgroups()} == {"its"}
        monkeypatch.undo()
        monkeypatch.setenv("KATA_FSM_RUN", os.path.dirname(os.path.dirname(place.base)))
        assert {os.path.basename(trace.name) for trace in cgroups() if trace.uid == UID} == {"mine"}
    finally:
        await cgroup.remove(f"{top}/mine", UID)
        await cgroup.remove(f"{top}/its", other)
    assert not any(os.path.exists(hierarchy.point + top) for hierarchy in cgroup.hierarchies())


async def test_cgroups_are_told_apart_by_run_directory_and_sandbox(
    place: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = f"/kf-test-{os.getpid()}"
    cgroup.create(f"{top}/{UID}/web", UID)
    cgroup.create(f"{top}/ffffffffffff/web", "ffffffffffff")
    found = cgroups()
    try:
        if not found:
            pytest.skip("cgroups take no extended attributes here")
        mine = [trace.name for trace in found if trace.uid == UID]
        assert {name[name.index(top) :] for name in mine} == {f"{top}/{UID}/web", f"{top}/{UID}"}  # the top is shared
        assert mine[0].endswith("/web"), "the innermost first"
        monkeypatch.setenv("KATA_FSM_RUN", "/run/other")
        assert cgroups() == []
        monkeypatch.undo()
    finally:
        assert await orphans.remove(found) == []
        for hierarchy in cgroup.hierarchies():
            if os.path.isdir(hierarchy.point + top):
                os.rmdir(hierarchy.point + top)


def test_a_supervised_uid_is_nobodys_orphan(place: Paths) -> None:
    import fcntl

    os.utime(place.base, (1, 1))
    found = traces.by_uid(directories())[UID]
    assert orphans.orphan_of(UID, found, {}) is not None
    with open(place.supervisor_lock, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert orphans.orphan_of(UID, found, {}) is None
    os.utime(place.base, (1, 1))
    assert orphans.orphan_of(UID, found, {}) is not None


def test_what_names_a_journal_that_cannot_be_read_is_left_alone(place: Paths, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "data.mdb").write_bytes(b"damaged" * 100)
    Path(place.supervisor_lock).write_text(str(other))
    os.utime(place.base, (1, 1))
    found = traces.by_uid(directories())[UID]
    assert orphans.orphan_of(UID, found, {}) is None
    Path(place.supervisor_lock).write_text(str(tmp_path / "gone"))
    os.utime(place.base, (1, 1))
    assert orphans.orphan_of(UID, found, {}) is not None
