# SPDX-License-Identifier: Apache-2.0
"""What no type can say: paths that exist, sizes that fit, options that do not contradict each other."""

from __future__ import annotations

import math
import os
import re
import stat
from typing import Any

from kata_fsm import limits
from kata_fsm.config.layers import Merged
from kata_fsm.config.settings import Settings, default_guest_directory, effective
from kata_fsm.errors import UsageError

_QEMU = "hypervisor.qemu."


def check(settings: Settings) -> Settings:
    """The same settings if they can be. Raises `UsageError` naming file, line, key, value and what is legal."""
    qemu = settings.qemu
    if qemu.image:
        if qemu.initrd:
            raise _refusal(settings, "image", "`image` and `initrd` are both set", "keep one of them")
        missing = "" if os.path.exists(qemu.image) else f", and there is no `{qemu.image}`"
        problem = "guest images on a disk are not supported" + missing
        raise _refusal(settings, "image", problem, "set `initrd` instead")
    if qemu.machine_type not in ("", "q35", "pc", "microvm"):
        raise _refusal(settings, "machine_type", f"`{qemu.machine_type}` is not supported, `q35` and `microvm` are")
    for name in (
        "path",
        "kernel",
        "initrd",
        "guest_directory",
        "virtio_fs_daemon",
        "entropy_source",
        "file_mem_backend",
    ):
        _check_path(settings, name)
    if qemu.default_vcpus is not None and not math.isfinite(qemu.default_vcpus):
        raise _refusal(settings, "default_vcpus", f"`{qemu.default_vcpus}` is no number of processors")
    _check_ceilings(settings)
    _check_share(settings)
    _check_modules(settings)
    _check_memory(settings)
    for pattern in qemu.enable_annotations:
        try:
            re.compile(pattern)
        except re.error as error:
            raise _refusal(settings, "enable_annotations", f"`{pattern}` is no regular expression: {error}") from error
    if "\n" in qemu.kernel_params or "\0" in qemu.kernel_params:
        raise _refusal(settings, "kernel_params", f"`{qemu.kernel_params!r}` is more than one line")
    return settings


def _refusal(settings: Settings, name: str, problem: str, hint: str | None = None) -> UsageError:
    key = _QEMU + name
    return UsageError(f"`{settings.origin_of(key)}`: `{key}`: {problem}", hint=hint)


def _check_path(settings: Settings, name: str) -> None:
    path = getattr(settings.qemu, name)
    if not path:
        return
    if not path.startswith("/"):
        raise _refusal(settings, name, f"`{path}` is not an absolute path")
    if not os.path.exists(path):
        raise _refusal(settings, name, f"`{path}` does not exist")
    if name in ("guest_directory", "file_mem_backend"):
        if not os.path.isdir(path):
            raise _refusal(settings, name, f"`{path}` is not a directory")
    elif name == "entropy_source":
        if not stat.S_ISCHR(os.stat(path).st_mode):
            raise _refusal(settings, name, f"`{path}` is not a character device")
    elif not os.path.isfile(path):
        raise _refusal(settings, name, f"`{path}` is not a file")
    elif name in ("path", "virtio_fs_daemon") and not os.access(path, os.X_OK):
        raise _refusal(settings, name, f"`{path}` is not executable")


_OURS = re.compile(r"--(fd|socket-path|shared-dir)\b|(-o)?(source|sandbox)=")


def _check_share(settings: Settings) -> None:
    qemu = settings.qemu
    for word in qemu.virtio_fs_extra_args:
        if _OURS.match(word) or "\0" in word:
            raise _refusal(settings, "virtio_fs_extra_args", f"`{word}` is not yours to choose")
    size = qemu.virtio_fs_queue_size
    if size and (not 16 <= size <= 1024 or size & (size - 1)):
        raise _refusal(settings, "virtio_fs_queue_size", f"`{size}`, legal are powers of two from 16 to 1024")
    if (qemu.pcie_root_port or 0) > limits.ROOT_PORTS_MAX:
        raise _refusal(settings, "pcie_root_port", f"`{qemu.pcie_root_port}`, legal is up to {limits.ROOT_PORTS_MAX}")
    for name in ("rx_rate_limiter_max_rate", "tx_rate_limiter_max_rate"):
        rate, low, high = getattr(qemu, name), limits.RATE_BITS_PER_S_MIN, limits.RATE_BITS_PER_S_MAX
        if rate and not low <= rate <= high:
            raise _refusal(settings, name, f"`{rate}` bits per second, legal is 0 or {low} to {high}")
    for name in ("cpu_features", "machine_accelerators"):
        if not re.fullmatch(r"[\w.+=,-]*", getattr(qemu, name), re.ASCII):
            raise _refusal(settings, name, f"`{getattr(qemu, name)}` is no list of `name=value` with commas between")


def _check_modules(settings: Settings) -> None:
    for module in settings.agent.kernel_modules:
        if not re.match(r"\w[\w-]*(\s|\Z)", module, re.ASCII) or "\0" in module:
            key = "agent.kata.kernel_modules"
            raise UsageError(f"`{settings.origin_of(key)}`: `{key}`: `{module}` is no module's name and parameters")


def _check_ceilings(settings: Settings) -> None:
    qemu = settings.qemu
    pairs = (("default_memory", "default_maxmemory"), ("default_vcpus", "default_maxvcpus"))
    for name, most in pairs:
        value = effective(settings)[_QEMU + name]
        ceiling = getattr(qemu, most)
        if ceiling and value > ceiling:
            where = settings.origin_of(_QEMU + most)
            # Of the two, the one that was set: `default_memory` has a value of its own.
            named = name if _QEMU + name in settings.origins else most
            raise _refusal(settings, named, f"`{name}` is `{value}`, more than the `{ceiling}` of `{most}` (`{where}`)")


def _check_memory(settings: Settings) -> None:
    memory = settings.qemu.default_memory
    if memory is None:
        return
    low, high = limits.GUEST_MEMORY_MIB_MIN, limits.GUEST_MEMORY_MIB_MAX
    if not low <= memory <= high:
        raise _refusal(settings, "default_memory", f"`{memory}` MiB, legal is {low} to {high}")
    initrd = settings.qemu.initrd or (settings.qemu.guest_directory or default_guest_directory()) + "/initrd"
    try:
        size = os.stat(initrd).st_size
    except OSError:
        return  # there is no guest image: whoever needs it says so
    if size >= memory << 20:
        raise _refusal(
            settings, "default_memory", f"`{memory}` MiB do not hold the initrd `{initrd}` of {size >> 20} MiB"
        )


_RULES: tuple[tuple[tuple[str, Any], tuple[str, Any], str], ...] = (
    (
        ("hypervisor.qemu.hot_plug_vfio", None),
        ("hypervisor.qemu.cold_plug_vfio", None),
        "devices are plugged into a running machine or before it starts, not both",
    ),
    (
        ("hypervisor.qemu.enable_vhost_user_store", True),
        ("hypervisor.qemu.enable_hugepages", False),
        "it needs hugepages",
    ),
    (("hypervisor.qemu.enable_numa", True), ("runtime.static_sandbox_resource_mgmt", False), "it needs static sizes"),
    (
        ("hypervisor.qemu.enable_hugepages", True),
        ("hypervisor.qemu.file_mem_backend", None),
        "the guest's memory is of huge pages or a file",
    ),
    (("factory.enable_template", True), ("factory.vm_cache_number", None), "one or the other"),
    (
        ("factory.enable_template", True),
        ("hypervisor.qemu.file_mem_backend", None),
        "a template is a file of memory itself",
    ),
    (
        ("factory.enable_template", True),
        ("hypervisor.qemu.shared_fs", "virtio-fs"),
        "a template cannot have a file share",
    ),
    (("factory.enable_template", True), ("hypervisor.qemu.image", None), "a template needs an initrd"),
)
"""Pairs of settings that Kata refuses, both as written. None: any value that asks for something."""


def contradictions(merged: Merged) -> None:
    """Raises `UsageError` for options that exclude each other, naming both places."""
    for (first, wanted), (second, other), why in _RULES:
        one, two = merged.get(tuple(first.split("."))), merged.get(tuple(second.split(".")))
        if one is None or two is None or not _is(one.value, wanted) or not _is(two.value, other):
            continue
        raise UsageError(
            f"`{one.origin}`: `{first}`: `{said(one.value)}` contradicts `{second}`: `{said(two.value)}` "
            f"(`{two.origin}`): {why}"
        )
    netns, model = merged.get(("runtime", "disable_new_netns")), merged.get(("runtime", "internetworking_model"))
    if netns is not None and netns.value is True and model is not None and model.value != "none":
        raise UsageError(
            f"`{netns.origin}`: `runtime.disable_new_netns`: `true` contradicts `runtime.internetworking_model`: "
            f"`{model.value}` (`{model.origin}`): without a network namespace only `none` can be"
        )


def said(value: Any) -> str:
    """A value as a message quotes it: booleans as TOML writes them."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is(value: Any, wanted: Any) -> bool:
    return value not in ("", "no-port", 0, False) if wanted is None else bool(value == wanted)
