# SPDX-License-Identifier: Apache-2.0
"""The ELF kernel out of a bzImage, so that QEMU enters it directly (PVH).

That saves the guest its own decompression, a quarter of a second under emulation. Offsets and names are those of the
x86 boot protocol (Documentation/x86/boot.rst in the kernel tree).
"""

import struct

from guest.build import elf
from guest.build.errors import BuildError
from guest.build.run import run

SETUP_SECTS = 0x1F1
BOOT_MAGIC = 0x202
PAYLOAD_OFFSET = 0x248  # and the payload's length four bytes after it
SECTOR = 512
LZ4_LEGACY = b"\x02\x21\x4c\x18"


def payload(bzimage: bytes) -> bytes:
    """The compressed kernel inside `bzimage`, without the four bytes of its unpacked size that end it."""
    if bzimage[BOOT_MAGIC : BOOT_MAGIC + 4] != b"HdrS":
        raise BuildError("not a Linux bzImage: the boot header's magic is missing")
    setup_sectors = bzimage[SETUP_SECTS] or 4  # zero means four, says the boot protocol
    offset, length = struct.unpack_from("<II", bzimage, PAYLOAD_OFFSET)
    start = (setup_sectors + 1) * SECTOR + offset
    data = bzimage[start : start + length]
    if len(data) != length:
        raise BuildError(f"the bzImage is cut short: {len(data)} of {length} bytes of its payload")
    return data


def extract(bzimage: bytes) -> bytes:
    """The ELF kernel with a PVH entry point. Raises BuildError when it is packed otherwise or has none."""
    packed = payload(bzimage)
    if not packed.startswith(LZ4_LEGACY):
        raise BuildError(f"the kernel is packed as `{packed[:4].hex()}`, legal is lz4 (`{LZ4_LEGACY.hex()}`)")
    (size,) = struct.unpack_from("<I", packed, len(packed) - 4)
    unpacked = run(["lz4", "-dc"], package="lz4", input=packed[:-4])
    if len(unpacked) != size:
        raise BuildError(f"the kernel unpacks to {len(unpacked)} bytes, its header promises {size}")
    if elf.pvh_entry(unpacked) is None:
        raise BuildError("the kernel has no PVH entry point (CONFIG_PVH)")
    return unpacked[: elf.end_of_headers(unpacked)]
