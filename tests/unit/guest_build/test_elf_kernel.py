# SPDX-License-Identifier: Apache-2.0
"""Reading ELF files, and taking the kernel out of a bzImage."""

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from guest.build import elf, kernel
from guest.build.errors import BuildError


def elf_file(sections: dict[str, tuple[int, bytes]]) -> bytes:
    """A minimal ELF file with the given sections (name -> type, bytes), section headers last."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in (*sections, ".shstrtab"))
    body, rows = b"", [elf.SHDR.pack(*[0] * 10)]
    for name, (kind, data) in {**sections, ".shstrtab": (3, strings)}.items():
        at = strings.index(b"\0" + name.encode() + b"\0") + 1
        rows.append(elf.SHDR.pack(at, kind, 0, 0, elf.EHDR.size + len(body), len(data), 0, 0, 1, 0))
        body += data
    end = elf.EHDR.size + len(body)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = elf.EHDR.pack(ident, 2, 62, 1, 0, 0, end, 0, elf.EHDR.size, 0, 0, elf.SHDR.size, len(rows), len(rows) - 1)
    return head + body + b"".join(rows)


def note(name: bytes, kind: int, body: bytes) -> bytes:
    """One ELF note, padded."""
    pad = lambda data: data + bytes(-len(data) % 4)  # noqa: E731
    return elf.NOTE.pack(len(name), len(body), kind) + pad(name) + pad(body)


PVH = note(b"GNU\0", 3, b"build id") + note(b"Xen\0", 18, struct.pack("<Q", 0x1000EE0))


def bzimage(payload: bytes, setup_sectors: int = 2) -> bytes:
    """A bzImage with nothing but what the boot protocol says about its payload."""
    head = bytearray((max(setup_sectors, 4 if setup_sectors == 0 else setup_sectors) + 1) * 512)
    head[0x1F1] = setup_sectors
    head[0x202:0x206] = b"HdrS"
    head[0x248:0x250] = struct.pack("<II", 16, len(payload))
    return bytes(head) + bytes(16) + payload + b"tail"


def lz4_legacy(data: bytes) -> bytes:
    """As the kernel's build packs it: the tool's old format, then the unpacked size."""
    packed = subprocess.run(["lz4", "-l", "-c", "-q"], input=data, capture_output=True, check=True).stdout
    return packed + struct.pack("<I", len(data))


@pytest.mark.parametrize("setup_sectors", [0, 2, 31])
def test_extracts_the_elf_without_what_follows_it(setup_sectors: int) -> None:
    """The build appends relocations, which are no part of the file."""
    image = elf_file({".text": (1, b"code" * 1000), ".notes": (7, PVH)})
    assert kernel.extract(bzimage(lz4_legacy(image + b"relocations"), setup_sectors)) == image


def test_a_kernel_without_pvh_is_refused() -> None:
    """QEMU could not start it."""
    with pytest.raises(BuildError, match="no PVH entry"):
        kernel.extract(bzimage(lz4_legacy(elf_file({".notes": (7, note(b"GNU\0", 3, b"x"))}))))


def test_what_is_no_kernel_is_refused() -> None:
    """Each with its own words."""
    packed = lz4_legacy(elf_file({".notes": (7, PVH)}))
    with pytest.raises(BuildError, match="not a Linux bzImage"):
        kernel.extract(b"MZ" + bytes(4096))
    with pytest.raises(BuildError, match="packed as `1f8b"):
        kernel.extract(bzimage(b"\x1f\x8b\x08\0" + bytes(100)))
    with pytest.raises(BuildError, match="cut short"):
        kernel.extract(bzimage(packed)[:-10])
    with pytest.raises(BuildError, match="its header promises 5"):
        kernel.extract(bzimage(packed[:-4] + struct.pack("<I", 5)))


def test_needed_libraries_of_a_real_program() -> None:
    """Those of this interpreter, as the dynamic loader itself lists them."""
    program = Path(sys.executable).resolve()
    listed = subprocess.run(["ldd", program], capture_output=True, check=True).stdout.decode()
    found = elf.needed(program.read_bytes())
    assert "libc.so.6" in found
    assert all(name in listed for name in found)


def test_needed_of_a_static_program_is_nothing() -> None:
    """It has no dynamic section."""
    assert elf.needed(elf_file({".text": (1, b"x")})) == []


def test_modinfo() -> None:
    """Repeated keys keep their order; `=` in a value stays."""
    image = elf_file({".modinfo": (1, b"depends=a,b-c\0alias=fs-x\0alias=y=z\0\0")})
    assert elf.modinfo(image) == {"depends": ["a,b-c"], "alias": ["fs-x", "y=z"]}


def test_not_elf_is_refused() -> None:
    """Rather than read as something else."""
    with pytest.raises(BuildError, match="not a 64-bit"):
        elf.sections(b"#!/bin/sh\n" + bytes(100))
