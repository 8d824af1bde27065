# SPDX-License-Identifier: Apache-2.0
"""Kernel modules: which, in what order, stripped; and the tables busybox's modprobe reads.

Only what the agent's own port needs is loaded before the agent starts. The rest is loaded at the lowest priority while
the agent waits for its first request, and on demand (`modprobe`, called by the kernel) if something is faster than that.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from guest.build import elf
from guest.build.errors import BuildError
from guest.build.run import run

EARLY = ("virtio_pci", "virtio_console")
LATE = (
    "virtiofs",  # brings fuse; first, because the shared tree is plugged first
    "overlay",
    "virtio_net",
    "virtio_blk",
    "virtio_balloon",
    "virtio_rng",
    "virtio_mem",
    "pvpanic_mmio",  # tells QEMU of a panic; takes the ISA device as well, which ACPI names
    "vmw_vsock_virtio_transport",
)


@dataclass(frozen=True)
class Module:
    """One module: `path` below /usr/lib/modules/<version>, what it needs, its aliases, its stripped bytes."""

    name: str
    path: str
    depends: tuple[str, ...]
    aliases: tuple[str, ...]
    data: bytes


def canonical(name: str) -> str:
    """Module names treat dash and underscore alike."""
    return name.replace("-", "_")


def kernel_version(tree: Path) -> str:
    """The one directory name below lib/modules of an unpacked kernel package."""
    found = sorted(p.name for p in (tree / "lib/modules").iterdir())
    if len(found) != 1:
        raise BuildError(f"the kernel package holds modules for {found}, not for one version")
    return found[0]


def load(tree: Path, wanted: Iterable[str]) -> list[Module]:
    """`wanted` and all they depend on, each after what it depends on. Built-in ones are left out."""
    base = tree / "lib/modules" / kernel_version(tree)
    files = {canonical(p.stem): p for p in (base / "kernel").rglob("*.ko")}
    builtin = {canonical(Path(line).stem) for line in (base / "modules.builtin").read_text().split()}
    done: dict[str, Module] = {}

    def visit(name: str, wanted_by: str) -> None:
        if name in done or name in builtin:
            return
        if name not in files:
            raise BuildError(f"the kernel has no module `{name}`, which {wanted_by} needs")
        data = files[name].read_bytes()
        info = elf.modinfo(data)
        depends = tuple(canonical(d) for d in info.get("depends", [""])[0].split(",") if d)
        for dependency in depends:
            visit(dependency, f"module `{name}`")
        loadable = tuple(d for d in depends if d not in builtin)
        path = files[name].relative_to(base).as_posix()
        done[name] = Module(name, path, loadable, tuple(info.get("alias", [])), strip(data))

    for name in wanted:
        visit(canonical(name), "the image")
    return list(done.values())


def strip(data: bytes) -> bytes:
    """Without debug symbols and BTF type data, which the kernel would parse on loading and nobody here reads.

    The appended signature goes as well: it would no longer match, and the kernel does not enforce it.
    """
    with tempfile.TemporaryDirectory(prefix="kata-fsm-strip-") as directory:
        path = Path(directory) / "module.ko"  # strip works on files, not on pipes
        path.write_bytes(data)
        run(["strip", "--strip-debug", "-R", ".BTF", path], package="binutils")
        return path.read_bytes()


def strip_version() -> str:
    """The first line of `strip --version`: another release may write other bytes, so it is one of the inputs."""
    return run(["strip", "--version"], package="binutils").decode().splitlines()[0]


def dependency_table(modules: Iterable[Module]) -> bytes:
    """`modules.dep`: PATH: PATHS OF ALL IT NEEDS, the nearest first."""
    by_name = {m.name: m for m in modules}

    def closure(module: Module) -> list[str]:
        paths: list[str] = []
        for name in module.depends:
            for path in [by_name[name].path, *closure(by_name[name])]:
                if path in paths:
                    paths.remove(path)
                paths.append(path)
        return paths

    rows = [f"{m.path}:{''.join(' ' + p for p in closure(m))}\n" for m in by_name.values()]
    return "".join(sorted(rows)).encode()


def alias_table(modules: Iterable[Module]) -> bytes:
    """`modules.alias`: how the kernel's own requests (file systems, devices) find their module."""
    rows = [f"alias {alias} {m.name}\n" for m in modules for alias in m.aliases]
    return "".join(sorted(rows)).encode()
