# SPDX-License-Identifier: Apache-2.0
"""The guest image as QEMU needs it: kernel, initrd, and the kernel parameters that its manifest asks for."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from kata_fsm import errors
from kata_fsm.effects.hypervisor.settings import HypervisorSettings

MANIFEST = "manifest.json"
KERNEL = "vmlinux"
INITRD = "initrd"


class Parameters(msgspec.Struct, frozen=True):
    """Kernel parameters: for every accelerator, and for one alone."""

    common: tuple[str, ...] = ()
    tcg: tuple[str, ...] = ()
    kvm: tuple[str, ...] = ()


class Manifest(msgspec.Struct, frozen=True):
    """What we need of an image's `manifest.json`; other fields are the builder's own."""

    kernel: str = ""
    parameters: Parameters = Parameters()
    cpu: dict[str, str] = {}  # QEMU's -cpu by accelerator
    files: dict[str, Any] = {}


class Image(msgspec.Struct, frozen=True):
    """A bootable image. `initrd` may be empty."""

    kernel: str
    initrd: str
    parameters: Parameters
    kernel_version: str = ""
    cpu: dict[str, str] = {}

    def command_line(self, accel: str, settings: HypervisorSettings, tsc_khz: int = 0) -> str:
        """The kernel command line for `accel` (`kvm` or `tcg`): the image's parameters, then the configured ones.

        `tsc_khz`: for a machine without any timer but the local APIC's, the speed of the time stamp counter.
        """
        words: tuple[str, ...] = ()
        if settings.image_params:
            words = self.parameters.common + (self.parameters.kvm if accel == "kvm" else self.parameters.tcg)
        if settings.machine == "microvm":
            words = (*words, "pcie_ports=native")  # its ACPI tables do not hand the root ports' hotplug to the kernel
        if tsc_khz:
            words = (*(word for word in words if word != "nolapic_timer"), f"tsc_early_khz={tsc_khz}")
        return " ".join(words + settings.kernel_params)


def load(settings: HypervisorSettings) -> Image:
    """The image that `settings` name. Raises EffectError when a file is not there or the manifest is not one."""
    directory = settings.image_directory
    manifest = Manifest()
    if settings.image_params or not settings.kernel:
        manifest = _manifest(f"{directory}/{MANIFEST}")
    kernel = settings.kernel or f"{directory}/{KERNEL}"
    initrd = settings.initrd or (f"{directory}/{INITRD}" if settings.image_params else "")
    for what, path in (("kernel", kernel), ("initrd", initrd)):
        if path and not os.access(path, os.R_OK):
            raise errors.EffectError(
                "image", f"the guest's {what} `{path}` cannot be read", hint="build the guest image"
            )
    return Image(kernel, initrd, manifest.parameters, manifest.kernel, manifest.cpu)


def _manifest(path: str) -> Manifest:
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=Manifest)
    except OSError as error:
        raise errors.EffectError(
            "image", f"there is no guest image: `{path}`: {error.strerror}", hint="build the guest image"
        ) from error
    except msgspec.DecodeError as error:
        raise errors.EffectError("image", f"`{path}` is not an image's manifest: {error}") from error
