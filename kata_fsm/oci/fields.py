# SPDX-License-Identifier: Apache-2.0
"""Every field of `config.json` (runtime-spec 1.3, for Linux), and what becomes of it here.

A field is applied in the guest, used on the host, refused by name, or not applied and warned about by name; what is not in
these tables is warned about as unknown. So nothing is dropped silently. Tables that name an object without its members mean
all of it. Paths are written `mounts[].options`; `annotations.*` stands for any name. What the guest's `crun` (1.8.1 of
Debian 12) does not apply must not stand in `GUEST`, though it might read it: crun ignores what it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from kata_fsm.oci.reading import fault

Document = dict[str, Any]


def _under(parent: str, names: str) -> list[str]:
    return [f"{parent}.{name}" for name in names.split()]


HOST_HOOKS = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
"""The kinds of hooks that run on the host: all but startContainer."""

GUEST = frozenset(
    [
        *("process", "hostname", "domainname", "mounts", "linux", "annotations", "annotations.*"),
        *_under("process", "args cwd env user terminal consoleSize rlimits noNewPrivileges oomScoreAdj capabilities"),
        *_under("process.user", "uid gid umask additionalGids"),
        *_under("process.consoleSize", "height width"),
        *_under("process.capabilities", "bounding effective inheritable permitted ambient"),
        *_under("process.rlimits[]", "type soft hard"),
        *_under("root", "readonly"),
        *_under("mounts[]", "destination type source options"),
        *_under("hooks", "startContainer"),
        *_under("hooks.startContainer[]", "path args env timeout"),
        *_under("linux", "namespaces devices resources sysctl seccomp maskedPaths readonlyPaths personality"),
        *_under("linux", "rootfsPropagation uidMappings gidMappings"),
        *_under("linux.namespaces[]", "type"),
        *_under("linux.uidMappings[]", "containerID hostID size"),
        *_under("linux.gidMappings[]", "containerID hostID size"),
        *_under("linux.devices[]", "type path major minor fileMode uid gid"),
        *_under("linux.personality", "domain"),
        *_under("linux.sysctl", "*"),
        *_under("linux.seccomp", "defaultAction defaultErrnoRet architectures flags syscalls"),
        *_under("linux.seccomp.syscalls[]", "names action errnoRet args"),
        *_under("linux.seccomp.syscalls[].args[]", "index value valueTwo op"),
        *_under("linux.resources", "devices memory cpu pids unified unified.*"),
        *_under("linux.resources.devices[]", "allow type major minor access"),
        *_under("linux.resources.memory", "limit reservation swap checkBeforeUpdate"),
        *_under("linux.resources.cpu", "shares quota period burst idle"),
        *_under("linux.resources.pids", "limit"),
    ]
)
"""Applied by the guest's agent and its crun."""

HOST = frozenset(
    [
        *("ociVersion", "root", "root.path", "hooks", "linux.cgroupsPath", "linux.namespaces[].path"),
        *_under("linux.resources", "cpu.cpus cpu.mems blockIO blockIO.weight"),
        *(f"hooks.{kind}" for kind in HOST_HOOKS),
        *(f"hooks.{kind}[].{name}" for kind in HOST_HOOKS for name in ("path", "args", "env", "timeout")),
    ]
)
"""Used on the host (of namespaces' paths: the network's is joined there, and of others the sandbox's are meant). What limits
both, as `linux.resources.cpu.shares` does, stands in `GUEST`; the host's part of it is `oci.hosting`."""


class Refusal(NamedTuple):
    """Why a field that asks for something cannot be had, and what to do instead."""

    why: str
    hint: str | None = None


_NOT_IN_GUEST = "is not supported: nothing in the guest applies it"
_IDMAP = Refusal("id-mapped mounts are not supported")

REFUSED: dict[str, Refusal] = {
    "vm": Refusal("is not supported", "set the hypervisor up in the configuration file"),
    "process.scheduler": Refusal(_NOT_IN_GUEST),
    "process.ioPriority": Refusal(_NOT_IN_GUEST),
    "process.execCPUAffinity": Refusal(_NOT_IN_GUEST),
    "mounts[].uidMappings": _IDMAP,
    "mounts[].gidMappings": _IDMAP,
    "linux.timeOffsets": Refusal(_NOT_IN_GUEST),
    "linux.personality.flags": Refusal("is not supported: no flag of a personality is"),
    "linux.memoryPolicy": Refusal("is not supported: the guest has one memory node"),
    "linux.netDevices": Refusal(
        "is not supported: the guest has no device of the host", "put the interface into the network namespace"
    ),
    "linux.intelRdt": Refusal("is not supported: resctrl belongs to the host"),
    "linux.seccomp.listenerPath": Refusal("a listener on the host cannot serve the guest"),
    "linux.resources.memory.disableOOMKiller": Refusal("cannot be had: cgroups of version 2 always have one"),
    "linux.resources.cpu.realtimeRuntime": Refusal("cannot be had: the guest has no realtime groups"),
    "linux.resources.cpu.realtimePeriod": Refusal("cannot be had: the guest has no realtime groups"),
}
"""A container that runs without one of these would not be what was asked for."""

_ELSEWHERE = "it is for another operating system"
_NO_DISKS = "single disks are not limited"

IGNORED: dict[str, str] = {
    **dict.fromkeys(("windows", "solaris", "zos", "freebsd"), _ELSEWHERE),
    "process.commandLine": _ELSEWHERE,
    "process.user.username": _ELSEWHERE,
    "process.apparmorProfile": "the guest has no AppArmor",
    "process.selinuxLabel": "the guest has no SELinux",
    "linux.mountLabel": "the guest has no SELinux",
    "linux.seccomp.listenerMetadata": "there is no listener",
    **dict.fromkeys(_under("linux.resources.blockIO", "leafWeight weightDevice"), _NO_DISKS),
    **dict.fromkeys(_under("linux.resources.blockIO", "throttleReadBpsDevice throttleWriteBpsDevice"), _NO_DISKS),
    **dict.fromkeys(_under("linux.resources.blockIO", "throttleReadIOPSDevice throttleWriteIOPSDevice"), _NO_DISKS),
    "linux.resources.network": "the network belongs to the host",
    "linux.resources.rdma": "the guest has no such device",
    "linux.resources.hugepageLimits": "the guest has no huge pages",
    "linux.resources.memory.kernel": "no kernel limits that any more",
    "linux.resources.memory.kernelTCP": "no kernel limits that any more",
    "linux.resources.memory.swappiness": "the guest has no swap",
    "linux.resources.memory.useHierarchy": "cgroups of version 2 are always hierarchical",
}
"""Taken out and warned about: what engines set by habit, and hints whose lack changes no result."""

_NOTHING: tuple[object, ...] = (None, False, 0, "", [], {})
_ASKS_NOTHING: dict[str, tuple[object, ...]] = {"linux.resources.memory.useHierarchy": (None, True)}
"""Values by which engines say "unset"."""


class Found(NamedTuple):
    """One field in a document: its path in the tables, the path to show, its value, and the object that holds it."""

    path: str
    shown: str
    value: Any
    holder: Document
    name: str

    @property
    def asks(self) -> bool:
        """Whether its value asks for anything."""
        return self.value not in _ASKS_NOTHING.get(self.path, _NOTHING)


def fields_of(document: Document, at: str = "", shown: str = "") -> Iterator[Found]:
    """Every field in `document`, an object's before its members'. `at`: the object's path in the tables.

    What stands in no table, or is refused or ignored, is one field with everything in it.
    """
    for name, value in list(document.items()):
        path = f"{at}.{name}" if at else name
        if f"{at}.*" in GUEST:
            path = f"{at}.*"
        found = Found(path, f"{shown}.{name}" if shown else name, value, document, name)
        yield found
        if path not in GUEST and path not in HOST:
            continue
        if isinstance(value, dict):
            yield from fields_of(value, path, found.shown)
        for index, item in enumerate(value if isinstance(value, list) else ()):
            if isinstance(item, dict):
                yield from fields_of(item, path + "[]", f"{found.shown}[{index}]")


def refuse(document: Document, *, at: str = "", where: str = "config.json", prefix: str = "") -> None:
    """Refuse what cannot be had. `prefix`: how the object is called that `document` is. Raises `SpecError`."""
    for found in fields_of(document, at, prefix):
        refusal = REFUSED.get(found.path)
        if refusal is not None and found.asks:
            raise fault(found.shown, refusal.why, where=where, hint=refusal.hint)
    _refuse_values(document, at, where, prefix)


def _refuse_values(document: Document, at: str, where: str, prefix: str) -> None:
    for found in fields_of(document, at, prefix):
        if found.path == "linux.personality.domain" and found.value not in ("LINUX", "LINUX32"):
            raise fault(found.shown, f"`{found.value}` is none of `LINUX`, `LINUX32`", where=where)
        action = found.path in ("linux.seccomp.defaultAction", "linux.seccomp.syscalls[].action")
        if action and found.value == "SCMP_ACT_NOTIFY":
            raise fault(found.shown, "a listener on the host cannot serve the guest", where=where)


def take_out(document: Document, *, at: str = "", where: str = "config.json", prefix: str = "") -> list[str]:
    """Take out of `document` what is not applied, and answer a warning for each field that asked for something, and for
    each that is not known (which stays: its values have been looked at like all others)."""
    warnings = []
    for found in fields_of(document, at, prefix):
        why = IGNORED.get(found.path)
        if why is None and found.path not in GUEST and found.path not in HOST and found.path not in REFUSED:
            warnings.append(f"{where}: `{found.shown}` is not applied: this version does not know it")
        elif why is not None:
            del found.holder[found.name]
            if found.asks:
                warnings.append(f"{where}: `{found.shown}` is not applied: {why}")
        elif found.path in REFUSED:
            del found.holder[found.name]  # it asks for nothing, or it would have been refused
    return warnings
