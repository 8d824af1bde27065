# SPDX-License-Identifier: Apache-2.0
"""Puts the image together: inputs and their digest, the three files, and the exchange of the output directory.

The output is made in a temporary directory beside the final one and then takes its place in one step, so that a
virtual machine starting meanwhile finds a kernel and an initrd that belong together.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from guest.build import cpio, kernel, modules, params, rootfs
from guest.build.errors import BuildError
from guest.build.exchange import replace_directory
from guest.build.packages import KERNEL_NAME, Package, Store
from guest.build.stdlib import reachable
from guest.build.tree import Tree

FORMAT = 1  # of the manifest; raise it when its meaning changes
CHECKOUT = Path(__file__).resolve().parents[2]
VMLINUX, INITRD, MANIFEST = "vmlinux", "initrd", "manifest.json"
LIMIT_MIB = 64  # of the initrd; ours has about 15, and a guest of 128 MiB must still boot


@dataclass(frozen=True)
class Layout:
    """Where things are. `agent` and `wire` hold the Python sources that become `kata_agent` and `kata_wire`."""

    out: Path = CHECKOUT / "build/guest"
    work: Path = CHECKOUT / "build/guest-work"
    agent: Path = CHECKOUT / "guest/agent"
    wire: Path = CHECKOUT / "kata_wire"
    static: Path = CHECKOUT / "guest/rootfs"


@dataclass(frozen=True)
class Inputs:
    """Everything the bytes depend on. `own` and `static`: path in the guest -> bytes."""

    packages: list[Package]
    own: dict[str, bytes]
    static: dict[str, bytes]
    builder: dict[str, str]
    strip: str

    def digest(self) -> str:
        """One SHA-256 over all of it."""
        facts = {
            "format": FORMAT,
            "packages": [asdict(p) for p in self.packages],
            "own": digests(self.own),
            "static": digests(self.static),
            "builder": self.builder,
            "strip": self.strip,
        }
        return sha256(json.dumps(facts, sort_keys=True).encode())


def sha256(data: bytes) -> str:
    """In hex."""
    return hashlib.sha256(data).hexdigest()


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """path -> SHA-256."""
    return {path: sha256(data) for path, data in sorted(files.items())}


def own_files(layout: Layout) -> dict[str, bytes]:
    """Our sources as laid out below /usr/lib/kata: `start.py`, the whole agent, and what it imports of the wire package.

    The wire package also holds what only the host needs (the oracle's generated code, for one).
    """
    files = {"start.py": (layout.static / "start.py").read_bytes()}
    for package, directory in (("kata_agent", layout.agent), ("kata_wire", layout.wire)):
        found = sorted(directory.glob("*.py"))
        if not found:
            raise BuildError(f"`{directory}` holds no Python files, so there is no `{package}` to put into the image")
        files |= {f"{package}/{path.name}": path.read_bytes() for path in found}
        files.setdefault(f"{package}/__init__.py", b"")
    names = {rootfs.dotted(path): path for path in files}
    wanted = reachable({name: files[path] for name, path in names.items()}, rootfs.OWN_ROOTS)
    return {path: files[path] for name, path in sorted(names.items()) if name in wanted}


def static_files(layout: Layout) -> dict[str, bytes]:
    """Files copied as they are: `guest/rootfs/etc/...` and `init`."""
    paths = [p for p in sorted(layout.static.rglob("*")) if p.is_file() and p.suffix not in (".py", ".pyc")]
    return {p.relative_to(layout.static).as_posix(): p.read_bytes() for p in paths}


def collect(layout: Layout, store: Store, *, update: bool = False) -> Inputs:
    """Reads the inputs; asks apt only if it must."""
    here = Path(__file__).parent
    builder = {p.name: sha256(p.read_bytes()) for p in sorted(here.glob("*.py"))}
    packages = store.packages(update=update)
    return Inputs(packages, own_files(layout), static_files(layout), builder, modules.strip_version())


def build(layout: Layout, *, update: bool = False, force: bool = False) -> tuple[dict[str, Any], bool]:
    """Makes the image if its inputs changed. Returns its manifest, and whether anything was built."""
    store = Store(layout.work)
    layout.work.mkdir(parents=True, exist_ok=True)
    with exclusive(layout.work / "lock"):
        inputs = collect(layout, store, update=update)
        present = None if force else current(layout.out, inputs.digest())
        if present is not None:
            return present, False
        store.fetch(inputs.packages)
        trees = {p.name: store.unpack(p) for p in inputs.packages}
        files = make(inputs, trees)
        layout.out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=layout.out.parent, prefix=f".{layout.out.name}-"))
        try:
            for name, data in files.items():
                (temporary / name).write_bytes(data)
            temporary.chmod(0o755)
            replace_directory(temporary, layout.out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        store.forget_old(inputs.packages)
    manifest: dict[str, Any] = json.loads(files[MANIFEST])
    return manifest, True


def make(inputs: Inputs, trees: Mapping[str, Path]) -> dict[str, bytes]:
    """The output files by name; a pure function of `inputs` and the unpacked packages."""
    kernel_tree = next(tree for name, tree in trees.items() if KERNEL_NAME.fullmatch(name))
    version = modules.kernel_version(kernel_tree)
    vmlinux = kernel.extract((kernel_tree / f"boot/vmlinuz-{version}").read_bytes())
    tree = Tree()
    sources = rootfs.Sources(trees)
    rootfs.base(tree, inputs.static)
    rootfs.programs(tree, sources)
    rootfs.kernel_modules(tree, kernel_tree)
    standard = rootfs.python(tree, sources, inputs.own)
    initrd = cpio.pack(tree)
    if len(initrd) > LIMIT_MIB << 20:
        raise BuildError(f"the initrd has {len(initrd) >> 20} MiB, legal is up to {LIMIT_MIB}")
    manifest = {
        "format": FORMAT,
        "inputs": inputs.digest(),
        "kernel": version,
        "parameters": params.manifest(),
        "cpu": {"tcg": params.TCG_CPU},
        "files": {n: {"sha256": sha256(d), "size": len(d)} for n, d in ((VMLINUX, vmlinux), (INITRD, initrd))},
        "packages": [asdict(p) for p in inputs.packages],
        "agent": digests(inputs.own),
        "static": digests(inputs.static),
        "standard_modules": standard,
        "strip": inputs.strip,
    }
    return {VMLINUX: vmlinux, INITRD: initrd, MANIFEST: json.dumps(manifest, indent=1).encode() + b"\n"}


def current(out: Path, digest: str) -> dict[str, Any] | None:
    """The manifest in `out` if it was made from the same inputs and its files are there in full; else None."""
    try:
        manifest: dict[str, Any] = json.loads((out / MANIFEST).read_bytes())
        sizes = {name: os.stat(out / name).st_size for name in (VMLINUX, INITRD)}
        same = all(manifest["files"][name]["size"] == size for name, size in sizes.items())
        return manifest if same and manifest["inputs"] == digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One build at a time in a work directory; the next one waits, and then usually finds its work done."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
