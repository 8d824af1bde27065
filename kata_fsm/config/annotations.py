# SPDX-License-Identifier: Apache-2.0
"""`io.katacontainers.*`: what a container may change of its sandbox's configuration, and the gates before that.

Whoever starts a container is not whoever runs the host. So a name has to match a pattern of `enable_annotations` as a whole
(Kata looks for the pattern anywhere in the name, by which `path` also allows `jailer_path`), a path has to be one that a
pattern of its own list finds, and what no annotation of Kata's can change stays out of reach whatever the patterns say.
Settings of the runtime and of the agent are gated here as `runtime.NAME` and `agent.NAME`, which Kata does not gate. What
would have no effect is noted.
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from kata_fsm.config.kata import AGENT, HYPERVISOR, RUNTIME, Known
from kata_fsm.config.layers import Merged, Value
from kata_fsm.config.settings import Origin, Settings, effective
from kata_fsm.errors import SpecError

PREFIX = "io.katacontainers."
_HYPERVISOR = PREFIX + "config.hypervisor."
_RUNTIME = PREFIX + "config.runtime."
_AGENT = PREFIX + "config.agent."
_PLACES = (PREFIX + "pkg.oci.",)

OVERRIDABLE = {
    "path": str,
    "kernel": str,
    "initrd": str,
    "virtio_fs_daemon": str,
    "entropy_source": str,
    "kernel_params": str,
    "machine_type": str,
    "machine_accelerators": str,
    "cpu_features": str,
    "virtio_fs_cache": str,
    "default_vcpus": float,
    "default_memory": int,
    "default_maxvcpus": int,
    "enable_mem_prealloc": bool,
    "enable_hugepages": bool,
    "file_mem_backend": str,
    "disable_vhost_net": bool,
    "pcie_root_port": int,
    "block_device_aio": str,
    "block_device_cache_set": bool,
    "block_device_cache_direct": bool,
    "block_device_cache_noflush": bool,
    "rx_rate_limiter_max_rate": int,
    "tx_rate_limiter_max_rate": int,
}
"""The keys of `[hypervisor.qemu]` that an annotation can change, and how its text is read."""

RUNTIME_OVERRIDABLE = {"disable_guest_seccomp": bool, "internetworking_model": str, "create_container_timeout": int}

PATH_GATES = {
    "path": "valid_hypervisor_paths",
    "kernel": "valid_kernel_paths",
    "initrd": "valid_initrd_paths",
    "virtio_fs_daemon": "valid_virtio_fs_daemon_paths",
    "entropy_source": "valid_entropy_sources",
    "file_mem_backend": "valid_file_mem_backends",
}
"""Path-valued keys, and the list of patterns that their values have to be found by."""

_HASHED = {"kernel_hash": "kernel", "initrd_hash": "initrd", "hypervisor_hash": "path", "path_hash": "path"}
_HASHES_OF_NOTHING = ("image", "firmware", "firmware_volume", "hypervisorctl", "ctlpath", "jailer", "jailer_path")
_ALIASES = {
    "default_max_vcpus": "default_maxvcpus",
    "blk_logical_sector_size": "block_device_logical_sector_size",
    "blk_physical_sector_size": "block_device_physical_sector_size",
    "cc_init_data": "initdata",
}


class Accepted(NamedTuple):
    """The values that take the place of the files', the annotations behind them, and what has no effect."""

    values: Merged
    names: dict[str, str]
    warnings: tuple[str, ...]


def accept(annotations: Mapping[str, str], settings: Settings) -> Accepted:
    """Judge a container's annotations by the gates in `settings`. Raises `SpecError` naming the gate that refused one."""
    values: Merged = {}
    names: dict[str, str] = {}
    warnings: list[str] = []
    for name in sorted(annotations):
        if not name.startswith(PREFIX) or name.startswith(_PLACES):
            continue
        text = annotations[name]
        if name.startswith(_HYPERVISOR):
            note = _hypervisor(name, text, settings, values)
        elif name.startswith(_RUNTIME):
            note = _runtime(name, text, settings, values)
        elif name == _AGENT + "kernel_modules":
            note = _modules(name, text, settings, values)
        else:
            note = _other(name, text)
        if note:
            warnings.append(f"annotation `{name}` has no effect here because {note}")
        else:
            names[name] = text
    _check_hashes(annotations, settings, values)
    return Accepted(values, names, tuple(warnings))


def _require_enabled(name: str, short: str, settings: Settings) -> None:
    for pattern in settings.qemu.enable_annotations:
        if re.fullmatch(pattern, short):
            return
    raise SpecError(
        f"annotation {name} is not enabled",
        hint=f"the gate is `enable_annotations` of `[hypervisor.qemu]` in {_where(settings)}: no pattern there "
        f"matches the whole of `{short}`",
    )


def _where(settings: Settings) -> str:
    return f"`{settings.origin}`" if settings.origin else "the configuration file, and there is none"


def _hypervisor(name: str, text: str, settings: Settings, values: Merged) -> str:
    """Takes the value, or answers why it has no effect."""
    short = name[len(_HYPERVISOR) :]
    _require_enabled(name, short, settings)
    key = _ALIASES.get(short, short)
    if key in OVERRIDABLE:
        value = _parsed(name, text, OVERRIDABLE[key])
        if key in PATH_GATES:
            _require_valid_path(name, text, PATH_GATES[key], settings)
        if key == "kernel_params":
            value = f"{settings.qemu.kernel_params} {text}".strip()
        values["hypervisor", "qemu", key] = Value(value, Origin("annotation", name))
        return ""
    if key in _HASHED or key == "asset_hash_type":
        return ""
    if key.endswith("_hash") and key[: -len("_hash")] in _HASHES_OF_NOTHING:
        raise SpecError(f"annotation {name}: there is no such file here whose content could be compared")
    if key in type(settings.qemu).__struct_fields__:
        raise SpecError(f"annotation {name} is not enabled", hint=f"no annotation can change `{key}`")
    return _noted(name, text, HYPERVISOR.get(key))


def _runtime(name: str, text: str, settings: Settings, values: Merged) -> str:
    short = name[len(_RUNTIME) :]
    if short in RUNTIME_OVERRIDABLE:
        _require_enabled(name, "runtime." + short, settings)
        values["runtime", short] = Value(_parsed(name, text, RUNTIME_OVERRIDABLE[short]), Origin("annotation", name))
        return ""
    return _noted(name, text, RUNTIME.get(short))


def _modules(name: str, text: str, settings: Settings, values: Merged) -> str:
    """As the file's, with semicolons between the modules."""
    _require_enabled(name, "agent.kernel_modules", settings)
    modules = [module.strip() for module in text.split(";") if module.strip()]
    values["agent", "kata", "kernel_modules"] = Value(modules, Origin("annotation", name))
    return ""


_KNOWN: dict[str, Known] = {
    "config_path": Known(("",), "a container does not choose its host's configuration", True),
    "config.agent.policy": Known(("",), "the agent enforces no policy", True),
    "config.agent.cdh_api_timeout": AGENT["cdh_api_timeout"],
    "asset_hash_type": Known(("sha512",), "only `sha512` is there", True),
    "enable_vcpus_pinning": RUNTIME["enable_vcpus_pinning"],
    "container.resource.swappiness": Known(("",), "the guest has no swap"),
    "container.resource.swap_in_bytes": Known(("",), "the guest has no swap"),
}


def _other(name: str, text: str) -> str:
    short = name[len(PREFIX) :]
    known = _KNOWN.get(short)
    if known is None and name.startswith(_AGENT):
        known = AGENT.get(name[len(_AGENT) :])
    if known is None and short.startswith(("fs-opt.", "volume")):
        return "layers of images are not mounted in the guest"
    return _noted(name, text, known)


def _noted(name: str, text: str, known: Known | None) -> str:
    if known is None:
        return "it is not known"
    if known.unsafe and text not in ("", *(_written(value) for value in known.silent)):
        raise SpecError(f"annotation {name}: `{text}` cannot be had: {known.why}")
    return known.why


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parsed(name: str, text: str, kind: type) -> Any:
    if kind is str:
        return text
    if kind is bool:
        if text not in ("true", "false"):
            raise SpecError(f"annotation {name}: `{text}` is none of `true`, `false`")
        return text == "true"
    number = re.fullmatch(r"-?[0-9]{1,18}" + (r"(\.[0-9]{1,9})?" if kind is float else ""), text)
    if number is None:
        raise SpecError(f"annotation {name}: `{text}` is not a number")
    return float(text) if "." in text else int(text)


def _require_valid_path(name: str, path: str, gate: str, settings: Settings) -> None:
    for pattern in getattr(settings.qemu, gate):
        if path in glob.glob(pattern):
            return
    raise SpecError(
        f"annotation {name}: `{path}` is not allowed",
        hint=f"the gate is `{gate}` of `[hypervisor.qemu]` in {_where(settings)}: no pattern there finds that file",
    )


def _check_hashes(annotations: Mapping[str, str], settings: Settings, values: Merged) -> None:
    now = effective(settings)
    for short, key in _HASHED.items():
        name = _HYPERVISOR + short
        expected = annotations.get(name)
        if not expected:
            continue
        path = values.get(("hypervisor", "qemu", key), Value(now[f"hypervisor.qemu.{key}"], Origin())).value
        try:
            with open(path, "rb") as file:
                computed = hashlib.file_digest(file, "sha512").hexdigest()
        except OSError as error:
            raise SpecError(f"annotation {name}: `{path}` cannot be read: {error.strerror}") from error
        if computed != expected.lower():
            raise SpecError(f"annotation {name}: Invalid hash for {path}: computed {computed}, expecting {expected}")
