# SPDX-License-Identifier: Apache-2.0
"""The last changes to an OCI configuration before `crun` reads it: what only holds inside this guest.

The virtual machine is the sandbox. So the host's network, IPC and UTS namespaces of a pod correspond to the machine's own,
and a namespace that the configuration wants to join is left out. One of its own is still made where asked for. Settings of
the kernel that belong to a namespace left out are the machine's; `crun` would refuse them, so the agent sets them.

A security label or profile that this guest's kernel does not know would stop the container; the boundary is the machine.
"""

from __future__ import annotations

from . import cgroups, files
from .errors import invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

OCI_VERSION = "1.0.2"  # crun 1.8 refuses a version that does not contain "1.0" (libcrun/container.c)
PID_TARGET = "container:"
_OF_THE_MACHINE = ("network", "ipc", "uts")
_IPC_SETTINGS = ("kernel.msg", "kernel.sem", "kernel.shm", "fs.mqueue.")
_UTS_SETTINGS = ("kernel.domainname", "kernel.hostname")


def adapt(spec: Json, container_id: str, pid_namespace: str | None) -> dict[str, str]:
    """Change `spec` in place; returns the kernel settings that are the machine's to make.

    `pid_namespace`: None for one of its own; else the path of the sandbox's, "" when this container begins it.
    Raises INVALID_ARGUMENT naming the field.
    """
    process = section(spec, "process")
    root = section(spec, "root")
    path = root.get("path")
    if not isinstance(path, str) or not path.startswith("/"):
        raise invalid(f"`root.path` is `{path}`; it must be a path in the guest, beginning with `/`")
    spec["ociVersion"] = OCI_VERSION
    linux = section(spec, "linux")
    linux["cgroupsPath"] = cgroups.path_for(container_id)
    linux.pop("intelRdt", None)
    linux["namespaces"] = namespaces(linux.get("namespaces") or [], pid_namespace)
    if not knows_selinux():
        linux.pop("mountLabel", None)
    adapt_process(process)
    own = {entry["type"] for entry in linux["namespaces"]}
    return {**_take_names(spec, own), **take_settings(linux, own)}


def adapt_process(process: Json) -> None:
    """The part that an exec has as well. Raises INVALID_ARGUMENT."""
    arguments = process.get("args")
    if not isinstance(arguments, list) or not arguments:
        raise invalid("`process.args` is empty; it must name a program")
    profile = process.get("apparmorProfile")
    if profile and not knows_profile(str(profile)):
        del process["apparmorProfile"]
    if not knows_selinux():
        process.pop("selinuxLabel", None)


def pid_target(spec: Json) -> str:
    """The container whose process namespace is to be joined: the host names it `container:ID`. "" for the sandbox's own."""
    asked = section(spec, "linux").get("namespaces") or []
    paths = [str(entry.get("path") or "") for entry in asked if isinstance(entry, dict) and entry.get("type") == "pid"]
    return next((path.removeprefix(PID_TARGET) for path in paths if path.startswith(PID_TARGET)), "")


def namespaces(asked: list[Any], pid_namespace: str | None) -> list[Json]:
    """The namespaces to make, and the one to join."""
    kept: list[Json] = []
    for entry in asked:
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
            raise invalid("`linux.namespaces` has an entry without a `type`")
        kind = entry["type"]
        if kind == "network" or (kind in _OF_THE_MACHINE and entry.get("path")):
            continue
        if kind == "pid":
            kept.append({"type": kind, "path": pid_namespace} if pid_namespace else {"type": kind})
        else:
            kept.append({"type": kind})
    if pid_namespace and not any(entry["type"] == "pid" for entry in kept):
        kept.append({"type": "pid", "path": pid_namespace})
    return kept


def _take_names(spec: Json, own: set[str]) -> dict[str, str]:
    """Host and domain name, where the UTS namespace is the machine's: crun would not set them there, as runc does."""
    taken: dict[str, str] = {}
    for field in ("hostname", "domainname") if "uts" not in own else ():
        name = spec.pop(field, None)
        if name:
            taken[f"kernel.{field}"] = str(name)
    return taken


def take_settings(linux: Json, own: set[str]) -> dict[str, str]:
    """Take the settings out of `linux.sysctl` whose namespace is the machine's."""
    settings = linux.get("sysctl") or {}
    taken: dict[str, str] = {}
    for name in list(settings):
        dotted = name.replace("/", ".")
        machine = (
            dotted.startswith("net.")
            or ("ipc" not in own and dotted.startswith(_IPC_SETTINGS))
            or ("uts" not in own and dotted in _UTS_SETTINGS)
        )
        if machine:
            taken[name] = str(settings.pop(name))
    return taken


def owner(spec: Json, process: Json) -> tuple[int, int]:
    """Uid and gid of a process as the guest's kernel sees them, past a user namespace's mapping."""
    user = process.get("user") or {}
    linux = spec.get("linux") or {}
    return (
        _outside(user.get("uid") or 0, linux.get("uidMappings") or []),
        _outside(user.get("gid") or 0, linux.get("gidMappings") or []),
    )


def _outside(inside: int, mappings: list[Json]) -> int:
    for mapping in mappings:
        first = mapping.get("containerID", 0)
        if first <= inside < first + mapping.get("size", 0):
            return int(mapping.get("hostID", 0)) + inside - int(first)
    return inside


def section(spec: Json, name: str) -> Json:
    """An object of the configuration that must be there."""
    found = spec.get(name)
    if not isinstance(found, dict):
        raise invalid(f"`{name}` is missing from the configuration, or no object")
    return found


def knows_selinux() -> bool:
    """Is SELinux running in this guest?"""
    return files.read_or("/sys/fs/selinux/enforce", "") != ""


def knows_profile(name: str) -> bool:
    """Is this AppArmor profile loaded in this guest?"""
    if name == "unconfined":
        return False
    loaded = files.read_or("/sys/kernel/security/apparmor/profiles", "")
    return any(line.rpartition(" (")[0] == name for line in loaded.splitlines())


def apply_settings(settings: dict[str, str], procfs: str) -> None:
    """Write kernel settings. Raises INVALID_ARGUMENT naming the one that failed."""
    for name, value in settings.items():
        path = f"{procfs}/sys/{name if '/' in name else name.replace('.', '/')}"
        if ".." in path.split("/"):
            raise invalid(f"`linux.sysctl` has the name `{name}`")
        try:
            files.write(path, value)
        except OSError as error:
            raise invalid(f"cannot set `{name}` to `{value}`: {error.strerror}") from None
