# SPDX-License-Identifier: Apache-2.0
"""Goal: block devices of the host are disks of the machine, as the container was to have them, and are let go of."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kata_fsm.testing.bundle import config
from tests.support.dying import QMP_VARIABLE, VARIABLE, appends, write_command
from tests.support.kata import Kata, wait_until
from tests.support.loops import MIB, Loop, loop

NOBODY_ELSE = {"allow": False, "access": "rwm"}
CRI = "io.kubernetes.cri."
LIVES = 8
SLEEP = ("/bin/sleep", "1000")


@pytest.fixture
def disk(kata: Kata) -> Iterator[Loop]:
    """A device of 8 MiB that nobody has open. After the test nobody may have."""
    with loop(kata.base) as made:
        yield made
        wait_until(lambda: not made.holders(), "nobody has the device open", 15)


def linux(*devices: dict[str, Any], rules: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """The section of a config.json that has these devices and rules about them."""
    made: dict[str, Any] = config([])["linux"]
    return {**made, "devices": list(devices), "resources": {"devices": [NOBODY_ELSE, *rules]}}


def qemu(kata: Kata) -> list[int]:
    return kata.processes("qemu-system")


@pytest.mark.parametrize("machine", ["q35", "microvm"])
def test_it_is_read_and_written_under_the_guests_numbers(kata: Kata, disk: Loop, machine: str) -> None:
    settings = kata.base / "configuration.toml"
    settings.write_text(f'[hypervisor.qemu]\nmachine_type = "{machine}"\n')
    kata.env["KATA_CONF_FILE"] = str(settings)
    disk.write(3 * MIB, b"from the host")
    script = """
        stat -c '%A %u %g' /dev/xvda; echo $((0x$(stat -c %t /dev/xvda))) $((0x$(stat -c %T /dev/xvda)))
        dd if=/dev/xvda bs=1 skip=3145728 count=13 2>/dev/null; echo; cat /proc/partitions | grep -c ' 8192 vd'
        cat /sys/block/vd*/dev /sys/block/vd*/serial; echo
        printf 'from the guest' | dd of=/dev/xvda bs=1 seek=5242880 conv=notrunc 2>/dev/null
        mknod /dev/other b 1 0; cat /dev/other 2>&1; true
    """
    asked = linux(disk.device("/dev/xvda", fileMode=0o640, uid=5, gid=6), rules=(disk.rule("rw"),))
    said = kata(
        "run", "--bundle", str(kata.bundle("b", "/bin/sh", "-c", script, linux=asked)), "c1"
    ).stdout.splitlines()
    numbers, serial = said[4], said[5]
    assert said[0] == "brw-r----- 5 6"
    assert said[1].split() == numbers.split(":")
    assert said[2:4] == ["from the host", "1"]
    assert serial == f"{disk.major}.{disk.minor}"
    assert "not permitted" in said[6]
    assert disk.read(5 * MIB, 14) == b"from the guest"


def test_one_that_is_only_read_cannot_be_written_to_by_the_machine(kata: Kata, disk: Loop) -> None:
    disk.write(0, b"kept")
    script = """
        head -c 4 /dev/xvda; echo; cat /sys/block/vd*/ro
        echo gone 2>&1 >/dev/xvda; true
    """
    asked = linux(disk.device("/dev/xvda"), rules=(disk.rule("r"),))
    said = kata(
        "run", "--bundle", str(kata.bundle("b", "/bin/sh", "-c", script, linux=asked)), "c1"
    ).stdout.splitlines()
    assert said[:2] == ["kept", "1"]
    assert "not permitted" in said[2]
    assert disk.read(0, 4) == b"kept"


def pod(kata: Kata, name: str) -> Path:
    """A bundle that makes a pod."""
    keys = {f"{CRI}container-type": "sandbox", f"{CRI}sandbox-id": name}
    return kata.bundle(name, *SLEEP, annotations=keys)


def member(kata: Kata, of: str, name: str, disk: Loop) -> Path:
    """A bundle for a container of a pod, with the disk as /dev/of-NAME."""
    keys = {f"{CRI}container-type": "container", f"{CRI}sandbox-id": of}
    asked = linux(disk.device(f"/dev/of-{name}"), rules=(disk.rule("rw"),))
    return kata.bundle(name, *SLEEP, annotations=keys, linux=asked)


def test_two_containers_share_one_and_the_last_gives_it_back(kata: Kata, disk: Loop) -> None:
    kata.detached("pod", pod(kata, "pod"))
    for name in ("one", "two"):
        kata.detached(name, member(kata, "pod", name, disk))
    kata("exec", "one", "sh", "-c", "printf shared | dd of=/dev/of-one conv=notrunc 2>/dev/null")
    assert kata("exec", "two", "head", "-c", "6", "/dev/of-two").stdout == "shared"
    assert kata("exec", "two", "sh", "-c", "ls -d /sys/block/vd* | wc -l").stdout.split() == ["1"]
    kata("delete", "--force", "one")
    assert kata("exec", "two", "head", "-c", "6", "/dev/of-two").stdout == "shared"
    assert disk.holders() == qemu(kata)
    kata("delete", "--force", "two")
    assert disk.holders() == []
    assert len(qemu(kata)) == 1
    kata("delete", "--force", "pod")


def test_a_supervisor_that_is_killed_while_one_is_plugged_leaves_nothing(kata: Kata, disk: Loop) -> None:
    asked = linux(disk.device("/dev/xvda"), rules=(disk.rule("rwm"),))
    kata.detached("c1", kata.bundle("b", *SLEEP, linux=asked))
    assert disk.holders() == qemu(kata)
    (supervisor,) = kata.processes("supervisor", "c1")
    os.kill(supervisor, signal.SIGKILL)
    kata("exec", "c1", "sh", "-c", "printf still | dd of=/dev/xvda conv=notrunc,fsync 2>/dev/null")
    assert disk.read(0, 5) == b"still"
    for pid in kata.processes("supervisor", "c1"):
        os.kill(pid, signal.SIGKILL)
    kata("delete", "--force", "c1")
    assert qemu(kata) == []
    assert disk.holders() == []


def test_what_cannot_be_given_is_refused_by_name(kata: Kata, disk: Loop, tmp_path: Path) -> None:
    absent = {"type": "b", "path": "/dev/xvda", "major": 4095, "minor": 1048575}
    done = kata("run", "--bundle", str(kata.bundle("a", "true", linux=linux(absent, rules=()))), "c1", check=False)
    assert "`linux.devices[0]`: host device `/dev/xvda` (b 4095:1048575) does not exist" in done.stderr
    full = kata.base / "few-ports.toml"
    full.write_text("[hypervisor.qemu]\npcie_root_port = 1\n")
    kata("--config", str(full), "create", "--bundle", str(pod(kata, "pod")), "pod")
    done = kata("create", "--bundle", str(member(kata, "pod", "m", disk)), "m", check=False)
    assert f"cannot give the machine block device {disk.major}:{disk.minor}" in done.stderr
    assert "pcie_root_port" in done.stderr
    kata("delete", "--force", "pod")


def test_what_a_privileged_container_goes_without_is_said_once_and_recorded(kata: Kata, disk: Loop) -> None:
    """By engines that pass every device of the host."""
    spare = kata.base / "spare.toml"
    spare.write_text("[runtime]\nprivileged_without_host_devices = true\n")
    kmsg = {"type": "c", "path": "/dev/kmsg", "major": 1, "minor": 11}
    asked = linux(kmsg, disk.device("/dev/loop"), rules=({"allow": True, "access": "rwm"},))
    bundle = kata.bundle("b", "/bin/ls", "/dev", linux=asked)
    done = kata("run", "--bundle", str(bundle), "c1", check=False)
    assert "(set `runtime.privileged_without_host_devices`, or run it without `--privileged`)" in done.stderr
    said = kata("--config", str(spare), "run", "--bundle", str(bundle), "c1").stdout.split()
    assert "null" in said
    assert {"kmsg", "loop"}.isdisjoint(said)
    lines = [line for line in (kata.base / "log").read_text().splitlines() if "left out" in line]
    assert len(lines) == 1, lines
    assert "`/dev/kmsg`, `/dev/loop`" in lines[0]
    (made,) = [each for each in kata.story("c1") if each["what"] == "create_sandbox"]
    assert made["detail"]["container"]["devices_left_out"] == ["/dev/kmsg", "/dev/loop"]


@pytest.mark.parametrize(
    ("command", "when"),
    [("blockdev-add", "after"), ("device_add", "after"), ("device_del", "after"), ("blockdev-del", "before")],
)
def test_the_supervisor_is_killed_while_it_plugs_or_unplugs(kata: Kata, disk: Loop, command: str, when: str) -> None:
    """What is half done is finished or taken back, and the disk is there once."""
    kata.command = write_command(kata.base)
    kata.env[QMP_VARIABLE] = f"{kata.base}/died:{command}:{when}"
    kata.detached("pod", pod(kata, "pod"))
    done = kata("create", "--bundle", str(member(kata, "pod", "m", disk)), "m", check=False)
    if "add" in command:
        assert (kata.base / "died").exists()
        if done.returncode:  # what its caller began is undone
            wait_until(lambda: not disk.holders(), "a creation that was cut off lets go of the disk", 15)
            kata("create", "--bundle", str(member(kata, "pod", "n", disk)), "n")
    name = "n" if done.returncode else "m"
    kata("start", name)
    assert kata("exec", name, "sh", "-c", "ls -d /sys/block/vd* | wc -l").stdout.split() == ["1"]
    assert disk.holders() == qemu(kata)
    for _ in range(2):
        kata("delete", "--force", name, check=False)
    assert (kata.base / "died").exists()
    wait_until(lambda: not disk.holders(), "the machine has let the device go", 15)
    assert kata.status("pod") == "running"
    kata("delete", "--force", "pod")


def test_the_supervisor_is_killed_anywhere_in_the_life_of_a_container_with_one(kata: Kata, disk: Loop) -> None:
    """The pod goes on. Whoever comes after it finds the disk, or plugs it, or takes it out of the machine."""
    refusals: list[str] = []
    kata.command = write_command(kata.base)

    def asked_again(*args: str) -> None:
        """A verb whose supervisor may die under it. What it says then is one line."""
        done = kata(*args, check=False)
        assert len(done.stderr.splitlines()) <= 1, done.stderr
        refusals.append(f"{args[0]}: {done.stderr.strip()}")

    def live(number: int, at: int, when: str) -> tuple[int, int]:
        """One pod with one such container; how many appends its supervisors had made before that, and in all."""
        top, inner, counter = f"p{number}", "", kata.base / f"appends{number}"
        kata.env[VARIABLE] = f"{counter}:{at}:{when}"
        kata.detached(top, pod(kata, top))
        before = appends(counter)
        for attempt in range(3):  # a creation that was cut off is undone; the next one has another name
            inner = f"{top}m{attempt}"
            asked_again("create", "--bundle", str(member(kata, top, inner, disk)), inner)
            asked_again("start", inner)
            if '"running"' in kata("state", inner, check=False).stdout:
                break
            asked_again("delete", "--force", inner)
            wait_until(lambda: not disk.holders(), "a creation that was cut off lets go of the disk", 15)
        assert '"running"' in kata("state", inner, check=False).stdout, "\n".join(refusals)
        look = ("exec", inner, "head", "-c", "3", f"/dev/of-{inner}")
        assert any(kata(*look, check=False).stdout == "abc" for _ in range(2))  # one may meet the end
        asked_again("delete", "--force", inner)
        if kata("state", inner, check=False).returncode == 0:
            asked_again("delete", "--force", inner)
        wait_until(lambda: not disk.holders(), "nobody has the device open", 15)
        assert kata.status(top) == "running"
        total = appends(counter)
        kata("delete", "--force", top)
        return before, total

    disk.write(0, b"abc")
    before, total = live(0, 10_000, "before")
    assert total - before > LIVES
    for number in range(1, LIVES + 1):
        live(number, before + 1 + (number * (total - before - 1)) // LIVES, "before" if number % 2 else "after")
