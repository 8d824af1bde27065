# SPDX-License-Identifier: Apache-2.0
"""Does the host have what a VM needs? Asked before QEMU is started, because its own answers come late or unclear."""

from __future__ import annotations

import os

import msgspec

from kata_fsm import errors, limits
from kata_fsm.effects.hypervisor.settings import HypervisorSettings
from kata_fsm.world import Paths

_MIB = 1 << 20
_SUN_PATH_BYTES = 108  # unix(7), with the final zero byte


def memory() -> dict[str, int]:
    """/proc/meminfo in MiB; what counts huge pages is their number."""
    with open("/proc/meminfo", encoding="ascii") as file:
        rows = (line.split() for line in file)
        return {row[0].rstrip(":"): int(row[1]) >> (10 if row[2:] == ["kB"] else 0) for row in rows}


def fitted(settings: HypervisorSettings) -> HypervisorSettings:
    """The same with as much memory as whole huge pages hold, if it is to be of these."""
    size = memory().get("Hugepagesize", 0) if settings.hugepages else 0
    return msgspec.structs.replace(settings, memory_mib=-(-settings.memory_mib // size) * size) if size else settings


def needed_mib(settings: HypervisorSettings, accel: str) -> int:
    """What a VM will certainly use: the guest's memory is only taken when touched, but booting touches this much. All of it
    when it is taken at the start, and nothing of it when it is of huge pages, which are not counted with the rest."""
    overhead = limits.QEMU_OVERHEAD_KVM_MIB if accel == "kvm" else limits.QEMU_OVERHEAD_TCG_MIB
    if settings.hugepages:
        return overhead
    resident = settings.memory_mib if settings.prealloc else min(settings.memory_mib, limits.GUEST_RESIDENT_MIB)
    return resident + overhead


def check_memory(settings: HypervisorSettings, accel: str, *, now: dict[str, int] | None = None) -> None:
    """Raises EffectError when the guest is larger than the host, or the host has too little left for its boot."""
    now = memory() if now is None else now
    total = now["MemTotal"] + now.get("SwapTotal", 0)
    available = now["MemAvailable"] + now.get("SwapFree", 0)
    evidence: dict[str, object] = {"total_mib": total, "available_mib": available, "guest_mib": settings.memory_mib}
    if settings.memory_mib > total:
        raise errors.EffectError(
            "memory",
            f"the guest's `{settings.memory_mib}` MiB of memory are more than the host's `{total}` MiB",
            evidence=evidence,
            hint="lower `default_memory`",
        )
    needed = needed_mib(settings, accel)
    if needed > available:
        raise errors.EffectError(
            "memory",
            f"not enough free memory: a virtual machine takes `{needed}` MiB to boot, `{available}` MiB are available",
            evidence=evidence,
            hint="stop something, or lower `default_memory`",
        )
    if settings.hugepages:
        _check_huge_pages(settings, now)
    if settings.memory_directory:
        _check_directory(settings)


def _check_huge_pages(settings: HypervisorSettings, now: dict[str, int]) -> None:
    size = now.get("Hugepagesize", 0)
    free = now.get("HugePages_Free", 0) - now.get("HugePages_Rsvd", 0)
    needed = -(-settings.memory_mib // size) if size else 0
    evidence: dict[str, object] = {"free_pages": free, "page_mib": size, "guest_mib": settings.memory_mib}
    if not size:
        raise errors.EffectError("memory", "the host has no huge pages", evidence=evidence)
    if needed > free:
        raise errors.EffectError(
            "memory",
            f"not enough huge pages: the guest's memory takes `{needed}` of `{size}` MiB, `{free}` are free",
            evidence=evidence,
            hint="raise `vm.nr_hugepages`, or set `enable_hugepages` to false",
        )


def _check_directory(settings: HypervisorSettings) -> None:
    directory = settings.memory_directory
    try:
        status = os.statvfs(directory)
    except OSError as error:
        raise errors.EffectError("memory", f"`{directory}` for the guest's memory: {error.strerror}") from error
    free = status.f_bavail * status.f_frsize // _MIB
    if free < settings.memory_mib:  # a file that cannot grow any more ends whoever touches it
        message = f"`{directory}` has `{free}` MiB free, the guest's memory takes `{settings.memory_mib}`"
        raise errors.EffectError("memory", message, evidence={"free_mib": free, "guest_mib": settings.memory_mib})


def check_space(paths: Paths) -> None:
    """Raises EffectError when the run or log directory's file system is full."""
    for directory in (paths.base, paths.logs):
        require_space(directory)


def require_space(directory: str) -> None:
    """Raises EffectError when `directory`'s file system is full."""
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    needed = limits.FREE_SPACE_BYTES_MIN // _MIB
    evidence: dict[str, object] = {"free_bytes": free, "free_inodes": status.f_favail}
    if free < limits.FREE_SPACE_BYTES_MIN:
        raise errors.EffectError(
            "disk",
            f"no disk space: `{directory}` has `{free // _MIB}` MiB free, at least `{needed}` are needed",
            evidence=evidence,
        )
    if status.f_files and not status.f_favail:
        raise errors.EffectError("disk", f"no disk space: `{directory}` has no inodes left", evidence=evidence)


def check_paths(paths: Paths) -> None:
    """Raises EffectError when the run directory's name is too long for a unix socket in it."""
    longest = max(
        len(os.fsencode(path))
        for path in (paths.supervisor_sock, paths.virtiofsd_sock, paths.qmp_sock, paths.agent_sock)
    )
    if longest >= _SUN_PATH_BYTES:
        raise errors.EffectError(
            "paths",
            f"the run directory `{paths.base}` makes socket paths of `{longest}` bytes, legal is up to "
            f"`{_SUN_PATH_BYTES - 1}`",
            hint="choose a shorter run directory",
        )
