# SPDX-License-Identifier: Apache-2.0
"""The few facts we need from 64-bit little-endian ELF files (System V ABI, gABI chapters 4 and 5)."""

import struct
from dataclasses import dataclass

from guest.build.errors import BuildError

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
SHDR = struct.Struct("<IIQQQQIIQQ")
DYN = struct.Struct("<qQ")
NOTE = struct.Struct("<III")

SHT_NOTE = 7
SHT_NOBITS = 8
DT_NEEDED = 1
XEN_ELFNOTE_PHYS32_ENTRY = 18  # the PVH entry point, from Xen's public elfnote.h; QEMU's -kernel looks for it


@dataclass(frozen=True)
class Section:
    """One section header and its bytes (none for a section that takes no room in the file)."""

    name: str
    type: int
    data: bytes


def sections(image: bytes) -> dict[str, Section]:
    """All sections by name. Raises BuildError for anything but a 64-bit little-endian ELF file."""
    if len(image) < EHDR.size or image[:6] != b"\x7fELF\x02\x01":
        raise BuildError("not a 64-bit little-endian ELF file")
    header = EHDR.unpack_from(image)
    offset, size, count, names_index = header[6], header[11], header[12], header[13]
    rows = [SHDR.unpack_from(image, offset + i * size) for i in range(count)]
    strings = image[rows[names_index][4] :] if rows else b""
    found: dict[str, Section] = {}
    for row in rows:
        name = string_at(strings, row[0])
        data = b"" if row[1] == SHT_NOBITS else image[row[4] : row[4] + row[5]]
        found[name] = Section(name, row[1], data)
    return found


def string_at(table: bytes, offset: int) -> str:
    """The NUL-terminated string at `offset` of a string table."""
    return table[offset : table.index(b"\0", offset)].decode("ascii")


def needed(image: bytes) -> list[str]:
    """The shared libraries a program or library asks for, in its order; none for a static program."""
    found = sections(image)
    if ".dynamic" not in found:
        return []
    strings = found[".dynstr"].data
    return [string_at(strings, value) for tag, value in DYN.iter_unpack(found[".dynamic"].data) if tag == DT_NEEDED]


def modinfo(image: bytes) -> dict[str, list[str]]:
    """A kernel module's metadata: the NUL-separated `key=value` strings of `.modinfo`, values in their order."""
    found: dict[str, list[str]] = {}
    for line in sections(image)[".modinfo"].data.split(b"\0"):
        key, equals, value = line.decode("ascii", errors="replace").partition("=")
        if equals:
            found.setdefault(key, []).append(value)
    return found


def pvh_entry(image: bytes) -> int | None:
    """The physical address at which a hypervisor may enter this kernel directly (PVH); None if it has none."""
    for section in sections(image).values():
        if section.type != SHT_NOTE:
            continue
        at = 0
        while at + NOTE.size <= len(section.data):
            name_size, size, kind = NOTE.unpack_from(section.data, at)
            name = section.data[at + NOTE.size : at + NOTE.size + name_size]
            body = at + NOTE.size + padded(name_size)
            if name == b"Xen\0" and kind == XEN_ELFNOTE_PHYS32_ENTRY:
                return int.from_bytes(section.data[body : body + size], "little")
            at = body + padded(size)
    return None


def padded(size: int) -> int:
    """`size` rounded up to four bytes."""
    return (size + 3) & ~3


def end_of_headers(image: bytes) -> int:
    """The end of the section header table: what follows it in a kernel (relocations) is not part of the ELF file."""
    header = EHDR.unpack_from(image)
    return int(header[6] + header[11] * header[12])
