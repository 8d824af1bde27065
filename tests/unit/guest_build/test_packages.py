# SPDX-License-Identifier: Apache-2.0
"""What apt says, what is kept of it, and the command line that the image asks for."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from guest.build import modules, packages, params
from guest.build.errors import BuildError
from guest.build.modules import Module
from guest.build.packages import PACKAGES, Package, Store
from guest.build.run import run

DIGEST = "3d3fdbe91d4660c873e14b092c213fe81c1da6362daa236eb25d0171eb108744"
LINE = (
    "'http://deb.debian.org/debian/pool/main/b/busybox/busybox-static_1.35.0-4%2bdeb12u1%2bb1_amd64.deb' "
    f"busybox-static_1%3a1.35.0-4+deb12u1+b1_amd64.deb 928188 SHA256:{DIGEST}"
)


def all_packages() -> list[Package]:
    """A complete list, as after asking apt."""
    names = [*PACKAGES, "linux-image-6.1.0-1-cloud-amd64"]
    return [Package(name, "1", f"{name}_1_amd64.deb", 1, DIGEST) for name in names]


def test_a_download_line() -> None:
    """The file name is escaped, the version in it is not (an epoch, a plus)."""
    found = packages.parse_uri(LINE)
    file = "busybox-static_1%3a1.35.0-4+deb12u1+b1_amd64.deb"
    assert found == Package("busybox-static", "1:1.35.0-4+deb12u1+b1", file, 928188, DIGEST)


def test_an_unsigned_source_is_refused() -> None:
    """No SHA256, no package."""
    with pytest.raises(BuildError, match="not a download address"):
        packages.parse_uri(LINE.replace("SHA256:", "MD5:"))


def test_locked_versions_are_used_without_apt(tmp_path: Path) -> None:
    """Written by the first build, read by the next; another list of packages asks again."""
    store = Store(tmp_path)
    assert store.locked() is None
    store.lock_file.write_text(json.dumps([asdict(p) for p in all_packages()]))
    assert store.packages() == all_packages()
    store.lock_file.write_text(json.dumps([asdict(p) for p in all_packages()[1:]]))
    assert store.locked() is None
    store.lock_file.write_text("{ damaged")
    assert store.locked() is None


def test_a_package_that_is_not_as_promised_is_not_used(tmp_path: Path) -> None:
    """By digest, not by name."""
    store = Store(tmp_path)
    store.debs.mkdir()
    package = all_packages()[0]
    (store.debs / package.file).write_bytes(b"something else")
    assert not store._holds(package)


def test_old_versions_are_forgotten(tmp_path: Path) -> None:
    """The work directory does not grow with every kernel."""
    store = Store(tmp_path)
    keep = all_packages()[0]
    for name in (keep.sha256, "0" * 64):
        (store.unpacked / name).mkdir(parents=True)
    store.debs.mkdir()
    for name in (keep.file, "old.deb"):
        (store.debs / name).write_bytes(b"")
    store.forget_old([keep])
    assert [p.name for p in store.unpacked.iterdir()] == [keep.sha256]
    assert [p.name for p in store.debs.iterdir()] == [keep.file]


def test_a_missing_tool_is_named_with_its_package() -> None:
    """So that the reader knows what to install."""
    with pytest.raises(BuildError, match="`no-such-tool` is not installed") as caught:
        run(["no-such-tool"], package="lz4")
    assert caught.value.hint == "apt-get install lz4"
    with pytest.raises(BuildError, match="failed with status 3: oh dear"):
        run(["sh", "-c", "echo oh dear >&2; exit 3"], package="dash")


def test_modprobe_tables() -> None:
    """Dependencies nearest first, each once, also when two roads lead to one."""
    ring = Module("ring", "kernel/ring.ko", (), (), b"")
    virtio = Module("virtio", "kernel/virtio.ko", ("ring",), (), b"")
    fs = Module("fs", "kernel/fs.ko", ("virtio", "ring"), ("fs-virtiofs", "virtio:d26"), b"")
    table = modules.dependency_table([ring, virtio, fs])
    assert table == (
        b"kernel/fs.ko: kernel/virtio.ko kernel/ring.ko\nkernel/ring.ko:\nkernel/virtio.ko: kernel/ring.ko\n"
    )
    assert modules.alias_table([ring, fs]) == b"alias fs-virtiofs fs\nalias virtio:d26 fs\n"


def test_what_weakens_the_guest_is_for_emulation_only() -> None:
    """A guest on KVM is a real boundary; a panic must end the machine on both."""
    found = params.manifest()
    risky = {"mitigations=off", "rodata=off", "init_on_alloc=0", "nolapic_timer", "noreplace-smp", "tsc=reliable"}
    assert risky <= set(found["tcg"])
    assert not risky & set(found["common"] + found["kvm"])
    assert "panic=-1" in found["common"]
    assert "console=ttyS0" in found["common"]
