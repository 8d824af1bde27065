# SPDX-License-Identifier: Apache-2.0
"""`env`: Kata's schema key by key, ours beside it, the same in TOML and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli

from kata_fsm import __version__

# Tables and keys of Kata's format 1.0.27, and the version of our own: what is here stays.
SCHEMA = """
Meta.Version Runtime.Path Runtime.GuestSeLinuxLabel Runtime.Debug Runtime.Trace Runtime.DisableGuestSeccomp
Runtime.DisableNewNetNs Runtime.SandboxCgroupOnly Runtime.Experimental Runtime.Config.Path Runtime.Version.OCI
Runtime.Version.Version.Semver Runtime.Version.Version.Commit Runtime.Version.Version.Major Runtime.Version.Version.Minor
Runtime.Version.Version.Patch Hypervisor.MachineType Hypervisor.Version Hypervisor.Path Hypervisor.BlockDeviceDriver
Hypervisor.EntropySource Hypervisor.SharedFS Hypervisor.VirtioFSDaemon Hypervisor.SocketPath Hypervisor.Msize9p
Hypervisor.MemorySlots Hypervisor.HotPlugVFIO Hypervisor.ColdPlugVFIO Hypervisor.PCIeRootPort Hypervisor.PCIeSwitchPort
Hypervisor.Debug Hypervisor.SecurityInfo.Rootless Hypervisor.SecurityInfo.DisableSeccomp
Hypervisor.SecurityInfo.GuestHookPath Hypervisor.SecurityInfo.EnableAnnotations Hypervisor.SecurityInfo.ConfidentialGuest
Image.Path Kernel.Path Kernel.Parameters Initrd.Path Agent.Debug Agent.Trace Host.Kernel Host.Architecture
Host.AvailableGuestProtections Host.VMContainerCapable Host.SupportVSocks Host.Distro.Name Host.Distro.Version
Host.CPU.Vendor Host.CPU.Model Host.CPU.CPUs Host.Memory.Total Host.Memory.Free Host.Memory.Available
KataFsm.Format KataFsm.RunDirectory KataFsm.StateDirectory KataFsm.Journal.Path KataFsm.Journal.Exists
KataFsm.Config.DropIns KataFsm.Config.WithoutEffect KataFsm.Config.Warnings KataFsm.Guest.Directory KataFsm.Guest.Kernel
KataFsm.Guest.MemoryMiB KataFsm.Guest.CPUs KataFsm.Accelerator.Configured KataFsm.Accelerator.KVM KataFsm.Cgroups
KataFsm.Python
"""


def keys(table: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in table.items():
        found += keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
    return found


def test_the_schema_is_kept(command: Any) -> None:
    found = tomli.loads(command("env").stdout)
    assert sorted(keys(found)) == sorted(SCHEMA.split())
    assert (found["Meta"]["Version"], found["KataFsm"]["Format"]) == ("1.0.27", "1.0")
    assert found["Runtime"]["Version"]["Version"]["Semver"] == __version__
    assert (found["Host"]["VMContainerCapable"], found["Runtime"]["SandboxCgroupOnly"]) == (True, True)
    assert found["Hypervisor"]["Version"].startswith("QEMU emulator version ")
    assert not (command.directory / "state").exists()


def test_json_and_the_older_name_say_the_same(command: Any) -> None:
    one, other = tomli.loads(command("env").stdout), json.loads(command("kata-env", "--json").stdout)
    for each in (one, other):
        del each["Host"]["Memory"]["Free"], each["Host"]["Memory"]["Available"]
    assert one == other


def test_what_is_configured_is_in_it(command: Any, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        "[hypervisor.qemu]\nenable_annotations = ['x\"y']\nmsize_9p = 1\n[agent.kata]\nenable_debug = true\n"
    )
    found = tomli.loads(command("--config", str(file), "env").stdout)
    assert found["Runtime"]["Config"]["Path"] == str(file)
    assert found["Hypervisor"]["SecurityInfo"]["EnableAnnotations"] == ['x"y']
    assert found["Agent"]["Debug"] is True
    assert found["Kernel"]["Parameters"].endswith("agent.log=debug")
    assert found["KataFsm"]["Config"]["WithoutEffect"] == ["hypervisor.qemu.msize_9p"]


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("where", ["checkout", "work tree"])
@pytest.mark.parametrize("form", ["loose", "packed", "detached"])
def test_the_commit_of_a_checkout_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, form: str
) -> None:
    from kata_fsm.cli.verbs import version

    git = tmp_path / ".git"
    if where == "work tree":
        own, git = tmp_path / "main" / "worktrees" / "w", tmp_path / "main"
        own.mkdir(parents=True)
        (tmp_path / ".git").write_text(f"gitdir: {own}\n")
        (own / "commondir").write_text("../..\n")
    else:
        own = git
        git.mkdir()
    (own / "HEAD").write_text(COMMIT if form == "detached" else "ref: refs/heads/x/y\n")
    if form == "loose":
        (git / "refs" / "heads" / "x").mkdir(parents=True)
        (git / "refs" / "heads" / "x" / "y").write_text(COMMIT + "\n")
    else:
        (git / "packed-refs").write_text(f"# pack-refs with: peeled\n{COMMIT} refs/heads/x/y\n^{'0' * 40}\n")
    monkeypatch.setattr(version, "repository_root", lambda: str(tmp_path))
    assert version.commit() == COMMIT
    (own / "HEAD").unlink()
    assert version.commit() == "unknown"
