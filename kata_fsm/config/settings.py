# SPDX-License-Identifier: Apache-2.0
"""The configuration file's sections and keys that this version honours, typed. Key names are Kata's.

Keys of Kata that are not here are legal and named in a warning once: a configuration written for Kata is a starting
point, not an error.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

import msgspec

from kata_fsm.errors import UsageError
from kata_fsm.world import repository_root

INSTALLED_GUEST = "/usr/share/kata-fsm/guest"

Positive = Annotated[int, msgspec.Meta(ge=1)]


class Qemu(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[hypervisor.qemu]`. Empty strings and None mean: the default that the hypervisor handler documents."""

    path: str = ""
    kernel: str = ""
    initrd: str = ""
    image: str = ""
    guest_directory: str = ""  # ours: kernel, initrd and manifest as the image builder leaves them
    machine_type: str = ""
    accel: Literal["auto", "kvm", "tcg"] = "auto"  # ours
    cpu: str = ""  # ours: QEMU's -cpu
    default_memory: Positive | None = None  # MiB
    default_vcpus: int | None = None  # 0 means 1, below 0 as many as the host has, as in Kata
    kernel_params: str = ""
    enable_debug: bool = False
    virtio_fs_daemon: str = ""
    disable_vhost_net: bool = False
    pcie_root_port: Positive | None = None  # buses for hot-plugged devices: the file share and each NIC take one
    seccompsandbox: str | None = None  # Kata passes it to QEMU's -sandbox; here: anything but `off` leaves it on


class Agent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[agent.kata]`."""

    enable_debug: bool = False
    dial_timeout: Positive | None = None  # seconds, from QEMU's start until the agent has answered


class Runtime(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[runtime]`."""

    enable_debug: bool = False
    internetworking_model: Literal["tcfilter", "macvtap", "none"] = "tcfilter"
    disable_guest_seccomp: bool = False


SECTIONS: dict[tuple[str, ...], type[msgspec.Struct]] = {
    ("hypervisor", "qemu"): Qemu,
    ("agent", "kata"): Agent,
    ("runtime",): Runtime,
}


class Settings(msgspec.Struct, frozen=True):
    """All settings, the file they came from (None: built-in), and what has to be warned about."""

    qemu: Qemu = Qemu()
    agent: Agent = Agent()
    runtime: Runtime = Runtime()
    origin: str | None = None
    warnings: tuple[str, ...] = ()


def default_guest_directory() -> str:
    """Where the guest image is: beside the code in a checkout that has built one, else where packages put it."""
    built = repository_root() + "/build/guest"
    return built if os.path.isdir(built) else INSTALLED_GUEST


def hypervisor_settings(settings: Settings) -> dict[str, Any]:
    """`[hypervisor.qemu]` in the hypervisor handler's words; keys that were not set are left to its defaults."""
    qemu = settings.qemu
    params = qemu.kernel_params.split()
    if qemu.enable_debug or settings.agent.enable_debug:
        params.append("agent.log=debug")
    found: dict[str, Any] = {
        "qemu": qemu.path,
        "virtiofsd": qemu.virtio_fs_daemon,
        "image": qemu.guest_directory or default_guest_directory(),
        "kernel": qemu.kernel,
        "initrd": qemu.initrd,
        "machine": qemu.machine_type,
        "accel": qemu.accel,
        "cpu": qemu.cpu,
        "memory_mib": qemu.default_memory,
        "vcpus": _vcpus(qemu.default_vcpus),
        "kernel_params": params,
        "root_ports": qemu.pcie_root_port,
    }
    if qemu.disable_vhost_net:
        found["vhost_net"] = False
    if qemu.seccompsandbox == "off":
        found["seccomp"] = False
    return {name: value for name, value in found.items() if value not in ("", None, [])}


def _vcpus(count: int | None) -> int | None:
    host = os.cpu_count() or 1
    if count is None:
        return None
    return host if count < 0 or count > host else max(1, count)


def check(settings: Settings, origin: str) -> Settings:
    """The same settings if they can be. Raises `UsageError` naming file, key, value and what is legal."""
    qemu = settings.qemu
    if qemu.image and not qemu.initrd:
        raise UsageError(
            f"`{origin}`: `hypervisor.qemu.image`: guest images on a disk are not supported",
            hint="set `initrd` instead",
        )
    if qemu.machine_type not in ("", "q35"):
        raise UsageError(
            f"`{origin}`: `hypervisor.qemu.machine_type`: `{qemu.machine_type}` is not supported, `q35` is"
        )
    for name in ("path", "kernel", "initrd", "guest_directory", "virtio_fs_daemon"):
        path = getattr(qemu, name)
        if path and not path.startswith("/"):
            raise UsageError(f"`{origin}`: `hypervisor.qemu.{name}`: `{path}` is not an absolute path")
        if path and not os.path.exists(path):
            raise UsageError(f"`{origin}`: `hypervisor.qemu.{name}`: `{path}` does not exist")
    return settings
