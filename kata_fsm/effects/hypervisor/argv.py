# SPDX-License-Identifier: Apache-2.0
"""QEMU's command line, from settings and names alone. Pure: the same inputs give the same argv, which is recorded.

What belongs to one sandbox (file share, NICs, disks) is not here: it is plugged after the agent answers, so that a VM
restored from a template can take the same path.
"""

from __future__ import annotations

import hashlib

from kata_fsm.effects.hypervisor.image import Image
from kata_fsm.effects.hypervisor.settings import HypervisorSettings
from kata_fsm.world import Paths

AGENT_PORT = "agent.0"
MACHINES = {
    "q35": "q35,memory-backend=mem,vmport=off",
    # With PCI Express, as what belongs to one sandbox is plugged while it runs: virtio-mmio cannot do that.
    "microvm": "microvm,memory-backend=mem,pcie=on,rtc=on,isa-serial=on",
}
SECCOMP = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def quote(value: str) -> str:
    """`value` inside a QEMU option list, where a comma is written twice."""
    return value.replace(",", ",,")


def uuid_of(uid: str) -> str:
    """The machine's UUID: a version 8 one (RFC 9562, our own sort) that ends in the sandbox's uid.

    It is a whole argument of QEMU's command line, by which the process is found without memory.
    """
    return f"6b617461-6673-8000-8000-{uid}"


def digest(argv: list[str]) -> str:
    """SHA-256 of a command line, hex."""
    return hashlib.sha256("\0".join(argv).encode("utf-8", "surrogateescape")).hexdigest()


def accelerator(settings: HypervisorSettings, accel: str, image_cpu: str = "") -> list[str]:
    """Accelerator and processor: the configured one, or what the image's manifest was measured to be fastest with."""
    how, usual = (
        ("kvm", "host,pmu=off") if accel == "kvm" else (f"tcg,tb-size={settings.tcg_cache_mib}", "max,la57=off")
    )
    return ["-accel", how, "-cpu", ",".join(filter(None, (settings.cpu or image_cpu or usual, settings.cpu_features)))]


def _console(paths: Paths) -> list[str]:
    """The guest's first serial port, written to a file that QEMU appends to.

    A file survives QEMU and us, which a ring inside QEMU would not. It cannot be filled quickly (an emulated UART moves
    a byte per exit), and the supervisor cuts it when it outgrows its limit, which appending makes safe.
    """
    return [
        *("-chardev", f"file,id=console,path={quote(paths.console_log)},append=on"),
        *("-serial", "chardev:console"),
    ]


def _memory(settings: HypervisorSettings) -> str:
    """The guest's memory: shared, because virtiofsd reads and writes it."""
    kind, where = "memory-backend-memfd", ""
    if settings.memory_directory:
        kind, where = "memory-backend-file", f",mem-path={quote(settings.memory_directory)}"
    elif settings.hugepages:
        where = ",hugetlb=on"
    taken = f",prealloc=on,prealloc-threads={settings.vcpus}" if settings.keeps_memory else ""
    return f"{kind},id=mem,size={settings.memory_mib}M,share=on{where}{taken}"


def _devices(settings: HypervisorSettings, paths: Paths) -> list[str]:
    reporting = "off" if settings.keeps_memory else "on"
    devices = [
        *("-device", "virtio-serial-pci,id=serial0"),
        *("-chardev", f"socket,id=agent,path={quote(paths.agent_sock)},server=on,wait=off"),
        *("-device", f"virtserialport,bus=serial0.0,chardev=agent,name={AGENT_PORT}"),
        *("-object", f"rng-random,id=entropy,filename={quote(settings.entropy_source)}"),
        *("-device", "virtio-rng-pci,rng=entropy"),
        # Memory that the guest frees goes back to the host, and the balloon gives way before the guest kills. A huge page
        # that went back might be somebody else's when the guest wants it again, which would be the end of QEMU.
        *("-device", f"virtio-balloon-pci,id=balloon0,free-page-reporting={reporting},deflate-on-oom=on"),
        # An I/O port that says "panicked", if the guest's kernel has the driver.
        *("-device", "pvpanic"),
    ]
    for number in range(settings.root_ports):
        devices += ["-device", f"pcie-root-port,id=rp{number},chassis={number + 1},slot={number + 1}"]
    return devices


def build(
    settings: HypervisorSettings, paths: Paths, image: Image, accel: str, sandbox: str, *, tsc_khz: int = 0
) -> list[str]:
    """The whole command line for `accel`, which is `kvm` or `tcg`. `tsc_khz`: see `Image.command_line`."""
    return [
        settings.qemu,
        *("-name", f"sandbox-{quote(sandbox)},debug-threads=on"),
        *("-uuid", uuid_of(paths.uid)),
        *("-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none"),
        *("-machine", ",".join(filter(None, (MACHINES[settings.machine], settings.machine_options)))),
        *accelerator(settings, accel, image.cpu.get(accel, "")),
        *("-smp", str(settings.vcpus)),
        *("-m", str(settings.memory_mib)),
        *("-object", _memory(settings)),
        *("-kernel", image.kernel),
        *(("-initrd", image.initrd) if image.initrd else ()),
        *("-append", image.command_line(accel, settings, tsc_khz)),
        *_console(paths),
        *_devices(settings, paths),
        *("-chardev", f"socket,id=qmp,path={quote(paths.qmp_sock)},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-pidfile", paths.qemu_pid),
        *(("-sandbox", SECCOMP) if settings.seccomp else ()),
    ]
