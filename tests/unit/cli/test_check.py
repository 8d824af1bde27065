# SPDX-License-Identifier: Apache-2.0
"""`check` on this very host: what it says when all is there, and what when something is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from kata_fsm.check.item import Item, able
from kata_fsm.cli import launcher

LIMIT_S = 120.0


def items_of(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in json.loads(done.stdout)["items"]}


def check(command: Any, config: str | None = None, **how: Any) -> tuple[int, dict[str, dict[str, Any]]]:
    words = []
    if config is not None:
        file = command.directory / "configuration.toml"
        file.write_text(config)
        words = ["--config", str(file)]
    done = command(*words, "check", "--json", **how)
    found = items_of(done)
    assert json.loads(done.stdout)["able"] == (done.returncode == 0)
    return done.returncode, found


TCG = "[hypervisor.qemu]\naccel = 'tcg'\n"


def test_a_host_that_can_says_so_in_one_line(command: Any) -> None:
    code, found = check(command, TCG)
    assert code == 0, [item for item in found.values() if item["verdict"] == "cannot"]
    for name in ("configuration", "user", "QEMU", "QEMU features", "virtiofsd", "guest image", "memory", "journal"):
        assert found[name]["verdict"] == "ok", found[name]
    done = command("--config", str(command.directory / "configuration.toml"), "check")
    assert done.stdout.startswith("System can currently create kata-fsm sandboxes")
    assert len(done.stdout.splitlines()) == 1
    verbose = command("--config", str(command.directory / "configuration.toml"), "kata-check", "-v").stdout.splitlines()
    items = [line for line in verbose if ": found " in line]
    assert len(items) == len(found)
    assert all("; expected " in line for line in items)
    assert not (command.directory / "run").exists()
    assert not (command.directory / "state").exists()


def test_every_item_that_is_not_well_says_how_to_fix_it(command: Any) -> None:
    _, found = check(command, TCG)
    assert [item for item in found.values() if item["verdict"] != "ok" and not item["fix"]] == []


def test_kvm_is_tried_by_running_a_guest(command: Any) -> None:
    """Whatever this host says, the answer is the one that `create` would get, and within the limit."""
    code, found = check(command, "[hypervisor.qemu]\naccel = 'kvm'\n")
    works = found["guest on KVM"]["verdict"] == "ok"
    assert found["guest on KVM"]["needed"]
    if not works:
        assert (code, found["guest on KVM"]["verdict"]) == (1, "cannot")
        assert found["guest on KVM"]["found"]


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        (
            "[hypervisor.qemu]\nkernel = 'x'\n",
            "configuration",
            ":2`: `hypervisor.qemu.kernel`: `x` is not an absolute path",
        ),
        (TCG + "path = '/bin/true'\n", "QEMU", "true (GNU coreutils)"),
        (TCG + "path = '/bin/false'\n", "QEMU", "no answer to --version"),
        (TCG + "virtio_fs_daemon = '/bin/false'\n", "virtiofsd", "does not answer to --version"),
        (TCG + "guest_directory = '/etc'\n", "guest image", "there is no guest image"),
        (TCG + "default_memory = 16777216\n", "memory", "MiB available"),
        (TCG + "default_memory = 1000000\nenable_hugepages = true\n", "memory", "of memory are more than the host's"),
        (TCG + "kernel = '/etc/passwd'\n", "guest image", "`/etc/passwd` is no kernel"),
        (TCG + "initrd = '/etc/passwd'\n", "guest image", "`/etc/passwd` is no initrd"),
    ],
)
def test_what_is_missing_is_named_and_the_exit_code_says_so(command: Any, text: str, name: str, words: str) -> None:
    code, found = check(command, text)
    assert (code, found[name]["verdict"]) == (1, "cannot")
    assert words in found[name]["found"]
    assert found[name]["fix"]


def test_an_image_that_is_not_what_was_built_is_told(command: Any, tmp_path: Path) -> None:
    built = Path(__file__).parents[3] / "build" / "guest"
    copy = tmp_path / "guest"
    shutil.copytree(built, copy)
    text = f"{TCG}guest_directory = '{copy}'\n"
    assert check(command, text)[1]["guest image"]["verdict"] == "ok"
    with (copy / "initrd").open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    code, found = check(command, text)
    assert (code, found["guest image"]["verdict"]) == (1, "cannot")
    assert found["guest image"]["found"] == f"`{copy}/initrd` is not what was built"
    os.utime(copy / "initrd", (1, 1))
    aged = check(command, text)[1]["guest image age"]
    assert aged["verdict"] == "warning"
    assert "the kernel is newer than its initrd" in aged["found"]


def test_a_damaged_journal_is_told(command: Any) -> None:
    command.add("one")
    assert check(command, TCG)[1]["journal"]["found"].startswith("ok: ")
    (data,) = (command.directory / "state" / "journal").glob("data.mdb")
    content = bytearray(data.read_bytes())
    content[8192:] = os.urandom(len(content) - 8192)
    data.write_bytes(content)
    code, found = check(command, TCG)
    assert (code, found["journal"]["verdict"]) == (1, "cannot")
    assert "journal salvage" in found["journal"]["fix"]


def test_taps_need_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from kata_fsm.check import host

    assert host.tun("tcfilter").verdict == "ok"
    monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(FileNotFoundError(2, "No such file")))
    assert (host.tun("tcfilter").verdict, host.tun("tcfilter").found) == ("cannot", "it does not exist")
    assert (host.tun("macvtap").verdict, host.tun("none").verdict) == ("ok", "ok")


def test_a_plain_chroot_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """There `/` is no mount, and a view of it cannot be made."""
    from kata_fsm.check import host
    from kata_fsm.effects import mounts

    table = [mount for mount in mounts.table() if mount.point != "/"]
    monkeypatch.setattr(mounts, "table", lambda: table)
    assert (host.propagation().verdict, host.propagation().needed) == ("cannot", True)


def test_leftovers_are_told_and_do_not_stand_in_the_way(command: Any) -> None:
    stray = command.directory / "run" / "sandboxes" / "fedcba987654"
    stray.mkdir(parents=True)
    os.utime(stray, (1, 1))  # a young one is taken for one that is just being made
    code, found = check(command, TCG)
    assert (code, found["leftovers"]["verdict"]) == (0, "warning")
    assert found["leftovers"]["found"] == "1 traces of `fedcba987654`: the journal has no such sandbox"
    assert "kata-fsm recover" in found["leftovers"]["fix"]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_who_is_not_root_hears_what_he_may_not_know() -> None:
    """`cannot` is one thing, `untold` another."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        path = Path(directory) / "kata-fsm"
        path.write_text(launcher.text(os.path.realpath(sys.executable), launcher.search_path()))
        path.chmod(0o755)
        hidden = Path(directory) / "state"
        hidden.mkdir(mode=0o700)
        (hidden / "journal").mkdir()
        environment = {"KATA_FSM_RUN": directory + "/run", "KATA_FSM_STATE": str(hidden)}
        argv = [str(path), "check", "--json"]
        done = subprocess.run(
            argv, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False, user=65534, group=65534
        )
    found = items_of(done)
    assert done.returncode == 1
    assert (found["user"]["verdict"], found["user"]["found"].split()[:2]) == ("cannot", ["uid", "65534"])
    assert (found["journal"]["verdict"], found["journal"]["fix"]) == ("untold", "run as root")
    assert (found["guest on KVM"]["verdict"], found["disk: state directory"]["verdict"]) == ("untold", "untold")
    assert found["QEMU"]["verdict"] == "ok"


def test_nothing_asks_the_network(command: Any) -> None:
    for option in ("--only-list-releases", "--check-version-only"):
        done = command("check", option)
        assert (done.returncode, done.stderr.partition(" (")[0]) == (
            1,
            f"check: {option}: nothing here asks the network",
        )


def test_only_what_is_needed_stands_in_the_way() -> None:
    def item(verdict: Any, needed: bool) -> Item:
        return Item(name="x", verdict=verdict, found="f", expected="e", needed=needed)

    assert able([item("ok", True), item("warning", True), item("cannot", False), item("untold", False)])
    assert not able([item("cannot", True)])
    assert not able([item("untold", True)])
