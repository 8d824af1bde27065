# SPDX-License-Identifier: Apache-2.0
"""Debian packages: asked of apt, downloaded into the work directory, unpacked there, never installed.

The first build asks apt which versions it offers and writes them into `packages.json` of the work directory; later
builds stay on those until `update` is asked for, so that a rebuild after an edit needs neither apt nor a network.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote

from guest.build.errors import BuildError
from guest.build.run import run

KERNEL_META = "linux-image-cloud-amd64"  # depends on the package that holds the kernel, named by its version
KERNEL_NAME = re.compile(r"\blinux-image-[0-9][^\s,|(]*-cloud-amd64\b")

PACKAGES = (
    "busybox-static",  # init, mount, insmod, ps
    "crun",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "python3.11-minimal",
    # what crun and python are linked against, the whole closure: a missing one is named by the build
    "libc6",
    "libcap2",
    "libexpat1",
    "libffi8",
    "libgcrypt20",
    "libgpg-error0",
    "liblz4-1",
    "liblzma5",
    "libseccomp2",
    "libsystemd0",
    "libyajl2",
    "libzstd1",
    "zlib1g",
)

# apt drops to a user that cannot write into our directory when it runs as root; the digest is checked either way
APT = ("apt-get", "-q", "-o", "APT::Sandbox::User=root")
URI_LINE = re.compile(r"^'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})$")


@dataclass(frozen=True)
class Package:
    """One package file. `size` in bytes; `sha256` of the .deb, in hex, as the signed index states it."""

    name: str
    version: str
    file: str
    size: int
    sha256: str


def kernel_package() -> str:
    """The package that holds the kernel image which `KERNEL_META` stands for today."""
    text = run(["apt-cache", "show", "--no-all-versions", KERNEL_META], package="apt").decode()
    depends = [line for line in text.splitlines() if line.startswith("Depends:")]
    found = KERNEL_NAME.search(depends[0]) if depends else None
    if found is None:
        raise BuildError(f"apt offers no kernel through `{KERNEL_META}`", "run `apt-get update` as root")
    return found.group()


def resolve(names: Sequence[str]) -> list[Package]:
    """What apt offers for `names`, sorted by name."""
    text = run([*APT, "download", "--print-uris", *names], package="apt").decode()
    found = [parse_uri(line) for line in text.splitlines() if line.startswith("'")]
    missing = sorted(set(names) - {p.name for p in found})
    if missing:
        raise BuildError(f"apt offers no `{missing[0]}`", "run `apt-get update` as root")
    return sorted(found, key=lambda p: p.name)


def parse_uri(line: str) -> Package:
    """A line of `apt-get download --print-uris`: 'URI' FILE SIZE SHA256:HEX."""
    match = URI_LINE.match(line.strip())
    if match is None:
        raise BuildError(f"apt answered `{line}`, not a download address with a SHA256")
    name, version, _arch = unquote(match["file"]).removesuffix(".deb").split("_")
    return Package(name, version, match["file"], int(match["size"]), match["sha256"])


class Store:
    """The work directory: `packages.json`, `debs/` and `unpacked/<sha256>/`."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.lock_file = work / "packages.json"
        self.debs = work / "debs"
        self.unpacked = work / "unpacked"

    def locked(self) -> list[Package] | None:
        """The versions of the last build; None when there was none, or another list of packages."""
        try:
            rows = json.loads(self.lock_file.read_text())
            packages = [Package(**row) for row in rows]
        except (OSError, ValueError, TypeError):
            return None
        plain = {p.name for p in packages if not KERNEL_NAME.fullmatch(p.name)}
        return packages if plain == set(PACKAGES) and len(packages) == len(PACKAGES) + 1 else None

    def packages(self, *, update: bool = False) -> list[Package]:
        """The versions to build from: the locked ones, or, at first and on `update`, what apt offers."""
        found = None if update else self.locked()
        if found is None:
            found = resolve([*PACKAGES, kernel_package()])
            self.work.mkdir(parents=True, exist_ok=True)
            write_atomically(self.lock_file, json.dumps([asdict(p) for p in found], indent=1).encode() + b"\n")
        return found

    def fetch(self, packages: Sequence[Package]) -> None:
        """Downloads what is not there yet; every file matches its digest afterwards."""
        missing = [p for p in packages if not (self.unpacked / p.sha256).is_dir() and not self._holds(p)]
        if not missing:
            return
        self.debs.mkdir(parents=True, exist_ok=True)
        run([*APT, "download", *(f"{p.name}={p.version}" for p in missing)], package="apt", cwd=self.debs)
        for package in missing:
            if not self._holds(package):
                raise BuildError(
                    f"`{package.file}` is not what the package index promised", "run the build with --update"
                )

    def unpack(self, package: Package) -> Path:
        """The directory with the package's files."""
        target = self.unpacked / package.sha256
        if not target.is_dir():
            self.unpacked.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.unpacked, prefix=".tmp-") as temporary:
                tree = Path(temporary) / "tree"
                run(["dpkg-deb", "-x", self.debs / package.file, tree], package="dpkg")
                tree.rename(target)
        return target

    def forget_old(self, packages: Sequence[Package]) -> None:
        """Removes what belongs to other versions."""
        keep_trees = {p.sha256 for p in packages}
        keep_debs = {p.file for p in packages}
        for tree in self.unpacked.iterdir():
            if tree.name not in keep_trees:
                shutil.rmtree(tree, ignore_errors=True)
        for deb in self.debs.iterdir() if self.debs.is_dir() else ():
            if deb.name not in keep_debs:
                deb.unlink(missing_ok=True)

    def _holds(self, package: Package) -> bool:
        try:
            data = (self.debs / package.file).read_bytes()
        except OSError:
            return False
        return hashlib.sha256(data).hexdigest() == package.sha256


def write_atomically(path: Path, data: bytes) -> None:
    """Writes beside `path` and renames."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)
