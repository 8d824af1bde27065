# SPDX-License-Identifier: Apache-2.0
"""How fast this host's time stamp counter counts.

An emulated processor's counter is the host's. A guest that has no HPET or ACPI timer to measure it by (`microvm`) has to be
told, or it finds no clock and hangs; on KVM the hypervisor's clock tells it.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable

from kata_fsm import errors
from kata_fsm.world import WORLD

_RDTSC = bytes.fromhex("0faee8 0f31 48c1e220 4809d0 c3")  # lfence; rdtsc; shl rdx, 32; or rax, rdx; ret
_APART_S = 0.05
_TRIES = 20


def _pair(read: Callable[[], int]) -> tuple[int, int]:
    """(counter, monotonic nanoseconds) of one instant: of several readings the one that took least."""
    best = None
    for _ in range(_TRIES):
        before = WORLD.mono_ns()
        counter = read()
        after = WORLD.mono_ns()
        if best is None or after - before < best[0]:
            best = (after - before, counter, (before + after) // 2)
    assert best is not None
    return best[1], best[2]


def host_khz() -> int:
    """Counts in a millisecond. Blocks for 50 ms. Raises EffectError where no code may be put into memory (SELinux)."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError as error:
        raise errors.EffectError(
            "tsc", f"the speed of the host's time stamp counter cannot be measured: {error.strerror}", hint="use q35"
        ) from error
    page.write(_RDTSC)
    place = ctypes.c_char.from_buffer(page)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(place))
    first, begin_ns = _pair(read)
    time.sleep(_APART_S)
    second, end_ns = _pair(read)
    return (second - first) * 1_000_000 // (end_ns - begin_ns)
