# SPDX-License-Identifier: Apache-2.0
"""What a sandbox is made of: QEMU, virtiofsd, the guest image, and whether a guest runs on KVM here."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess

import msgspec
import trio

from kata_fsm import errors
from kata_fsm.check.item import Item
from kata_fsm.effects.hypervisor import image as guest_image
from kata_fsm.effects.hypervisor import kvm
from kata_fsm.effects.hypervisor.settings import HypervisorSettings
from kata_fsm.world import WORLD

COMMAND_S = 20.0
IMAGE_AGE_DAYS = 180
_QEMU_MIN = (5, 1)  # free-page reporting of the balloon
_FEATURES = {
    "device": ("virtio-serial-pci", "virtserialport", "vhost-user-fs-pci", "virtio-rng-pci", "virtio-balloon-pci"),
    "object": ("memory-backend-memfd", "rng-random"),
}


def output(*argv: str) -> str:
    """What a program says when asked, or an empty string: it is not there, it fails, it takes too long."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout + done.stderr).decode("utf-8", "replace") if done.returncode == 0 else ""


def first_line(text: str) -> str:
    """The first line that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _program(name: str, path: str, package: str) -> Item | None:
    """The item for a program that is not there or may not be run; None if it is."""
    fix = f"install {package}, or name it in the configuration"
    if not os.path.exists(path):
        return Item(name=name, verdict="cannot", found=f"no `{path}`", expected="a program", fix=fix)
    if not os.access(path, os.X_OK):
        verdict = "untold" if os.geteuid() else "cannot"
        return Item(name=name, verdict=verdict, found=f"`{path}` may not be run", expected="a program", fix=fix)  # type: ignore[arg-type]
    return None


def qemu(settings: HypervisorSettings) -> list[Item]:
    """Its version, and the devices and objects that our command line names."""
    missing = _program("QEMU", settings.qemu, "qemu-system-x86")
    if missing is not None:
        return [missing]
    said = first_line(output(settings.qemu, "--version"))
    number = re.search(r"version (\d+)\.(\d+)", said)
    good = number is not None and (int(number[1]), int(number[2])) >= _QEMU_MIN
    version = Item(
        name="QEMU",
        verdict="ok" if good else "cannot",
        found=said or "no answer to --version",
        expected=f"version {_QEMU_MIN[0]}.{_QEMU_MIN[1]} or later",
        fix="install a newer qemu-system-x86",
    )
    if not good:
        return [version]
    lacking = [
        f"-{option} {name}"
        for option, names in _FEATURES.items()
        for known in [output(settings.qemu, "-machine", "none", f"-{option}", "help")]
        for name in names
        if not re.search(rf'(^|["\s]){re.escape(name)}(["\s,]|$)', known)
    ]
    features = Item(
        name="QEMU features",
        verdict="cannot" if lacking else "ok",
        found=f"without {', '.join(lacking)}" if lacking else "all that are needed",
        expected=", ".join(name for names in _FEATURES.values() for name in names),
        fix="install qemu-system-x86 with these built in",
    )
    return [version, features]


def virtiofsd(settings: HypervisorSettings) -> Item:
    """It answers when asked for its version."""
    missing = _program("virtiofsd", settings.virtiofsd, "qemu-system-common or virtiofsd")
    if missing is not None:
        return missing
    said = first_line(output(settings.virtiofsd, "--version") or output(settings.virtiofsd, "-V"))
    return Item(
        name="virtiofsd",
        verdict="ok" if said else "cannot",
        found=said or f"`{settings.virtiofsd}` does not answer to --version",
        expected="a program that answers",
        fix="install it again",
    )


def image(settings: HypervisorSettings) -> list[Item]:
    """The guest's kernel and initrd: there, as the manifest says, of one build, and not old."""
    expected = "kernel and initrd as the manifest says"
    fix = "build it: `scripts/setup`, or python -m guest.build"
    try:
        found = guest_image.load(settings)
    except errors.EffectError as error:
        return [Item(name="guest image", verdict="cannot", found=error.message, expected=expected, fix=fix)]
    path = f"{settings.image_directory}/{guest_image.MANIFEST}"
    try:
        with open(path, "rb") as file:
            files = msgspec.json.decode(file.read(), type=guest_image.Manifest).files
    except (OSError, msgspec.DecodeError) as error:
        return [Item(name="guest image", verdict="cannot", found=f"`{path}`: {error}", expected=expected, fix=fix)]
    wrong = [
        f"`{path}` is {what}"
        for path, what in ((found.kernel, _kernel(found.kernel)), (found.initrd, _initrd(found.initrd)))
        if what
    ]
    own = []
    for name, used in ((guest_image.KERNEL, found.kernel), (guest_image.INITRD, found.initrd)):
        if used != f"{settings.image_directory}/{name}":
            own.append(used)
        elif files.get(name, {}).get("sha256") != _digest(used):
            wrong.append(f"`{used}` is not what was built")
    words = [*wrong, *(f"`{one}` is in no manifest" for one in own if one)]
    items = [
        Item(
            name="guest image",
            verdict="cannot" if wrong else "warning" if own else "ok",
            found=", ".join(words) or f"linux {found.kernel_version} in `{settings.image_directory}`, unchanged",
            expected=expected,
            fix=fix,
        )
    ]
    return [*items, *_ages(found, path)]


def _kernel(path: str) -> str:
    """What is wrong with a kernel, by its first bytes: QEMU starts an ELF file or what the x86 boot protocol describes."""
    head = _head(path, 0x206)
    return "" if head.startswith(b"\x7fELF") or head[0x202:] == b"HdrS" else "no kernel"


# What Linux unpacks (usr/Kconfig): cpio in two forms, gzip, bzip2, LZMA, xz, LZO, LZ4, Zstandard.
_ARCHIVES = (
    b"070701",
    b"070702",
    b"\x1f\x8b",
    b"BZh",
    b"\x5d\0\0",
    b"\xfd7zXZ",
    b"\x89LZO",
    b"\x02\x21L\x18",
    b"\x28\xb5\x2f\xfd",
)


def _initrd(path: str) -> str:
    return "" if not path or _head(path, 8).startswith(_ARCHIVES) else "no initrd"


def _head(path: str, count: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(count)
    except OSError:
        return b""


def _ages(found: guest_image.Image, manifest: str) -> list[Item]:
    times = {path: os.stat(path).st_mtime for path in (found.kernel, found.initrd, manifest) if path}
    days = int(WORLD.wall_ns() / 1e9 - min(times.values())) // 86400
    newer = bool(found.initrd) and times[found.kernel] > times[found.initrd] + 86400
    what = f"the oldest file is {days} days old" + (", the kernel is newer than its initrd" if newer else "")
    return [
        Item(
            name="guest image age",
            verdict="warning" if newer or days > IMAGE_AGE_DAYS else "ok",
            found=what,
            expected=f"up to {IMAGE_AGE_DAYS} days, kernel and initrd of one build",
            fix="build it again: python -m guest.build --update",
            needed=False,
        )
    ]


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def kvm_guest(settings: HypervisorSettings) -> Item:
    """Runs the guest's own kernel on KVM, with a limit of time: that the device opens says little (see `kvm.py`)."""
    accel = settings.accel
    expected = 'the guest\'s kernel boots on KVM; without, guests are emulated (`accel = "tcg"`)'
    needed = accel == "kvm"
    if accel == "tcg":
        return Item(
            name="guest on KVM",
            verdict="ok",
            found="not asked for",
            expected="nothing: guests are emulated",
            needed=False,
        )
    if os.geteuid() != 0:
        return Item(
            name="guest on KVM",
            verdict="untold",
            found="only root may try",
            expected=expected,
            fix="run as root",
            needed=needed,
        )
    try:
        answer = trio.run(_ask, settings)
    except errors.EffectError as error:
        return Item(name="guest on KVM", verdict="cannot", found=error.message, expected=expected, needed=needed)
    bad = "cannot" if needed else "warning"
    return Item(
        name="guest on KVM",
        verdict="ok" if answer.works else bad,  # type: ignore[arg-type]
        found=f"it boots ({answer.seconds:.1f} s)" if answer.works else answer.reason,
        expected=expected,
        fix="see the items on cpu, modules and /dev/kvm; a nested host may need another processor model",
        needed=needed,
    )


async def _ask(settings: HypervisorSettings) -> kvm.Answer:
    return await kvm.ask(settings, guest_image.load(settings))
