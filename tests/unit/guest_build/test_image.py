# SPDX-License-Identifier: Apache-2.0
"""The image as a whole, from the packages that the last build has downloaded: its bytes, its content, its manifest."""

import hashlib
import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guest.build import cpio, elf, image
from guest.build.errors import BuildError
from guest.build.exchange import replace_directory
from guest.build.image import CHECKOUT, INITRD, MANIFEST, VMLINUX, Layout, build
from guest.build.tree import Entry

AGENT = "import os\n\n\ndef main():\n    assert os.getpid() == 1\n    return {'a', 'b', 'c', 'd'}\n"


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A small agent, and the packages of the checkout's own build."""
    store = Layout().work
    if not (store / "packages.json").exists():
        pytest.skip("no packages were downloaded yet: run scripts/setup")
    directory = tmp_path_factory.mktemp("image")
    for name, text in (("agent/main.py", AGENT), ("wire/__init__.py", "")):
        (directory / name).parent.mkdir()
        (directory / name).write_text(text)
    return Layout(out=directory / "out", work=store, agent=directory / "agent", wire=directory / "wire")


@pytest.fixture(scope="module")
def manifest(layout: Layout) -> dict[str, Any]:
    """The image, built once for this module."""
    found, built = build(layout)
    assert built
    return found


@pytest.fixture(scope="module")
def entries(layout: Layout, manifest: dict[str, Any]) -> dict[str, Entry]:
    """The content of the initrd."""
    return {e.path: e for e in cpio.unpack((layout.out / INITRD).read_bytes())}


def test_same_inputs_same_bytes(layout: Layout, manifest: dict[str, Any], tmp_path: Path) -> None:
    """Built again elsewhere, by another process with another hash seed, umask, locale, time zone and directory."""
    argv = [sys.executable, "-m", "guest.build", "--out", tmp_path / "again", "--work", layout.work]
    argv += ["--agent", layout.agent, "--wire", layout.wire]
    env = {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": str(CHECKOUT), "LC_ALL": "C", "TZ": "Asia/Tokyo"}
    subprocess.run(argv, check=True, env=env, cwd=tmp_path, umask=0o077, capture_output=True, timeout=60)
    for name in (VMLINUX, INITRD, MANIFEST):
        assert (layout.out / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_unchanged_inputs_build_nothing(layout: Layout, manifest: dict[str, Any]) -> None:
    """And a changed or damaged one does; the manifest says which inputs an image was made from."""
    before = (layout.out / INITRD).stat().st_ino
    assert build(layout) == (manifest, False)
    assert (layout.out / INITRD).stat().st_ino == before
    assert image.current(layout.out, "another digest") is None
    assert image.current(layout.out / "missing", manifest["inputs"]) is None
    (layout.agent / "more.py").write_text("x = 1\n")
    try:
        inputs = image.collect(layout, image.Store(layout.work))
        assert inputs.digest() != manifest["inputs"]
    finally:
        (layout.agent / "more.py").unlink()


def test_manifest_tells_versions_and_digests(layout: Layout, manifest: dict[str, Any]) -> None:
    """Of what came in and of what came out."""
    assert manifest == json.loads((layout.out / MANIFEST).read_bytes())
    for name in (VMLINUX, INITRD):
        data = (layout.out / name).read_bytes()
        assert manifest["files"][name] == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    assert manifest["agent"]["kata_agent/main.py"] == hashlib.sha256(AGENT.encode()).hexdigest()
    names = {p["name"] for p in manifest["packages"]}
    assert {"crun", "python3.11-minimal", f"linux-image-{manifest['kernel']}"} <= names
    assert all(p["version"] and len(p["sha256"]) == 64 for p in manifest["packages"])


def test_kernel_is_entered_directly(layout: Layout, manifest: dict[str, Any]) -> None:
    """An ELF file with a PVH entry."""
    assert elf.pvh_entry((layout.out / VMLINUX).read_bytes()) is not None


def test_links_and_libraries_are_all_there(entries: dict[str, Entry]) -> None:
    """No program in the guest lacks a library, and no link leads nowhere but into /proc and /run."""
    for entry in entries.values():
        if stat.S_ISLNK(entry.mode):
            target = entry.data.decode()
            assert target.startswith(("/proc/", "/run")) or target.lstrip("/") in entries, entry.path
        elif entry.data.startswith(b"\x7fELF") and not entry.path.endswith(".ko") and entry.path != "init":
            for name in elf.needed(entry.data):
                places = (f"usr/lib/x86_64-linux-gnu/{name}", f"usr/lib64/{name}")
                assert any(place in entries for place in places), f"{entry.path} needs {name}"


def test_modules_are_all_there(entries: dict[str, Entry]) -> None:
    """Those the issue of running containers depends on, and all that they depend on."""
    found = {Path(path).stem.replace("-", "_"): entry for path, entry in entries.items() if path.endswith(".ko")}
    devices = {f"virtio_{name}" for name in ("pci", "console", "net", "blk", "balloon", "mem")}
    assert devices | {"virtiofs", "fuse", "overlay", "vmw_vsock_virtio_transport"} <= set(found)
    late = entries["usr/lib/kata/modules-late"].data.decode().split()
    assert all(path.lstrip("/") in entries for path in late)
    assert b"virtio_console.ko" in entries["init"].data
    assert all(b".BTF" not in elf.sections(entry.data) for entry in found.values())


def test_code_is_compiled_for_good(entries: dict[str, Entry]) -> None:
    """Nothing to check against a source, no path of the build in it, and no source either."""
    for path, entry in entries.items():
        assert not path.endswith(".py")
        if path.endswith(".pyc"):
            assert entry.data[4:8] == (1).to_bytes(4, "little"), path
        assert str(CHECKOUT).encode() not in entry.data, path


def test_every_file_is_roots_and_nobody_else_writes_it(entries: dict[str, Entry]) -> None:
    """Modes do not come from the host."""
    for path, entry in entries.items():
        if stat.S_ISREG(entry.mode):
            assert stat.S_IMODE(entry.mode) in (0o644, 0o755), path


def test_an_agent_that_asks_too_much_fails_the_build(layout: Layout, manifest: dict[str, Any], tmp_path: Path) -> None:
    """And leaves the old image where it was."""
    (tmp_path / "main.py").write_text("import sqlite3\nimport numpy\n")
    with pytest.raises(BuildError, match=r"kata_agent\.main line 2 imports `numpy`"):
        build(replace(layout, agent=tmp_path))
    assert image.current(layout.out, manifest["inputs"]) == manifest
    assert not list(layout.out.parent.glob(".out-*"))


def test_an_empty_agent_fails_the_build(layout: Layout, tmp_path: Path) -> None:
    """The directory is named."""
    with pytest.raises(BuildError, match="holds no Python files"):
        build(replace(layout, agent=tmp_path))


def test_a_directory_is_exchanged_in_one_step(tmp_path: Path) -> None:
    """What was there is left for the caller to remove."""
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    replace_directory(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old/file").read_text() == "new"
    assert (tmp_path / "new/file").read_text() == "old"
    replace_directory(tmp_path / "old", tmp_path / "fresh")
    assert (tmp_path / "fresh/file").read_text() == "new"
