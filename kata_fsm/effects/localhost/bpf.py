# SPDX-License-Identifier: Apache-2.0
"""bpf(2), as far as one small program needs it: maps, loading, attaching it to a network namespace (linux/bpf.h).

Everything here is a descriptor. The last one that is closed, by whoever's death, takes its map, program or attachment
with it: nothing is pinned, and nothing can be left behind.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import struct
from collections.abc import Callable, Sequence

_SYSCALLS = {"x86_64": 321, "aarch64": 280}
_MAP_CREATE, _MAP_UPDATE_ELEM, _MAP_DELETE_ELEM, _PROG_LOAD, _LINK_CREATE = 0, 2, 3, 5, 28
_ATTRIBUTES_BYTES = 120  # of a union that grows; a kernel wants what it does not know to be zero
_PROG_TYPE_SK_LOOKUP, _ATTACH_SK_LOOKUP = 30, 36
_LOG_BYTES = 8192

HASH, SOCKMAP = 1, 15

MAP_LOOKUP_ELEM, SK_RELEASE, SK_ASSIGN = 1, 86, 124
"""Functions of the kernel that a program may call."""


@functools.cache
def _libc() -> Callable[..., int]:
    call: Callable[..., int] = ctypes.CDLL(None, use_errno=True).syscall
    return call


def _bpf(command: int, attributes: bytes) -> int:
    number = _SYSCALLS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    buffer = ctypes.create_string_buffer(attributes.ljust(_ATTRIBUTES_BYTES, b"\0"), _ATTRIBUTES_BYTES)
    result = _libc()(number, command, buffer, _ATTRIBUTES_BYTES)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def make_map(kind: int, entries: int) -> int:
    """A map from one 32-bit number to another; its descriptor. Raises OSError."""
    return _bpf(_MAP_CREATE, struct.pack("=IIIII", kind, 4, 4, entries, 0))


def put(bpf_map: int, key: int, value: int) -> None:
    """Set an entry. The value of one in a SOCKMAP is a socket's descriptor. Raises OSError."""
    keys, values = ctypes.c_uint32(key), ctypes.c_uint32(value)
    _bpf(_MAP_UPDATE_ELEM, struct.pack("=I4xQQQ", bpf_map, ctypes.addressof(keys), ctypes.addressof(values), 0))


def drop(bpf_map: int, key: int) -> None:
    """Remove an entry that may be there. Raises OSError."""
    keys = ctypes.c_uint32(key)
    try:
        _bpf(_MAP_DELETE_ELEM, struct.pack("=I4xQ", bpf_map, ctypes.addressof(keys)))
    except FileNotFoundError:
        pass


def load(program: bytes) -> int:
    """Have the kernel check a program that looks up sockets; its descriptor. Raises OSError with the checker's words."""
    code, licence = ctypes.create_string_buffer(program, len(program)), ctypes.create_string_buffer(b"Apache-2.0")
    log = ctypes.create_string_buffer(_LOG_BYTES)
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        _PROG_TYPE_SK_LOOKUP,
        len(program) // 8,
        ctypes.addressof(code),
        ctypes.addressof(licence),
        1,  # tell what is wrong, if something is
        _LOG_BYTES,
        ctypes.addressof(log),
        0,
        0,
        b"kata_localhost",
        0,
        _ATTACH_SK_LOOKUP,
    )
    try:
        return _bpf(_PROG_LOAD, attributes)
    except OSError as error:
        lines = log.value.decode(errors="replace").strip().splitlines()
        said = [line for line in lines if not line.startswith("processed ")]  # its statistics
        raise OSError(error.errno, f"{error.strerror}: {said[-1]}" if said else error.strerror) from None


def attach(program: int, namespace: int) -> int:
    """Run a program at every lookup of a socket in a network namespace (a descriptor of it) for as long as the descriptor
    that is answered is open. Raises OSError."""
    return _bpf(_LINK_CREATE, struct.pack("=IIII", program, namespace, _ATTACH_SK_LOOKUP, 0))


# --- a program's instructions, with names of places in the place of distances

Line = tuple[int, int, int, int, int | str, int]


def load_word(to: int, base: int, offset: int) -> Line:
    """to = the 32 bits at base + offset."""
    return (0x61, to, base, offset, 0, 0)


def store_word(base: int, offset: int, value: int) -> Line:
    """The 32 bits at base + offset = value (a register)."""
    return (0x63, base, value, offset, 0, 0)


def copy(to: int, value: int) -> Line:
    """to = value (a register)."""
    return (0xBF, to, value, 0, 0, 0)


def number(to: int, value: int) -> Line:
    """to = a number."""
    return (0xB7, to, 0, 0, 0, value)


def add(to: int, value: int) -> Line:
    """to += a number."""
    return (0x07, to, 0, 0, 0, value)


def unless(register: int, value: int, place: str) -> Line:
    """Go on at a place unless the lower 32 bits of a register are this number."""
    return (0x56, register, 0, 0, place, value)


def unless_null(register: int, place: str) -> Line:
    """Go on at a place unless a pointer is null."""
    return (0x55, register, 0, 0, place, 0)


def if_null(register: int, place: str) -> Line:
    """Go on at a place if a pointer is null."""
    return (0x15, register, 0, 0, place, 0)


def go(place: str) -> Line:
    """Go on at a place."""
    return (0x05, 0, 0, 0, place, 0)


def the_map(to: int, bpf_map: int) -> Line:
    """to = a map (a descriptor of it)."""
    return (0x18, to, 1, 0, 0, bpf_map)


def call(function: int) -> Line:
    """r0 = a function of the kernel's, of r1 to r5."""
    return (0x85, 0, 0, 0, 0, function)


def leave() -> Line:
    """End with the result in r0."""
    return (0x95, 0, 0, 0, 0, 0)


def assemble(lines: Sequence[Line | str]) -> bytes:
    """The program of these instructions; a string names the place of the one that follows it."""
    places: dict[str, int] = {}
    flat: list[Line] = []
    for line in lines:
        if isinstance(line, str):
            places[line] = len(flat)
        else:
            flat.append(line)
            if line[0] == 0x18:  # the one instruction that takes two places
                flat.append((0, 0, 0, 0, 0, 0))
    made = []
    for at, (code, to, other, offset, place, value) in enumerate(flat):
        if isinstance(place, str):
            offset = places[place] - at - 1
        made.append(struct.pack("=BBhi", code, other << 4 | to, offset, value))
    return b"".join(made)
