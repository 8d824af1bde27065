# SPDX-License-Identifier: Apache-2.0
"""What may be configured about the virtual machine. Recorded with the sandbox, so that a later supervisor agrees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from kata_fsm import errors, limits
from kata_fsm.world import repository_root

ACCELS = ("auto", "kvm", "tcg")


class HypervisorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of QEMU and virtiofsd. Paths are absolute: there may be no PATH. Sizes in MiB.

    Empty `kernel`, `initrd` or `cpu` mean: from the image, from the image, what suits the accelerator. `kernel_params`
    are appended to those of the image's manifest; with `image_params` False they are alone, and so is the kernel.
    """

    qemu: str = "/usr/bin/qemu-system-x86_64"
    virtiofsd: str = "/usr/lib/qemu/virtiofsd"
    virtiofsd_sandbox: Literal["namespace", "chroot"] = "namespace"
    virtiofsd_cache: Literal["auto", "always", "none"] = "auto"
    virtiofsd_arguments: tuple[str, ...] = ()
    share_queue_size: int = 128  # QEMU's own
    image: str = ""
    kernel: str = ""
    initrd: str = ""
    kernel_params: tuple[str, ...] = ()
    image_params: bool = True
    machine: Literal["q35", "microvm"] = "q35"
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    machine_options: str = ""
    cpu: str = ""
    cpu_features: str = ""
    entropy_source: str = "/dev/urandom"
    memory_mib: int = 256
    prealloc: bool = False  # all of it is taken when QEMU starts, and kept
    hugepages: bool = False  # of the host's usual size; then it is taken at once, too
    memory_directory: str = ""  # where the memory is a file without a name; empty: it is anonymous
    vcpus: int = 1
    # Four cost 0.1 s of the boot, sixteen 0.2 to 0.4: each is a bus that one hot-plugged device takes.
    root_ports: int = 4
    # QEMU's cache of translated code: after 16 containers it grows to 208 MB by default, 162 MB with this, no slower.
    tcg_cache_mib: int = 128
    seccomp: bool = True
    vhost_net: bool = True  # where the host has it
    rx_bits_per_s: int = 0  # at most into each of the guest's NICs; 0: as fast as it goes
    tx_bits_per_s: int = 0  # and out of it
    disk_aio: Literal["threads", "native", "io_uring"] = "threads"
    disk_direct: bool = False  # past the host's cache
    disk_noflush: bool = False  # the guest's flushes do nothing

    @property
    def keeps_memory(self) -> bool:
        """Whether the guest's memory is the machine's from start to end: what the guest frees does not go back."""
        return self.prealloc or self.hugepages

    @property
    def image_directory(self) -> str:
        """Where the guest image is: as configured, or where the builder puts it."""
        return self.image or repository_root() + "/build/guest"


def from_dict(raw: Mapping[str, Any]) -> HypervisorSettings:
    """Settings from JSON-able data, checked. Raises UsageError naming the field, the value and what is legal."""
    try:
        settings = msgspec.convert(dict(raw), HypervisorSettings)
    except msgspec.ValidationError as error:
        raise errors.UsageError(f"hypervisor settings: {_lower(str(error))}") from error
    return check(settings)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def check(settings: HypervisorSettings) -> HypervisorSettings:
    """The same settings if they can be. Raises UsageError otherwise."""
    for field in ("qemu", "virtiofsd", "image", "kernel", "initrd", "entropy_source", "memory_directory"):
        path = getattr(settings, field)
        if path and not path.startswith("/"):
            raise errors.UsageError(f"hypervisor setting `{field}` is `{path}`: legal is an absolute path")
    ranges = {
        "memory_mib": (limits.GUEST_MEMORY_MIB_MIN, limits.GUEST_MEMORY_MIB_MAX),
        "vcpus": (1, limits.VCPUS_MAX),
        "root_ports": (1, limits.ROOT_PORTS_MAX),
        "tcg_cache_mib": (1, 4096),
        "share_queue_size": (16, 1024),
        "rx_bits_per_s": (0, limits.RATE_BITS_PER_S_MAX),
        "tx_bits_per_s": (0, limits.RATE_BITS_PER_S_MAX),
    }
    for field, (low, high) in ranges.items():
        value = getattr(settings, field)
        if not low <= value <= high:
            raise errors.UsageError(f"hypervisor setting `{field}` is `{value}`: legal is {low} to {high}")
    for param in settings.kernel_params:
        if "\n" in param or "\0" in param:
            raise errors.UsageError(f"hypervisor setting `kernel_params` holds `{param!r}`: legal is one line")
    return settings
