# SPDX-License-Identifier: Apache-2.0
"""Small files and trees, with as few system calls as will do."""

from __future__ import annotations

import os

_READ_BYTES = 64 << 10


def read(path: str) -> str:
    """The text of a small file of the kernel's. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, _READ_BYTES):
            parts.append(part)
        return b"".join(parts).decode(errors="replace")
    finally:
        os.close(fd)


def read_or(path: str, default: str) -> str:
    """As `read`, or `default` when it cannot be read."""
    try:
        return read(path)
    except OSError:
        return default


def write(path: str, data: str | bytes, mode: int = 0o600) -> None:
    """Replace the contents, in one write, as the kernel's files want it. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        left = memoryview(data.encode() if isinstance(data, str) else data)
        while left:
            left = left[os.write(fd, left) :]
    finally:
        os.close(fd)


def remove(path: str) -> None:
    """Unlink, if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def remove_tree(path: str) -> None:
    """A directory of our own making with all that is in it, if it is there. Links are not followed."""
    try:
        with os.scandir(path) as entries:
            found = list(entries)
    except FileNotFoundError:
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            remove_tree(entry.path)
        else:
            remove(entry.path)
    os.rmdir(path)
