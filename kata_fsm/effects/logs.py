# SPDX-License-Identifier: Apache-2.0
"""Bounded logs of the processes we start: their tails as evidence, and the limit on their growth.

The guest writes the console log and can provoke lines in the others, so none may grow without bound and none is shown
to a terminal as it is. The writers append (O_APPEND), hence a file can be cut under them and they go on at its new end.
"""

from __future__ import annotations

import os

import trio

from kata_fsm import limits


def printable(data: bytes) -> str:
    """`data` as text that a terminal can be shown: control characters (escapes, carriage returns) are replaced."""
    text = data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def tail(path: str, size: int) -> str:
    """The last `size` bytes of `path`, from the start of a line where they were cut; empty if there is no such file."""
    try:
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - size))
            data = file.read(size)
    except OSError:
        return ""
    if end > size:
        data = data.partition(b"\n")[2] or data
    return printable(data)


def last_line(text: str) -> str:
    """The last line with something in it, for a message of one line."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def last_lines(text: str, count: int) -> list[str]:
    """The last `count` lines with something in them, oldest first."""
    return [line.strip() for line in text.splitlines() if line.strip()][-count:]


def cut(path: str, size_max: int = limits.CONSOLE_LOG_BYTES_MAX) -> bool:
    """Cut `path` down to its last quarter once it is larger than `size_max` bytes; whether that was needed.

    What is written between the read and the cut is lost, which a bounded log may.
    """
    try:
        if os.stat(path).st_size <= size_max:
            return False
        keep = size_max // 4
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        end = os.fstat(fd).st_size
        kept = os.pread(fd, keep, end - keep)
        os.ftruncate(fd, 0)
        os.write(fd, b"[... cut ...]\n" + kept)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


async def keep_bounded(*paths: str) -> None:
    """Keep those files within their limit, for ever (until cancelled)."""
    while True:
        for path in paths:
            cut(path)
        await trio.sleep(limits.LOG_CHECK_S)
