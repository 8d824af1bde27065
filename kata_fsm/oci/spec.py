# SPDX-License-Identifier: Apache-2.0
"""`config.json`, read strictly: every field that we act on has a type, and a wrong one is named with its path.

The types follow the OCI runtime specification 1.3; `fields` has every field's fate. Unknown properties are no error, as
the specification demands; `null` counts as absent, because Go writes it for empty things. The whole
document is kept beside the typed view: what we have no opinion about reaches the guest as it is.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any

import msgspec

from kata_fsm.errors import SpecError
from kata_fsm.limits import SPEC_DEPTH_MAX
from kata_fsm.oci.reading import check_values, fault, read_config, require_size

Document = dict[str, Any]
Uint32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
Int64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Count = Annotated[int, msgspec.Meta(ge=0)]  # of 64 bits: `check_values` looks, msgspec knows no bound so high

HOSTNAME_BYTES_MAX = 64
NAMESPACE_TYPES = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")
CAPABILITIES = [
    "CAP_" + name
    for name in (
        *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"),
        *("SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW"),
        *("IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT"),
        *("SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE"),
        *("AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM"),
        *("BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE"),
    )
]
"""The 41 capabilities of the guest's kernel."""

RLIMITS = frozenset(
    "RLIMIT_" + name
    for name in (
        *("AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE"),
        *("NICE", "NOFILE", "NPROC", "RSS", "RTPRIO", "RTTIME", "SIGPENDING", "STACK"),
    )
)


class _Section(msgspec.Struct, frozen=True, rename="camel"):
    """Common settings of all sections: camel case in JSON, unknown properties ignored."""


class User(_Section, frozen=True):
    uid: Uint32 = 0
    gid: Uint32 = 0
    umask: Uint32 | None = None
    additional_gids: list[Uint32] | None = None


class ConsoleSize(_Section, frozen=True):
    height: Uint32 = 0
    width: Uint32 = 0


class Capabilities(_Section, frozen=True):
    bounding: list[str] | None = None
    effective: list[str] | None = None
    inheritable: list[str] | None = None
    permitted: list[str] | None = None
    ambient: list[str] | None = None


class Rlimit(_Section, frozen=True):
    type: str
    soft: Count
    hard: Count


class Process(_Section, frozen=True):
    cwd: str
    args: list[str] | None = None
    env: list[str] | None = None
    user: User | None = None
    terminal: bool | None = None
    console_size: ConsoleSize | None = None
    capabilities: Capabilities | list[str] | None = None  # the list is the form of specifications before 1.0
    rlimits: list[Rlimit] | None = None
    no_new_privileges: bool | None = None
    oom_score_adj: Int64 | None = None


class Root(_Section, frozen=True):
    path: str
    readonly: bool | None = None


class IdMapping(_Section, frozen=True):
    container_id: Uint32 = msgspec.field(name="containerID", default=0)
    host_id: Uint32 = msgspec.field(name="hostID", default=0)
    size: Uint32 = 0


class Mount(_Section, frozen=True):
    destination: str
    type: str | None = None
    source: str | None = None
    options: list[str] | None = None


class Hook(_Section, frozen=True):
    path: str
    args: list[str] | None = None
    env: list[str] | None = None
    timeout: Int64 | None = None


class Hooks(_Section, frozen=True):
    prestart: list[Hook] | None = None
    create_runtime: list[Hook] | None = None
    create_container: list[Hook] | None = None
    start_container: list[Hook] | None = None
    poststart: list[Hook] | None = None
    poststop: list[Hook] | None = None


class Namespace(_Section, frozen=True):
    type: str
    path: str | None = None


class Device(_Section, frozen=True):
    type: str
    path: str
    major: Int64 | None = None
    minor: Int64 | None = None
    file_mode: Uint32 | None = None
    uid: Uint32 | None = None
    gid: Uint32 | None = None


class DeviceRule(_Section, frozen=True):
    allow: bool
    type: str | None = None
    major: Int64 | None = None
    minor: Int64 | None = None
    access: str | None = None


class Memory(_Section, frozen=True):
    limit: Int64 | None = None
    reservation: Int64 | None = None
    swap: Int64 | None = None
    kernel: Int64 | None = None
    kernel_tcp: Int64 | None = msgspec.field(name="kernelTCP", default=None)
    swappiness: Annotated[int, msgspec.Meta(ge=0, le=100)] | None = None
    disable_oom_killer: bool | None = msgspec.field(name="disableOOMKiller", default=None)


class Cpu(_Section, frozen=True):
    shares: Count | None = None
    quota: Int64 | None = None
    period: Count | None = None
    realtime_runtime: Int64 | None = None
    realtime_period: Count | None = None
    cpus: str | None = None
    mems: str | None = None


class Pids(_Section, frozen=True):
    limit: Int64 | None = None


class BlockIo(_Section, frozen=True):
    weight: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)] | None = None


class Resources(_Section, frozen=True):
    devices: list[DeviceRule] | None = None
    memory: Memory | None = None
    cpu: Cpu | None = None
    pids: Pids | None = None
    block_io: BlockIo | None = msgspec.field(name="blockIO", default=None)
    unified: dict[str, str] | None = None


class Linux(_Section, frozen=True):
    namespaces: list[Namespace] | None = None
    uid_mappings: list[IdMapping] | None = None
    gid_mappings: list[IdMapping] | None = None
    devices: list[Device] | None = None
    resources: Resources | None = None
    cgroups_path: str | None = None
    sysctl: dict[str, str] | None = None
    seccomp: Document | None = None
    masked_paths: list[str] | None = None
    readonly_paths: list[str] | None = None
    rootfs_propagation: str | None = None


class Spec(_Section, frozen=True):
    """The document's typed view."""

    oci_version: str
    process: Process | None = None
    root: Root | None = None
    hostname: str | None = None
    domainname: str | None = None
    mounts: list[Mount] | None = None
    hooks: Hooks | None = None
    annotations: dict[str, str] | None = None
    linux: Linux | None = None


class Loaded(msgspec.Struct, frozen=True):
    """A bundle's specification: the typed view, the document itself, and where they came from."""

    spec: Spec
    document: Document
    bundle: str
    rootfs: str

    @property
    def annotations(self) -> dict[str, str]:
        """The annotations, never None."""
        return self.spec.annotations or {}

    @property
    def terminal(self) -> bool:
        """Whether the process wants a terminal."""
        return bool(self.spec.process and self.spec.process.terminal)


def convert(document: object, type_: type[Any], *, where: str, prefix: str = "") -> Any:
    """`document` as `type_`. Raises `SpecError` with the path of the field that is wrong, and what is wrong with it."""
    if isinstance(document, dict):
        check_values(document, where=where)
    try:
        return msgspec.convert(document, type_)
    except msgspec.ValidationError as error:
        raise _translated(str(error), where, prefix) from error


def _translated(text: str, where: str, prefix: str) -> SpecError:
    """msgspec says "Expected `str`, got `int` - at `$.process.args[0]`"."""
    problem, _, at = text.partition(" - at ")
    path = at.strip("`").removeprefix("$").lstrip(".") if at else ""
    path = ".".join(part for part in (prefix, path) if part)
    missing = re.match(r"Object missing required field `(.+)`", problem)
    if missing:
        return fault(f"{path}.{missing[1]}" if path else missing[1], "is missing", where=where)
    problem = problem[:1].lower() + problem[1:]
    if not path:
        return SpecError(f"{where}: {problem}")
    return fault(path.replace("[...]", "[]"), problem, where=where)


def parse(data: bytes, type_: type[Any], *, where: str) -> tuple[Any, Document]:
    """(typed view, document) of JSON bytes. Raises `SpecError`."""
    require_size(data, where=where)
    try:
        data.decode("utf-8")
        document = msgspec.json.decode(data)
    except UnicodeDecodeError as error:
        raise SpecError(f"{where}: not JSON: not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise SpecError(f"{where}: nested more than {SPEC_DEPTH_MAX} levels deep") from error
    except msgspec.DecodeError as error:
        raise SpecError(f"{where}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise SpecError(f"{where}: not a JSON object")
    return convert(document, type_, where=where), document


def load(bundle: str) -> Loaded:
    """The specification of the bundle directory `bundle` (absolute). Raises `SpecError`."""
    data = read_config(bundle)
    spec, document = parse(data, Spec, where="config.json")
    return Loaded(spec, document, bundle, _rootfs(spec, bundle))


def _rootfs(spec: Spec, bundle: str) -> str:
    if spec.root is None:
        raise fault("root", "is missing")
    if not spec.root.path:
        raise fault("root.path", "is empty")
    return os.path.normpath(os.path.join(bundle, spec.root.path))
