# SPDX-License-Identifier: Apache-2.0
"""The specification as the guest gets it. Pure: what must be known of the host comes in through `look`.

`adapt` answers the guest's document and what the host has to bind into the shared tree. The root file system and every
bind mount become paths in the share; file systems that any kernel provides are mounted by the guest; what belongs to the
host (network namespace, namespace paths, host cgroup, host CPU numbers) is taken out. Whatever is taken out although it
was asked for is named in `warnings`, which the verb logs: nothing is dropped silently.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import msgspec

from kata_fsm.oci import devices, fields, mount_options
from kata_fsm.oci.check import is_bind, unknown_capabilities
from kata_fsm.oci.looking import answered
from kata_fsm.oci.reading import fault
from kata_fsm.oci.sandbox import CONTAINER
from kata_fsm.oci.spec import Document, Linux, Loaded, Mount

SHARE = "/run/kata-containers/shared/containers"
"""Where the guest mounts the shared tree: the path that Kata's agent knows."""

GUEST_SHM = "/run/kata-containers/sandbox/shm"
"""The sandbox's own /dev/shm in the guest, shared by its containers: memory cannot be shared through virtio-fs."""

GUEST_CGROUP = "/kata-fsm"

_IN_GUEST_SOURCES = ("/proc", "/sys", "/dev")
_PROPAGATION = frozenset({"shared", "rshared", "slave", "rslave"})


class Source(msgspec.Struct, frozen=True):
    """What is at a bind mount's source: `kind` is `file`, `dir`, `device`, `socket` or `missing`. `size`: of its file
    system, in bytes."""

    kind: str
    size: int = 0


Look = Callable[[str], Source]


class Bind(msgspec.Struct, frozen=True):
    """One path of the host that has to appear as `m<index>` in the container's part of the shared tree."""

    index: int
    source: str
    kind: str
    readonly: bool
    recursive: bool
    options: list[str]


class Adapted(msgspec.Struct, frozen=True):
    """The guest's document, and what the host has to do and to know for it."""

    guest_spec: Document
    binds: list[Bind]
    warnings: list[str]
    sandbox_pidns: bool
    shm_size: int | None
    netns: str | None
    cgroups_path: str
    disks: list[devices.Disk]
    left_out: list[str]

    @property
    def places(self) -> list[tuple[str, str]]:
        """(name in the container's part of the shared tree, destination in the container) of each bind, in order."""
        found = []
        for mount in self.guest_spec.get("mounts") or []:
            source = str(mount.get("source") or "")
            if source.startswith(SHARE + "/"):
                found.append((source.rpartition("/")[2], str(mount["destination"])))
        return found


def look_at_host(path: str) -> Source:
    """The `Look` that asks the kernel. Follows symbolic links, as mount(2) does. Raises `WorldError` if nothing answers."""
    return answered(path, lambda: _look(path))


def _look(path: str) -> Source:
    import stat

    try:
        mode = os.stat(path).st_mode
    except OSError:
        return Source("missing")
    if stat.S_ISDIR(mode):
        space = os.statvfs(path)
        return Source("dir", space.f_blocks * space.f_frsize)
    if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
        return Source("device")
    return Source("socket" if stat.S_ISSOCK(mode) else "file")


def adapt(
    loaded: Loaded,
    *,
    key: str,
    kind: str,
    look: Look = look_at_host,
    seccomp: bool = True,
    spare_devices: bool = False,
) -> Adapted:
    """Adapt a checked specification for container `key`. `kind` is a word of `oci.sandbox`. Raises `SpecError`.

    `seccomp` False leaves the profile out, `spare_devices` the host's devices of a privileged container, as the
    configuration may ask for.
    """
    draft = _Draft(loaded, key, look)
    linux = loaded.spec.linux or Linux()
    netns = _network(linux, kind)
    draft.resources(linux)
    draft.devices(linux, spare=spare_devices)
    draft.warnings += fields.take_out(draft.document)
    draft.hosts()
    draft.root()
    draft.mounts(loaded.spec.mounts or [])
    draft.namespaces(linux)
    draft.capabilities()
    draft.hooks()
    if not seccomp:
        draft.drop(draft.section("linux"), "seccomp", "`runtime.disable_guest_seccomp` is set", "linux")
    pid = next((namespace for namespace in linux.namespaces or [] if namespace.type == "pid"), None)
    return Adapted(
        guest_spec=draft.document,
        binds=draft.binds,
        warnings=draft.warnings,
        sandbox_pidns=kind == CONTAINER and pid is not None and bool(pid.path),
        shm_size=draft.shm_size,
        netns=netns,
        cgroups_path=linux.cgroups_path or "",
        disks=draft.disks,
        left_out=draft.left_out,
    )


def _network(linux: Linux, kind: str) -> str | None:
    """The path of the network namespace that was given; None to make one. A member's is its sandbox's."""
    if kind == CONTAINER:
        return None
    for namespace in linux.namespaces or []:
        if namespace.type == "network":
            return namespace.path or None
    raise fault(
        "linux.namespaces",
        "Host networking requested, not supported by runtime",
        hint="add a namespace of type `network`",
    )


class _Draft:
    """The guest's document under construction."""

    def __init__(self, loaded: Loaded, key: str, look: Look) -> None:
        self.document: Document = copy.deepcopy(loaded.document)
        self.bundle = loaded.bundle
        self.process = loaded.spec.process
        self.key = key
        self.look = look
        self.binds: list[Bind] = []
        self.warnings: list[str] = []
        self.shm_size: int | None = None
        self.disks: list[devices.Disk] = []
        self.left_out: list[str] = []

    def section(self, *names: str) -> dict[str, Any]:
        """A nested object of the document, made if absent."""
        at = self.document
        for name in names:
            if not isinstance(at.get(name), dict):
                at[name] = {}
            at = at[name]
        return at

    def drop(self, section: dict[str, Any], name: str, why: str, path: str) -> None:
        """Take `name` out; say so if it had been set to something (zero, false and empty mean "unset" to engines)."""
        if section.pop(name, None):
            self.warnings.append(f"config.json: `{path}.{name}` is not applied: {why}")

    def root(self) -> None:
        self.section("root")["path"] = f"{SHARE}/{self.key}/rootfs"

    def mounts(self, mounts: list[Mount]) -> None:
        """Of two mounts on one destination the last counts, as it would hide the first."""
        last = {os.path.normpath("/" + mount.destination.lstrip("/")): index for index, mount in enumerate(mounts)}
        self.document["mounts"] = [
            self._mount(index, mounts[index], destination) for destination, index in sorted(last.items(), key=_second)
        ]

    def _mount(self, index: int, mount: Mount, destination: str) -> Document:
        options = [option for option in mount.options or [] if option not in _PROPAGATION]
        if {"shared", "rshared"} & set(mount.options or []):
            self.warnings.append(f"config.json: `mounts[{index}].options`: what is mounted in the guest stays there")
        plain = {**self.document["mounts"][index], "destination": destination, "options": options}
        if not is_bind(mount):
            return plain
        for word in options:
            if word not in mount_options.APPLIED:
                problem = f"`{word}` is not applied: a bind mount has no such option"
                self.warnings.append(f"config.json: `mounts[{index}].options`: {problem}")
        source = self._bind_source(index, mount, destination, options)
        # The type may say it alone; crun 1.8 wants to hear it among the options, runc does not.
        if not {"bind", "rbind"} & set(options):
            options = [str(mount.type), *options]
        return {**plain, "type": "bind", "source": source, "options": options}

    def _bind_source(self, index: int, mount: Mount, destination: str, options: list[str]) -> str:
        source = os.path.normpath(os.path.join(self.bundle, mount.source or ""))
        found = self.look(source)
        field = f"mounts[{index}].source"
        if found.kind == "missing":
            raise fault(field, f"`{source}` does not exist")
        if destination == "/dev/shm":
            self.shm_size = found.size or None
            return GUEST_SHM
        if source == "/dev/null":
            return source  # how engines mask a file
        if found.kind == "device":
            problem = f"host device `{source}` cannot be given to the guest"
            raise fault(field, problem, hint="remove the mount, or ask for a block device in `linux.devices`")
        if _is_kernel_made(source):
            self.warnings.append(f"config.json: `{field}`: `{source}` will be the guest's own, not the host's")
            return source
        if found.kind == "socket":
            self.warnings.append(f"config.json: `{field}`: nobody in the guest can connect to socket `{source}`")
        bind = Bind(
            index=len(self.binds),
            source=source,
            kind="dir" if found.kind == "dir" else "file",
            readonly=_readonly(options),
            recursive=mount.type == "rbind" or "rbind" in options,
            options=list(mount.options or []),
        )
        self.binds.append(bind)
        return f"{SHARE}/{self.key}/m{bind.index}"

    def namespaces(self, linux: Linux) -> None:
        self.section("linux")["namespaces"] = [
            {"type": namespace.type} for namespace in linux.namespaces or [] if namespace.type != "network"
        ]

    def hooks(self) -> None:
        """startContainer hooks are programs of the container, run in it by the guest's crun; the others are the host's."""
        given = self.document.pop("hooks", None) or {}
        if given.get("startContainer"):
            self.document["hooks"] = {"startContainer": given["startContainer"]}

    def resources(self, linux: Linux) -> None:
        """Engines' "unset" values go."""
        section = self.section("linux")
        section["cgroupsPath"] = f"{GUEST_CGROUP}/{self.key}"
        if linux.resources is None:
            return
        section["resources"] = clean_resources(section["resources"])

    def devices(self, linux: Linux, *, spare: bool) -> None:
        """Those that the guest is given or has by itself, and the rules about them, in the host's numbers."""
        rules = (linux.resources.devices if linux.resources else None) or []
        own_users = any(namespace.type == "user" for namespace in linux.namespaces or [])
        divided = devices.divide(linux.devices or [], rules, self._has_disk, spare=spare, own_users=own_users)
        self.disks, self.left_out = divided.disks, divided.left_out
        section = self.section("linux")
        if self.left_out:
            section["devices"] = [section["devices"][index] for index in divided.kept]
            names = ", ".join(f"`{path}`" for path in self.left_out)
            self.warnings.append(
                f"config.json: `linux.devices`: the host's are left out, as `{devices.KEY}` is set: {names}"
            )
        if not rules:
            return
        resources = self.section("linux", "resources")
        resources["devices"], lost = devices.rules_for_guest(rules, resources["devices"], self.disks)
        for index in lost:
            field = f"linux.resources.devices[{index}]"
            self.warnings.append(f"config.json: `{field}` is not applied: the guest is given no such block device")

    def _has_disk(self, major: int, minor: int) -> bool:
        return self.look(f"/sys/dev/block/{major}:{minor}").kind != "missing"

    def hosts(self) -> None:
        """What is for the host alone goes."""
        section = self.section("linux")
        if section.get("resources"):
            section["resources"] = without_hosts(section["resources"])

    def capabilities(self) -> None:
        """They stay, crun goes without those that it does not know, and here that is said."""
        if self.process is not None:
            self.warnings += [
                f"config.json: `process.capabilities`: {line}" for line in unknown_capabilities(self.process)
            ]


def _is_kernel_made(source: str) -> bool:
    """Whether a path lies in a file system that each kernel makes for itself (/dev/shm holds files like any other)."""
    if source.startswith("/dev/shm/"):
        return False
    return any(source == top or source.startswith(top + "/") for top in _IN_GUEST_SOURCES)


def _second(pair: tuple[str, int]) -> int:
    return pair[1]


def _readonly(options: list[str]) -> bool:
    words = [option for option in options if option in ("ro", "rro", "rw")]
    return bool(words) and words[-1] != "rw"


_UNSET_WHEN_ZERO = {
    "cpu": ("shares", "quota", "period", "burst", "realtimeRuntime", "realtimePeriod"),
    "memory": ("limit", "reservation", "swap", "kernel", "kernelTCP", "disableOOMKiller"),
    "pids": ("limit",),
    "blockIO": ("weight", "leafWeight"),
}


def clean_resources(resources: Document) -> Document:
    """Resources without nulls and without the zeros and empty values by which engines say "unset"; `cpu.burst`, which the
    guest's crun does not apply, is among the settings of cgroup v2 that it writes as they are."""
    cleaned: Document = {}
    for name, value in resources.items():
        if isinstance(value, dict) and name != "unified":
            zero = _UNSET_WHEN_ZERO.get(name, ())
            value = {
                key: item
                for key, item in value.items()
                if item is not None and item != "" and item != [] and not (key in zero and not item)
            }
        if value not in (None, {}, []):
            cleaned[name] = value
    burst = cleaned.get("cpu", {}).pop("burst", None)
    if burst is not None:
        cleaned["unified"] = {"cpu.max.burst": str(burst), **cleaned.get("unified", {})}
    return {name: value for name, value in cleaned.items() if value != {}}


_HOSTS = (("cpu", "cpus"), ("cpu", "mems"), ("blockIO", "weight"))


def without_hosts(resources: Document) -> Document:
    """Resources without what limits the host's processes alone (`hosting`): the guest has other processors and disks."""
    left: Document = {}
    for name, value in resources.items():
        hosts = [field for section, field in _HOSTS if section == name]
        kept = {key: item for key, item in value.items() if key not in hosts} if hosts else value
        if kept or not hosts:
            left[name] = kept
    return left
