# SPDX-License-Identifier: Apache-2.0
"""A place of its own for each test, proof that nothing is left of it, and guests small enough to write by hand."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from kata_fsm.argv import argv_of
from kata_fsm.effects import mounts
from kata_fsm.effects.bounded import Bounded
from kata_fsm.effects.hypervisor.settings import HypervisorSettings
from kata_fsm.world import Paths
from tests.support.held import pod as pod

UID = secrets.token_hex(6)  # processes are looked for on the whole host, where others may run these tests
BASE = 0x100000


@dataclass
class Place:
    """Directories of one test: `run` and `state` are what kata-fsm uses, `work` is the test's own."""

    top: str
    paths: Paths

    @property
    def work(self) -> Path:
        path = Path(self.top, "work")
        path.mkdir(exist_ok=True)
        return path

    def mounts(self) -> list[mounts.Mount]:
        """What is mounted in it. The rest of the host's table changes while tests run beside."""
        return mounts.below(self.top)


def _processes_about(text: str) -> list[str]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            line = " ".join(argv_of(int(name)))
            if text in line:
                found.append(f"{name} {line}")
    return found


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A fresh place. Afterwards nothing may be mounted in it, run from it, or lie in its run directory."""
    # Short, and without symbolic links: unix sockets lie in it.
    top = os.path.realpath(tempfile.mkdtemp(prefix="kf-", dir="/tmp"))
    monkeypatch.setenv("KATA_FSM_RUN", top + "/run")
    monkeypatch.setenv("KATA_FSM_STATE", top + "/state")
    place = Place(top, Paths(UID))
    os.makedirs(place.paths.base, 0o700)
    yield place
    left_mounts = [entry.point for entry in mounts.below(top)]
    left_processes = _processes_about(top)
    left_cgroups = glob.glob(f"/sys/fs/cgroup/**/{os.path.basename(top)}*", recursive=True)
    left_files = [str(path) for path in Path(place.paths.base).rglob("*")]
    for entry in reversed(mounts.below(top)):
        mounts.unmount(entry.point, mounts.MNT_DETACH)
    for line in left_processes:
        os.kill(int(line.split()[0]), 9)
    shutil.rmtree(top)
    assert not left_mounts
    assert not left_processes
    assert not left_files
    assert not left_cgroups


def _print(text: bytes, at: int) -> bytes:
    """32-bit code for address `at` that writes `text` to the first serial port, followed by that text."""
    #       mov esi, text      lodsb  test al,al  jz end  mov dx, 0x3f8   out  jmp lodsb   end: jmp over
    body = b"\xbe%s\xac\x84\xc0\x74\x07\x66\xba\xf8\x03\xee\xeb\xf4\xe9%s"
    size = 5 + 1 + 2 + 2 + 4 + 1 + 2 + 5
    code = body % (struct.pack("<I", at + size), struct.pack("<i", len(text) + 1))
    assert len(code) == size
    return code + text + b"\0"


_ENDS = {
    "idle": b"\xfa\xf4\xeb\xfd",  # cli; hlt; jmp to hlt
    "reset": b"\x66\xba\xf9\x0c\xb0\x06\xee\xf4\xeb\xfd",  # out 0xcf9, 6; hlt; jmp to hlt
    "spin": b"\xeb\xfe",  # jmp to itself
}


def tiny_kernel(says: bytes, then: str) -> bytes:
    """An ELF kernel (PVH) that prints `says` and then is `idle`, `spin`s, `reset`s or prints for ever (`flood`)."""
    headers = 64 + 2 * 56
    note = struct.pack("<III", 4, 8, 18) + b"Xen\0"  # XEN_ELFNOTE_PHYS32_ENTRY
    note_at, code_at = headers, headers + len(note) + 8
    note += struct.pack("<Q", BASE + code_at)
    code = _print(says, BASE + code_at)
    code += b"\xe9" + struct.pack("<i", -len(code) - 5) if then == "flood" else _ENDS[then]
    size = code_at + len(code)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, BASE + code_at, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 7, 0, BASE, BASE, size, size, 4096)
    notes = struct.pack("<IIQQQQQQ", 4, 4, note_at, BASE + note_at, BASE + note_at, len(note), len(note), 4)
    return header + load + notes + note + code


@pytest.fixture
def tiny(place: Place) -> Callable[..., HypervisorSettings]:
    """Settings for a VM that runs a kernel of a few bytes under emulation."""

    def make(says: bytes = b"up\n", then: str = "idle", **changes: object) -> HypervisorSettings:
        kernel = place.work / f"kernel-{then}"
        kernel.write_bytes(tiny_kernel(says, then))
        fields: dict[str, object] = {"kernel": str(kernel), "image_params": False, "accel": "tcg", "memory_mib": 128}
        return HypervisorSettings(**{**fields, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture
def until() -> Callable[..., object]:
    """Wait for a condition, at most `limit_s` seconds."""

    async def wait(condition: Callable[[], object], limit_s: float = 60.0) -> None:
        with trio.fail_after(limit_s):
            while not condition():
                await trio.sleep(0.005)

    return wait


@pytest.fixture
def all_back(monkeypatch: pytest.MonkeyPatch, until: Callable[..., Any]) -> Callable[[], Any]:
    """Wait until no thread is left behind with work on the host, nor with what it does late."""
    busy: list[Bounded] = []
    real = Bounded._in_thread

    def noted(self: Bounded, *how: Any) -> Any:
        busy.append(self)
        try:
            return real(self, *how)
        finally:
            busy.remove(self)

    monkeypatch.setattr(Bounded, "_in_thread", noted)
    return lambda: until(lambda: not busy)
