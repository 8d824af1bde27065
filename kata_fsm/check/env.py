# SPDX-License-Identifier: Apache-2.0
"""What `env` prints: Kata's schema (tables and keys of its format 1.0.27), and our own table beside it."""

from __future__ import annotations

import os
import sys
from typing import Any

from kata_fsm import __version__, errors
from kata_fsm.check import host, machine
from kata_fsm.config.settings import Settings, effective, hypervisor_settings
from kata_fsm.effects import cgroup
from kata_fsm.effects.hypervisor import image as guest_image
from kata_fsm.effects.hypervisor import kvm
from kata_fsm.effects.hypervisor.settings import HypervisorSettings, from_dict
from kata_fsm.spawn import launcher
from kata_fsm.world import journal_dir, run_dir, state_dir

KATA_FORMAT = "1.0.27"
FORMAT = "1.0"
"""Version of our own table: the second number for what is added, the first for what changes its meaning or goes."""

UNKNOWN = "<<unknown>>"


def collect(settings: Settings, *, commit: str, oci: str) -> dict[str, Any]:
    """All of it, as nested tables of strings, numbers, booleans and lists."""
    asked = from_dict(hypervisor_settings(settings))
    return {
        "Meta": {"Version": KATA_FORMAT},
        "Runtime": _runtime(settings, commit, oci),
        "Hypervisor": _hypervisor(settings, asked),
        "Image": {"Path": settings.qemu.image},
        "Kernel": _kernel(settings, asked),
        "Initrd": {"Path": effective(settings)["hypervisor.qemu.initrd"]},
        "Agent": {"Debug": settings.agent.enable_debug or settings.qemu.enable_debug, "Trace": False},
        "Host": _host(asked),
        "KataFsm": _ours(settings, asked),
    }


def _runtime(settings: Settings, commit: str, oci: str) -> dict[str, Any]:
    numbers = [int(part) for part in __version__.split(".")[:3]]
    return {
        "Path": launcher(),
        "GuestSeLinuxLabel": "",
        "Debug": settings.runtime.enable_debug,
        "Trace": False,
        "DisableGuestSeccomp": settings.runtime.disable_guest_seccomp,
        "DisableNewNetNs": False,
        "SandboxCgroupOnly": True,  # they are in the engine's, in any case
        "Experimental": [],
        "Config": {"Path": settings.origin or ""},
        "Version": {
            "OCI": oci,
            "Version": {
                "Semver": __version__,
                "Commit": commit,
                **dict(zip(("Major", "Minor", "Patch"), numbers, strict=True)),
            },
        },
    }


def _hypervisor(settings: Settings, asked: HypervisorSettings) -> dict[str, Any]:
    return {
        "MachineType": asked.machine,
        "Version": machine.first_line(machine.output(asked.qemu, "--version")) or UNKNOWN,
        "Path": asked.qemu,
        "BlockDeviceDriver": "none",
        "EntropySource": asked.entropy_source,
        "SharedFS": "virtio-fs",
        "VirtioFSDaemon": asked.virtiofsd,
        "SocketPath": "",
        "Msize9p": 0,
        "MemorySlots": 0,
        "HotPlugVFIO": "no-port",
        "ColdPlugVFIO": "no-port",
        "PCIeRootPort": asked.root_ports,
        "PCIeSwitchPort": 0,
        "Debug": settings.qemu.enable_debug,
        "SecurityInfo": {
            "Rootless": False,
            "DisableSeccomp": not asked.seccomp,
            "GuestHookPath": "",
            "EnableAnnotations": list(settings.qemu.enable_annotations),
            "ConfidentialGuest": False,
        },
    }


def _image(asked: HypervisorSettings) -> guest_image.Image | None:
    try:
        return guest_image.load(asked)
    except errors.EffectError:
        return None


def _kernel(settings: Settings, asked: HypervisorSettings) -> dict[str, Any]:
    found = _image(asked)
    accel = "kvm" if asked.accel == "kvm" else "tcg"
    line = found.command_line(accel, asked) if found else " ".join(asked.kernel_params)
    return {"Path": effective(settings)["hypervisor.qemu.kernel"], "Parameters": line}


def _distribution() -> dict[str, str]:
    rows = {}
    try:
        with open("/etc/os-release", encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, value = line.strip().partition("=")
                rows[name] = value.strip("\"'")
    except OSError:
        pass
    return {"Name": rows.get("NAME", UNKNOWN), "Version": rows.get("VERSION_ID", UNKNOWN)}


def _memory_kib() -> dict[str, int]:
    found = {}
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            name, _, rest = line.partition(":")
            found[name] = int(rest.split()[0])
    return {"Total": found["MemTotal"], "Free": found["MemFree"], "Available": found["MemAvailable"]}


def _host(asked: HypervisorSettings) -> dict[str, Any]:
    system, cpu = os.uname(), host.cpu_facts()
    return {
        "Kernel": system.release,
        "Architecture": {"x86_64": "amd64"}.get(system.machine, system.machine),
        "AvailableGuestProtections": [],
        "VMContainerCapable": os.access(asked.qemu, os.X_OK) and _image(asked) is not None,
        "SupportVSocks": os.path.exists("/dev/vhost-vsock"),
        "Distro": _distribution(),
        "CPU": {"Vendor": cpu["vendor"] or UNKNOWN, "Model": cpu["model"] or UNKNOWN, "CPUs": os.cpu_count() or 1},
        "Memory": _memory_kib(),
    }


def _ours(settings: Settings, asked: HypervisorSettings) -> dict[str, Any]:
    found = _image(asked)
    answer = kvm.remembered(asked, found) if found else None
    unified = [one.unified for one in cgroup.hierarchies()]
    return {
        "Format": FORMAT,
        "RunDirectory": run_dir(),
        "StateDirectory": state_dir(),
        "Journal": {"Path": journal_dir(), "Exists": os.path.isdir(journal_dir())},
        "Config": {
            "DropIns": list(settings.drop_ins),
            "WithoutEffect": [one.key for one in settings.ignored],
            "Warnings": list(settings.warnings),
        },
        "Guest": {
            "Directory": asked.image_directory,
            "Kernel": found.kernel_version if found else UNKNOWN,
            "MemoryMiB": asked.memory_mib,
            "CPUs": asked.vcpus,
        },
        "Accelerator": {
            "Configured": asked.accel,
            "KVM": UNKNOWN if answer is None else "works" if answer.works else f"does not work: {answer.reason}",
        },
        "Cgroups": "none" if not unified else "v2" if all(unified) else "v1 and v2" if any(unified) else "v1",
        "Python": ".".join(str(number) for number in sys.version_info[:3]),
    }
