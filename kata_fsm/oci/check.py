# SPDX-License-Identifier: Apache-2.0
"""What a specification must say, and what it must not ask for, beyond its types. Looks at the host where said.

Everything that cannot be done in a guest is refused by the name of its field: a container that runs without something it
asked for is worse than one that does not run.
"""

from __future__ import annotations

import os

from kata_fsm.errors import SpecError
from kata_fsm.oci import cpusets, fields
from kata_fsm.oci.hosting import IO_WEIGHT_MAX, IO_WEIGHT_MIN
from kata_fsm.oci.looking import answered
from kata_fsm.oci.reading import fault
from kata_fsm.oci.spec import (
    CAPABILITIES,
    HOSTNAME_BYTES_MAX,
    NAMESPACE_TYPES,
    RLIMITS,
    Capabilities,
    Hooks,
    Linux,
    Loaded,
    Mount,
    Namespace,
    Process,
    Resources,
    Spec,
)

GUEST_MOUNT_TYPES = frozenset({"proc", "sysfs", "devpts", "mqueue", "tmpfs", "cgroup", "cgroup2"})
"""File systems that the guest's own kernel provides."""

HOOK_KINDS = ("prestart", "create_runtime", "create_container", "start_container", "poststart", "poststop")


def check(loaded: Loaded) -> None:
    """Refuse what is wrong or cannot be done. Looks at the root file system's directory. Raises `SpecError`."""
    spec = loaded.spec
    _check_version(spec)
    fields.refuse(loaded.document)
    if spec.process is None:
        raise fault("process", "is missing")
    check_process(spec.process)
    _check_rootfs(loaded.rootfs)
    if spec.hostname and len(spec.hostname.encode()) > HOSTNAME_BYTES_MAX:
        raise fault("hostname", f"longer than {HOSTNAME_BYTES_MAX} bytes")
    for index, mount in enumerate(spec.mounts or []):
        _check_mount(f"mounts[{index}]", mount)
    _check_hooks(spec.hooks)
    if spec.linux is not None:
        _check_linux(spec.linux)


def _check_version(spec: Spec) -> None:
    if not spec.oci_version.startswith("1."):
        raise fault("ociVersion", f"`{spec.oci_version}` is not supported, `1.x` is")


def _check_rootfs(rootfs: str) -> None:
    if not answered(rootfs, lambda: os.path.isdir(rootfs)):
        problem = "is not a directory" if os.path.exists(rootfs) else "does not exist"
        raise fault("root.path", f"`{rootfs}` {problem}", hint="unpack an image there, or correct the path")


def check_process(process: Process, *, where: str = "config.json", prefix: str = "process") -> None:
    """Refuse a process that could not be run. Also used for `exec --process`."""

    def wrong(field: str, problem: str) -> SpecError:
        return fault(f"{prefix}.{field}" if prefix else field, problem, where=where)

    if not process.args:
        raise wrong("args", "is empty: there is nothing to run")
    if not process.args[0]:
        raise wrong("args[0]", "is empty")
    if not process.cwd.startswith("/"):
        raise wrong("cwd", f"`{process.cwd}` is not an absolute path")
    for field, words in (("args", process.args), ("env", process.env or [])):
        for index, word in enumerate(words):
            if "\0" in word:
                raise wrong(f"{field}[{index}]", "contains a NUL byte")
    for index, limit in enumerate(process.rlimits or []):
        if limit.type not in RLIMITS:
            raise wrong(f"rlimits[{index}].type", f"`{limit.type}` is no resource limit")
        if limit.soft > limit.hard:
            raise wrong(f"rlimits[{index}]", f"soft limit {limit.soft} is above hard limit {limit.hard}")


def unknown_capabilities(process: Process) -> list[str]:
    """One line for each capability that the guest's kernel does not have. No error: engines of tomorrow send new ones,
    and runc and crun go without them as well."""
    given = process.capabilities
    sets = [given] if isinstance(given, list) else _capability_sets(given)
    unknown = sorted({name for names in sets for name in names or [] if name.upper() not in CAPABILITIES})
    return [f"`{name}` is not applied: the guest does not know it" for name in unknown]


def _capability_sets(given: Capabilities | None) -> list[list[str] | None]:
    return [] if given is None else [getattr(given, name) for name in given.__struct_fields__]


def is_bind(mount: Mount) -> bool:
    """Whether a mount takes something of the host. The type is optional when the options say so."""
    return mount.type in ("bind", "rbind") or bool({"bind", "rbind"} & set(mount.options or []))


def _check_mount(field: str, mount: Mount) -> None:
    if not mount.destination:
        raise fault(f"{field}.destination", "is empty")
    if ".." in mount.destination.split("/"):
        raise fault(f"{field}.destination", f"`{mount.destination}` contains `..`")
    idmapped = {"idmap", "ridmap"} & {option.partition("=")[0] for option in mount.options or []}
    if idmapped:
        raise fault(f"{field}.options", "id-mapped mounts are not supported")
    if is_bind(mount):
        if not mount.source:
            raise fault(f"{field}.source", "is missing for a bind mount")
    elif mount.type not in GUEST_MOUNT_TYPES:
        legal = ", ".join(f"`{name}`" for name in sorted(GUEST_MOUNT_TYPES | {"bind"}))
        raise fault(f"{field}.type", f"`{mount.type}` cannot be mounted in the guest, legal are {legal}")


def _check_hooks(hooks: Hooks | None) -> None:
    for kind in HOOK_KINDS if hooks is not None else ():
        first, *rest = kind.split("_")
        name = first + "".join(word.capitalize() for word in rest)
        for index, hook in enumerate(getattr(hooks, kind) or []):
            if not hook.path.startswith("/"):
                raise fault(f"hooks.{name}[{index}].path", f"`{hook.path}` is not an absolute path")
            if hook.timeout is not None and hook.timeout <= 0:
                raise fault(f"hooks.{name}[{index}].timeout", f"`{hook.timeout}` is not above 0")


def _check_linux(linux: Linux) -> None:
    for index, namespace in enumerate(linux.namespaces or []):
        _check_namespace(f"linux.namespaces[{index}]", namespace)
    if linux.resources is not None:
        check_resources(linux.resources)


def _check_namespace(field: str, namespace: Namespace) -> None:
    if namespace.type not in NAMESPACE_TYPES:
        legal = ", ".join(f"`{name}`" for name in NAMESPACE_TYPES)
        raise fault(f"{field}.type", f"`{namespace.type}` is no namespace, legal are {legal}")
    if namespace.path and not namespace.path.startswith("/"):
        raise fault(f"{field}.path", f"`{namespace.path}` is not an absolute path")
    if namespace.path and namespace.type in ("user", "mount", "time"):
        raise fault(f"{field}.path", f"a given {namespace.type} namespace cannot be joined from inside the guest")


def check_resources(resources: Resources, *, where: str = "config.json", prefix: str = "linux.resources") -> None:
    """Refuse limits that are not numbers a kernel takes, and sets that the host does not have. Also used by `update`."""
    for name in ("limit", "reservation", "swap"):
        value = getattr(resources.memory, name, None) if resources.memory else None
        if value is not None and value < -1:
            raise fault(f"{prefix}.memory.{name}".lstrip("."), f"`{value}` is below -1 (unlimited)", where=where)
    for name in ("cpus", "mems"):
        wanted = getattr(resources.cpu, name, None) if resources.cpu else None
        if wanted:
            _check_set(f"{prefix}.cpu.{name}".lstrip("."), name, wanted, where)
    weight = resources.block_io.weight if resources.block_io else None
    if weight and not IO_WEIGHT_MIN <= weight <= IO_WEIGHT_MAX:
        problem = f"`{weight}` is none of `{IO_WEIGHT_MIN}` to `{IO_WEIGHT_MAX}`"
        raise fault(f"{prefix}.blockIO.weight".lstrip("."), problem, where=where)
    memory = resources.memory
    if memory and memory.limit and memory.swap and 0 < memory.swap < memory.limit:
        problem = f"`{memory.swap}` is below the memory limit `{memory.limit}`; it counts memory and swap together"
        raise fault(f"{prefix}.memory.swap".lstrip("."), problem, where=where)


def _check_set(field: str, which: str, wanted: str, where: str) -> None:
    try:
        numbers = cpusets.parse(wanted)
    except ValueError:
        raise fault(field, f"`{wanted}` is no list of numbers", where=where, hint="legal is `0-3,7`") from None
    there = cpusets.of_host(which)
    missing = numbers - there if there is not None else frozenset()
    if missing:
        had = cpusets.text_of(there or frozenset())
        raise fault(field, f"the host has `{had}`, and no `{cpusets.text_of(frozenset(missing))}`", where=where)
