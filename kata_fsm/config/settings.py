# SPDX-License-Identifier: Apache-2.0
"""The configuration file's sections and keys that this version honours, typed and documented. Key names are Kata's.

Kata's other keys are legal, too: `kata.py` says of each why it has no effect. The descriptions here are what the files in
`configs/`, `config schema` and `docs/configuration.md` are made of.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

import msgspec

from kata_fsm import limits
from kata_fsm.world import repository_root

INSTALLED_GUEST = "/usr/share/kata-fsm/guest"

Positive = Annotated[int, msgspec.Meta(ge=1)]


def _about(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


class Qemu(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[hypervisor.qemu]`: the virtual machine. Empty strings and None mean: what `BUILT_IN` says."""

    path: Annotated[
        str, _about("The machine monitor. An absolute path, as all paths here: engines start runtimes without a PATH.")
    ] = ""
    kernel: Annotated[str, _about("Kernel of the guest. By default the one in `guest_directory`.")] = ""
    initrd: Annotated[str, _about("Root of the guest. By default the one in `guest_directory`.")] = ""
    image: Annotated[
        str,
        _about(
            "A guest image on a disk, which is not supported: if it exists, it and the kernel named beside it have no "
            "effect, and the guest of `guest_directory` runs."
        ),
    ] = ""
    guest_directory: Annotated[
        str,
        _about(
            "Where the image builder put kernel, initrd and manifest: by default a checkout's own `build/guest` if it was "
            "built, else /usr/share/kata-fsm/guest. (A key of our own.)"
        ),
    ] = ""
    machine_type: Annotated[
        str,
        _about(
            "QEMU's machine: `q35` or `microvm` (with PCI Express, for what is plugged while it runs); "
            "`pc`, Kata's older default, is taken for `q35`."
        ),
    ] = ""
    accel: Annotated[
        Literal["auto", "kvm", "tcg"],
        _about(
            "`auto` takes KVM where a guest is proven to run on it, else software emulation, with one warning. `kvm` and "
            "`tcg` insist. (A key of our own.)"
        ),
    ] = "auto"
    cpu: Annotated[str, _about("QEMU's -cpu; empty: what suits the accelerator and the image. (A key of our own.)")] = (
        ""
    )
    cpu_features: Annotated[str, _about("Appended to QEMU's -cpu: `pmu=off,vmx=off`.")] = ""
    machine_accelerators: Annotated[str, _about("Appended to QEMU's -machine: `kernel_irqchip=split`.")] = ""
    default_memory: Annotated[Positive | None, _about("Memory of a sandbox at boot, in MiB.")] = None
    default_vcpus: Annotated[
        int | float | None,
        _about(
            "Processors of a sandbox at boot. 0 means 1, a fraction is rounded up, below 0 or above the host's count: as "
            "many as the host has."
        ),
    ] = None
    default_maxmemory: Annotated[
        Annotated[int, msgspec.Meta(ge=0)],
        _about(
            "The most memory of a sandbox, in MiB: what the limits of its containers ask for beyond is cut, with a warning. "
            "0, or more than the host has: what the host has."
        ),
    ] = 0
    default_maxvcpus: Annotated[
        Annotated[int, msgspec.Meta(ge=0)],
        _about("The most processors of a sandbox, likewise. 0: as many as the host has."),
    ] = 0
    enable_mem_prealloc: Annotated[
        bool,
        _about(
            "Take all of the guest's memory from the host when the machine starts, and keep it; by default it is taken when "
            "the guest touches it, and what the guest frees goes back."
        ),
    ] = False
    enable_hugepages: Annotated[
        bool,
        _about(
            "Take the guest's memory from the host's huge pages of the usual size (`vm.nr_hugepages`), all of it when the "
            "machine starts. It is rounded up to whole pages; with too few of them free, a sandbox is refused."
        ),
    ] = False
    file_mem_backend: Annotated[
        str,
        _about(
            "A directory, in whose file system the guest's memory is then a file without a name. By default it is anonymous."
        ),
    ] = ""
    valid_file_mem_backends: Annotated[
        tuple[str, ...], _about("Patterns of what the annotation `file_mem_backend` may name.")
    ] = ()
    kernel_params: Annotated[str, _about("Appended to the guest kernel's command line.")] = ""
    enable_debug: Annotated[
        bool, _about("Have the agent log every call that it gets, and its answer, to the guest's console.")
    ] = False
    virtio_fs_daemon: Annotated[str, _about("The daemon that shares directories with the guest.")] = ""
    virtio_fs_cache: Annotated[
        Literal["auto", "always", "none", "never", "metadata", ""],
        _about(
            "What the guest may keep of the share's files: `auto`, `always` or `none`, which `never` means as well; "
            "`metadata`, which Debian's daemon does not have, is taken for `auto`."
        ),
    ] = ""
    virtio_fs_queue_size: Annotated[
        Annotated[int, msgspec.Meta(ge=0)] | None,
        _about("Requests that the share's queue holds: a power of two from 16 to 1024. 0: as by default."),
    ] = None
    virtio_fs_extra_args: Annotated[
        tuple[str, ...],
        _about("Further arguments of the daemon. `--announce-submounts` is always in force and left out."),
    ] = ()
    entropy_source: Annotated[str, _about("The host's device that the guest's entropy comes from.")] = ""
    valid_entropy_sources: Annotated[
        tuple[str, ...], _about("Patterns of what the annotation `entropy_source` may name.")
    ] = ()
    disable_vhost_net: Annotated[
        bool, _about("Move the packets of the guest's NICs in QEMU, also where the host's kernel could.")
    ] = False
    rx_rate_limiter_max_rate: Annotated[
        Annotated[int, msgspec.Meta(ge=0)],
        _about("Bits per second that may go into each of the guest's NICs. 0: as fast as it goes."),
    ] = 0
    tx_rate_limiter_max_rate: Annotated[
        Annotated[int, msgspec.Meta(ge=0)],
        _about("Bits per second that may come out of each of the guest's NICs. 0: as fast as it goes."),
    ] = 0
    pcie_root_port: Annotated[
        Annotated[int, msgspec.Meta(ge=0)] | None,
        _about(
            "Buses for what is plugged while the guest runs: the file share, each NIC and each block device take one. A "
            "sandbox has one more for each block device of its first container. 0: as by default."
        ),
    ] = None
    block_device_aio: Annotated[
        Literal["threads", "native", "io_uring", ""],
        _about(
            "How QEMU reads and writes the host's block devices that containers are given. `native` goes past the host's "
            "cache, as with `block_device_cache_direct`; where the host has no `io_uring`, `threads` serve."
        ),
    ] = ""
    block_device_cache_set: Annotated[
        bool, _about("Whether the two keys that follow count for block devices; otherwise both are false.")
    ] = False
    block_device_cache_direct: Annotated[
        bool, _about("Read and write block devices past the host's cache (O_DIRECT).")
    ] = False
    block_device_cache_noflush: Annotated[
        bool,
        _about("Ignore the guest's wish that what it wrote be on the disk: what was written last goes with the host."),
    ] = False
    seccompsandbox: Annotated[
        str | None, _about('"off" starts QEMU without its seccomp sandbox; anything else leaves it on.')
    ] = None
    enable_annotations: Annotated[
        tuple[str, ...],
        _about(
            "Which annotations `io.katacontainers.config.hypervisor.NAME` a container may bring: regular expressions, each "
            "of which has to match the whole NAME; those of `config.runtime.NAME` and `config.agent.NAME` count as "
            "`runtime.NAME` and `agent.NAME`. None by default."
        ),
    ] = ()
    valid_hypervisor_paths: Annotated[
        tuple[str, ...], _about("Patterns (as the shell's) of what the annotation `path` may name.")
    ] = ()
    valid_virtio_fs_daemon_paths: Annotated[
        tuple[str, ...], _about("Patterns of what the annotation `virtio_fs_daemon` may name.")
    ] = ()
    valid_kernel_paths: Annotated[
        tuple[str, ...], _about("Patterns of what the annotation `kernel` may name. (A key of our own.)")
    ] = ()
    valid_initrd_paths: Annotated[
        tuple[str, ...], _about("Patterns of what the annotation `initrd` may name. (A key of our own.)")
    ] = ()


class Agent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[agent.kata]`: the agent in the guest."""

    enable_debug: Annotated[bool, _about("As `enable_debug` of the hypervisor.")] = False
    dial_timeout: Annotated[
        Positive | None, _about("Seconds that the guest may take to boot until its agent answers.")
    ] = None
    create_container_timeout: Annotated[
        Positive | None,
        _about(
            f"Seconds that making a container in the guest may take; above {limits.CREATE_TIMEOUT_S_MAX} they are that."
        ),
    ] = None
    kernel_modules: Annotated[
        tuple[str, ...],
        _about(
            "Modules of the guest's kernel to load before any container: each a name and its parameters, with blanks "
            "between. One that the guest image does not hold fails the sandbox."
        ),
    ] = ()


class Runtime(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[runtime]`: the command itself."""

    enable_debug: Annotated[bool, _about("Log what each sandbox's machine is made with, as `--debug` does.")] = False
    internetworking_model: Annotated[
        Literal["tcfilter", "macvtap", "none"],
        _about("How the interfaces of the sandbox's network namespace reach the guest; `none`: they do not."),
    ] = "tcfilter"
    disable_guest_seccomp: Annotated[
        bool,
        _about(
            "Leave the workload's seccomp profile out. (Kata's default is true; here profiles are applied in the guest.)"
        ),
    ] = False
    create_container_timeout: Annotated[Positive | None, _about("As that of `[agent.kata]`, over which it goes.")] = (
        None
    )
    privileged_without_host_devices: Annotated[
        bool,
        _about(
            "Leave the host's devices out of privileged containers (those whose device rules allow everything): podman and "
            "Docker pass all of them, and the guest has none but block devices. What is left out is told once, and in the "
            "container's record. Without it a privileged container with such devices is refused. containerd's option of "
            "this name does the same for Kubernetes. (A key of our own.)"
        ),
    ] = False
    host_memory_overhead: Annotated[
        Annotated[int, msgspec.Meta(ge=0)] | None,
        _about(
            "MiB that the host's limit of memory, which a sandbox has when all its containers have one, leaves QEMU, "
            "virtiofsd, the supervisor and shims beside the guest's memory. What the host's kernel needs for them grows "
            "with that memory and is added. 0: the host does not limit memory. (A key of our own.)"
        ),
    ] = None


class Netmon(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[netmon]`: the pod's network while it runs."""

    enable_netmon: Annotated[
        bool,
        _about(
            "Watch the sandbox's network namespace, and give the guest what is moved into it, changed or taken away while "
            "it runs, as `kata-fsm network rescan` does."
        ),
    ] = False


SECTIONS: dict[tuple[str, ...], type[msgspec.Struct]] = {
    ("hypervisor", "qemu"): Qemu,
    ("agent", "kata"): Agent,
    ("runtime",): Runtime,
    ("netmon",): Netmon,
}

BUILT_IN: dict[str, Any] = {
    "hypervisor.qemu.path": "/usr/bin/qemu-system-x86_64",
    "hypervisor.qemu.machine_type": "q35",
    "hypervisor.qemu.default_memory": 256,
    "hypervisor.qemu.default_vcpus": 1,
    "hypervisor.qemu.pcie_root_port": 4,
    "hypervisor.qemu.block_device_aio": "threads",
    "hypervisor.qemu.virtio_fs_daemon": "/usr/lib/qemu/virtiofsd",
    "hypervisor.qemu.virtio_fs_cache": "auto",
    "hypervisor.qemu.virtio_fs_queue_size": 128,
    "hypervisor.qemu.entropy_source": "/dev/urandom",
    "hypervisor.qemu.seccompsandbox": "on",
    "agent.kata.dial_timeout": 60,
    "agent.kata.create_container_timeout": 60,
    "runtime.create_container_timeout": 60,
    "runtime.host_memory_overhead": limits.HOST_MEMORY_OVERHEAD_MIB,
}
"""What an empty or absent setting comes to, where it is not the empty value itself."""


class Origin(msgspec.Struct, frozen=True):
    """Where a value came from: `file`, `drop-in` (`where` is the file, `line` counts from 1), `annotation` or `flag` (its
    name)."""

    kind: Literal["default", "file", "drop-in", "annotation", "flag"] = "default"
    where: str = ""
    line: int = 0

    def __str__(self) -> str:
        return self.kind if not self.where else f"{self.where}:{self.line}" if self.line else self.where


class Ignored(msgspec.Struct, frozen=True):
    """A key that has no effect, and why. `silent`: its value is a default of Kata's and asks for nothing."""

    key: str
    value: Any
    origin: Origin
    why: str
    silent: bool = False


class Settings(msgspec.Struct, frozen=True):
    """All settings; the main file (None: there is none) and the drop-ins they came from; what has to be warned about.

    `origins`: key (`hypervisor.qemu.path`) to where its value came from; keys that are not in it have their default.
    `annotations`: those that were accepted, by their full names. `file_notes`: the warnings that the files alone lead to.
    """

    qemu: Qemu = Qemu()
    agent: Agent = Agent()
    runtime: Runtime = Runtime()
    netmon: Netmon = Netmon()
    origin: str | None = None
    warnings: tuple[str, ...] = ()
    file_notes: tuple[str, ...] = ()
    drop_ins: tuple[str, ...] = ()
    origins: dict[str, Origin] = {}
    ignored: tuple[Ignored, ...] = ()
    annotations: dict[str, str] = {}

    def origin_of(self, key: str) -> Origin:
        """Where the value of `hypervisor.qemu.path` and so on came from."""
        return self.origins.get(key, Origin())


def default_guest_directory() -> str:
    """Where the guest image is: beside the code in a checkout that has built one, else where packages put it."""
    built = repository_root() + "/build/guest"
    return built if os.path.isdir(built) else INSTALLED_GUEST


def effective(settings: Settings) -> dict[str, Any]:
    """Key to value, in the order of the sections, with what empty values come to."""
    found: dict[str, Any] = {}
    for path in SECTIONS:
        section = getattr(settings, path[-1] if path[0] == "hypervisor" else path[0])
        for name in section.__struct_fields__:
            key, value = ".".join((*path, name)), getattr(section, name)
            value = list(value) if isinstance(value, tuple) else value
            found[key] = BUILT_IN.get(key, value) if value in ("", None) else value
    guest = "hypervisor.qemu.guest_directory"
    found[guest] = found[guest] or default_guest_directory()
    for name, file in (("kernel", "vmlinux"), ("initrd", "initrd")):
        found[f"hypervisor.qemu.{name}"] = found[f"hypervisor.qemu.{name}"] or f"{found[guest]}/{file}"
    return found


def hypervisor_settings(settings: Settings) -> dict[str, Any]:
    """`[hypervisor.qemu]` in the hypervisor handler's words; keys that were not set are left to its defaults."""
    qemu = settings.qemu
    params = qemu.kernel_params.split()
    if qemu.enable_debug or settings.agent.enable_debug:
        params.append("agent.log=debug")
    patience_s = create_timeout_s(settings) or 0
    if patience_s > limits.AGENT_CALL_TIMEOUT_S:  # which the agent has by itself
        params.append(f"agent.create_container_timeout={patience_s}")
    found: dict[str, Any] = {
        "qemu": qemu.path,
        "virtiofsd": qemu.virtio_fs_daemon,
        "image": qemu.guest_directory or default_guest_directory(),
        "kernel": qemu.kernel,
        "initrd": qemu.initrd,
        "machine": "microvm" if qemu.machine_type == "microvm" else qemu.machine_type and "q35",
        "accel": qemu.accel,
        "cpu": qemu.cpu,
        "memory_mib": qemu.default_memory,
        "prealloc": qemu.enable_mem_prealloc or None,
        "hugepages": qemu.enable_hugepages or None,
        "memory_directory": qemu.file_mem_backend,
        "vcpus": _vcpus(qemu.default_vcpus, qemu.default_maxvcpus),
        "kernel_params": params,
        "root_ports": qemu.pcie_root_port or None,
        "cpu_features": qemu.cpu_features,
        "machine_options": qemu.machine_accelerators,
        "entropy_source": qemu.entropy_source,
        "virtiofsd_cache": {"never": "none", "metadata": "auto"}.get(qemu.virtio_fs_cache, qemu.virtio_fs_cache),
        "virtiofsd_arguments": [word for word in qemu.virtio_fs_extra_args if word != "--announce-submounts"],
        "share_queue_size": qemu.virtio_fs_queue_size or None,
        "disk_aio": qemu.block_device_aio,
        "disk_direct": (qemu.block_device_cache_set and qemu.block_device_cache_direct) or None,
        "disk_noflush": (qemu.block_device_cache_set and qemu.block_device_cache_noflush) or None,
    }
    if qemu.rx_rate_limiter_max_rate:
        found["rx_bits_per_s"] = qemu.rx_rate_limiter_max_rate
    if qemu.tx_rate_limiter_max_rate:
        found["tx_bits_per_s"] = qemu.tx_rate_limiter_max_rate
    if qemu.disable_vhost_net:
        found["vhost_net"] = False
    if qemu.seccompsandbox == "off":
        found["seccomp"] = False
    return {name: value for name, value in found.items() if value not in ("", None, [])}


def create_timeout_s(settings: Settings) -> int | None:
    """Seconds that making a container in the guest may take; None: as by default."""
    wanted = settings.runtime.create_container_timeout or settings.agent.create_container_timeout
    return wanted and min(wanted, limits.CREATE_TIMEOUT_S_MAX)


def memory_overhead_mib(settings: Settings) -> int:
    """MiB beside the guest's memory; 0: the host does not limit it."""
    given = settings.runtime.host_memory_overhead
    return limits.HOST_MEMORY_OVERHEAD_MIB if given is None else given


def kernel_modules(settings: Settings) -> list[dict[str, Any]]:
    """[{"name", "parameters"}] to load in the guest."""
    words = [module.split() for module in settings.agent.kernel_modules]
    return [{"name": name, "parameters": parameters} for name, *parameters in words]


def _vcpus(count: float | None, ceiling: int) -> int | None:
    host = os.cpu_count() or 1
    if count is None:
        return None
    found = host if count < 0 or count > host else max(1, int(-(-count // 1)))
    return min(found, ceiling or found)
