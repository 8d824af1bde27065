# SPDX-License-Identifier: Apache-2.0
"""The host: user, processor, modules, devices, cgroups, mounts, memory, disk. Every function answers items, none raises."""

from __future__ import annotations

import errno
import os

from kata_fsm import errors, limits
from kata_fsm.check.item import Item
from kata_fsm.effects import cgroup, mounts, process
from kata_fsm.effects.hypervisor import host
from kata_fsm.effects.hypervisor.settings import HypervisorSettings
from kata_fsm.world import Paths, journal_dir, run_dir, state_dir

_CAPABILITIES = {"CAP_SYS_ADMIN": 21, "CAP_NET_ADMIN": 12, "CAP_MKNOD": 27, "CAP_DAC_OVERRIDE": 1}


def user() -> Item:
    """Only root may mount, make namespaces and cgroups."""
    uid = os.geteuid()
    lacking = [name for name, number in _CAPABILITIES.items() if not process.has_capability(number)]
    found = f"uid {uid}" + (f" without {', '.join(lacking)}" if lacking else "")
    good = uid == 0 and not lacking
    return Item(
        name="user",
        verdict="ok" if good else "cannot",
        found=found,
        expected=f"root with {', '.join(_CAPABILITIES)}",
        fix="run as root, in a container with those capabilities",
    )


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def cpu_facts() -> dict[str, str]:
    """`vendor`, `model`, `flags` of the first processor; empty strings for what /proc/cpuinfo does not say."""
    rows: dict[str, str] = {}
    for line in _read("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        rows.setdefault(name.strip(), value.strip())
    return {"vendor": rows.get("vendor_id", ""), "model": rows.get("model name", ""), "flags": rows.get("flags", "")}


def processor(accel: str) -> Item:
    """Hardware virtualisation, which KVM needs and emulation does not."""
    facts = cpu_facts()
    flags = facts["flags"].split()
    kind = next((flag for flag in ("vmx", "svm") if flag in flags), "")
    machine = os.uname().machine
    if machine != "x86_64":
        return Item(name="cpu", verdict="cannot", found=machine, expected="x86_64", fix="use an x86-64 host")
    verdict = "ok" if kind or accel == "tcg" else "cannot" if accel == "kvm" else "warning"
    return Item(
        name="cpu",
        verdict=verdict,  # type: ignore[arg-type]
        found=f"{facts['vendor'] or 'unknown vendor'}, {f'`{kind}`' if kind else 'neither `vmx` nor `svm`'}",
        expected='`vmx` or `svm` for KVM; without, guests are emulated (`accel = "tcg"`)',
        fix="enable virtualisation in the firmware, or nested virtualisation on the host of this machine",
        needed=accel == "kvm",
    )


def _module_state(name: str) -> str:
    if os.path.isdir(f"/sys/module/{name}"):
        return "loaded"
    release = os.uname().release
    built_in = _read(f"/lib/modules/{release}/modules.builtin")
    if f"/{name}.ko" in built_in:
        return "built in"
    available = _read(f"/lib/modules/{release}/modules.dep")
    return "not loaded" if f"/{name}.ko" in available else "not there"


def modules(accel: str) -> list[Item]:
    """kvm and its vendor's half; vhost, which moves packets in the kernel where it is there."""
    amd = cpu_facts()["vendor"] == "AuthenticAMD"
    items = []
    for name, wanted in (("kvm", True), ("kvm_amd" if amd else "kvm_intel", True), ("vhost", False)):
        state = _module_state(name)
        good = state in ("loaded", "built in") or (name.startswith("kvm") and os.path.exists("/dev/kvm"))
        shown = "its device is there" if good and state.startswith("not") else state
        needed = wanted and accel == "kvm"
        verdict = "ok" if good or not wanted or accel == "tcg" else "cannot" if needed else "warning"
        items.append(
            Item(
                name=f"module {name}",
                verdict=verdict,  # type: ignore[arg-type]
                found=shown,
                expected="loaded or built in"
                if wanted
                else "loaded, for /dev/vhost-net; without, QEMU moves the packets",
                fix=f"modprobe {name}",
                needed=needed,
            )
        )
    return items


def device(path: str, accel: str, *, wanted: bool, without: str = "") -> Item:
    """Whether a device opens; that it does not exist is told apart from that it may not be opened. `without`: what holds if
    it does not."""
    needed = wanted and accel == "kvm"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        found, verdict = "it opens", "ok"
    except OSError as error:
        found = "it does not exist" if error.errno == errno.ENOENT else f"it does not open: {error.strerror}"
        verdict = "untold" if error.errno in (errno.EACCES, errno.EPERM) and os.geteuid() else "cannot"
    if not needed and verdict == "cannot":
        verdict = "warning" if wanted and accel != "tcg" else "ok"
    return Item(
        name=path,
        verdict=verdict,  # type: ignore[arg-type]
        found=found,
        expected="it opens" + (f"; {without}" if without else ""),
        fix="load its module; in a container, pass the device in",
        needed=needed,
    )


def tun(model: str) -> Item:
    """What the taps of a pod's network are made with."""
    path, wanted = "/dev/net/tun", model == "tcfilter"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        found, verdict = "it opens", "ok"
    except OSError as error:
        found = "it does not exist" if error.errno == errno.ENOENT else f"it does not open: {error.strerror}"
        refused = error.errno in (errno.EACCES, errno.EPERM) and os.geteuid()
        verdict = "ok" if not wanted else "untold" if refused else "cannot"
    return Item(
        name=path,
        verdict=verdict,  # type: ignore[arg-type]
        found=found,
        expected="it opens: a pod with a network has taps"
        if wanted
        else f"not needed with the network model `{model}`",
        fix="modprobe tun; in a container, pass the device in",
    )


def control_groups() -> Item:
    """Any mode serves; there have to be some, and they have to be writable."""
    found = cgroup.hierarchies()
    unified = [one for one in found if one.unified]
    mode = "none" if not found else "v2" if len(unified) == len(found) else "v1 and v2" if unified else "v1"
    writable = [one for one in found if os.access(one.point, os.W_OK)]
    verdict = "ok" if writable else "untold" if found and os.geteuid() else "cannot"
    return Item(
        name="cgroups",
        verdict=verdict,  # type: ignore[arg-type]
        found=f"{mode}, {len(writable)} of {len(found)} hierarchies writable",
        expected="v1, v2 or both, writable",
        fix="mount cgroups; in a container, mount them writable",
    )


def memory(settings: HypervisorSettings, accel: str) -> Item:
    """Enough for one sandbox to boot."""
    now = host.memory()
    needed = host.needed_mib(settings, accel)
    expected = f"{needed} MiB for one sandbox of {settings.memory_mib} MiB to boot"
    found = f"{now['MemAvailable']} of {now['MemTotal']} MiB available"
    try:
        host.check_memory(settings, accel, now=now)
    except errors.EffectError as error:
        return Item(
            name="memory",
            verdict="cannot",
            found=f"{found}: {error.message}",
            expected=expected,
            fix=error.hint or "make room, or lower `default_memory`",
        )
    return Item(name="memory", verdict="ok", found=found, expected=expected)


def _existing(path: str) -> str:
    while not os.path.exists(path):
        path = os.path.dirname(path) or "/"
    return path


def disk() -> list[Item]:
    """Space for a sandbox's sockets, logs and records. The directories need not exist yet."""
    items = []
    expected = f"{limits.FREE_SPACE_BYTES_MIN >> 20} MiB and inodes free, writable"
    for name, path in (("run directory", run_dir()), ("state directory", state_dir()), ("journal", journal_dir())):
        there = _existing(path)
        status = os.statvfs(there)
        found = f"{status.f_bavail * status.f_frsize >> 20} MiB free at `{path}`"
        verdict, fix = "ok", "free some space, or move it (KATA_FSM_RUN, KATA_FSM_STATE)"
        try:
            host.require_space(there)
        except errors.EffectError:
            verdict = "cannot"
        if not os.access(there, os.W_OK):
            verdict = "untold" if os.geteuid() else "cannot"
            found += ", not writable"
            fix = "run as root" if os.geteuid() else "make it writable"
        items.append(
            Item(name=f"disk: {name}", verdict=verdict, found=found, expected=expected, fix=fix)  # type: ignore[arg-type]
        )
    return items


def socket_paths() -> Item:
    """A unix socket's path holds 107 bytes."""
    paths = Paths("0" * 12)
    try:
        host.check_paths(paths)
    except errors.EffectError as error:
        return Item(
            name="socket paths", verdict="cannot", found=error.message, expected="up to 107 bytes", fix=error.hint or ""
        )
    return Item(name="socket paths", verdict="ok", found=f"`{paths.virtiofsd_sock}`", expected="up to 107 bytes")


def propagation() -> Item:
    """How mounts spread where the run directory is. What an engine mounts elsewhere has to become visible here."""
    there = os.path.realpath(_existing(run_dir()))
    around = [
        mount for mount in mounts.table() if there == mount.point or there.startswith(mount.point.rstrip("/") + "/")
    ]
    if not any(mount.point == "/" for mount in mounts.table()):
        return Item(
            name="mounts",
            verdict="cannot",
            found="`/` is no mount, as in a plain chroot",
            expected="a mount: processes of a sandbox get a view of their own of it",
            fix="mount --bind DIRECTORY DIRECTORY before chroot DIRECTORY",
        )
    if not around:
        return Item(name="mounts", verdict="untold", found="no mount table", expected="`shared`", needed=False)
    mount = max(around, key=lambda one: len(one.point))
    words = [word.partition(":")[0] for word in mount.optional] or ["private"]
    good = any(word in ("shared", "master") for word in words)
    return Item(
        name="mounts",
        verdict="ok" if good else "warning",
        found=f"`{mount.point}` is {', '.join(words)}",
        expected="`shared`, or what is mounted in other namespaces stays unseen by running sandboxes",
        fix=f"mount --make-rshared {mount.point}",
        needed=False,
    )
