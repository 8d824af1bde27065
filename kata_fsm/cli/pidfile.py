# SPDX-License-Identifier: Apache-2.0
"""The pid file: containerd and conmon take its appearance for the end of `create`, so it comes last and whole."""

from __future__ import annotations

import os

from kata_fsm.errors import UsageError


def prepare(path: str | None) -> None:
    """Take an old file away, and refuse a path that could not be written, before anything is begun. Raises `UsageError`."""
    if not path:
        return
    directory = os.path.dirname(path) or "."
    if not os.path.isdir(directory):
        raise UsageError(f"pid file `{path}`: there is no directory `{directory}`")
    if os.path.isdir(path):
        raise UsageError(f"pid file `{path}`: it is a directory")
    if os.path.isfile(path):
        try:
            os.unlink(path)
        except OSError as error:
            raise _cannot(path, error) from error


def write(path: str | None, pid: int) -> None:
    """Write `pid` in decimal, without a newline, atomically. Raises `UsageError`."""
    if not path:
        return
    # What is not a file (a pipe, /dev/stdout) is written to: to rename over it would take it away from everybody.
    special = os.path.exists(path) and not os.path.isfile(path)
    temporary = path if special else f"{path}.{os.getpid()}.tmp"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, str(pid).encode("ascii"))
        finally:
            os.close(fd)
        if not special:
            os.replace(temporary, path)
    except OSError as error:
        _remove(None if special else temporary)
        raise _cannot(path, error) from error


def _remove(path: str | None) -> None:
    try:
        os.unlink(path or "")
    except OSError:
        pass  # it never came to be


def _cannot(path: str, error: OSError) -> UsageError:
    return UsageError(f"pid file `{path}` cannot be written: {error.strerror}")
