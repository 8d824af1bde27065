# SPDX-License-Identifier: Apache-2.0
"""Terminals: making one for a container, handing its master to the caller, and putting our own in raw mode."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import termios
from types import TracebackType
from typing import Any

from kata_fsm.errors import UsageError, WorldError

Attributes = list[Any]
_IFLAG, _OFLAG, _CFLAG, _LFLAG, _CC = 0, 1, 2, 3, 6
_SOCKET_TIMEOUT_S = 10


def make_raw(fd: int) -> Attributes:
    """cfmakeraw(3): the terminal passes every byte as it is; the guest's does the cooking. Answers what was set before."""
    before = termios.tcgetattr(fd)
    after = [*before[:_CC], list(before[_CC])]
    after[_IFLAG] &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    after[_OFLAG] &= ~termios.OPOST
    after[_LFLAG] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    after[_CFLAG] = (after[_CFLAG] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
    after[_CC][termios.VMIN] = 1
    after[_CC][termios.VTIME] = 0
    termios.tcsetattr(fd, termios.TCSANOW, after)
    return before


def open_pair(size: tuple[int, int] | None = None) -> tuple[int, int]:
    """(master, slave) of a new raw terminal of `size` (rows, columns)."""
    try:
        master, slave = os.openpty()
    except OSError as error:
        raise WorldError(f"a terminal cannot be made: {error.strerror}") from error
    make_raw(slave)
    if size is not None:
        set_size(slave, *size)
    return master, slave


def set_size(fd: int, rows: int, columns: int) -> None:
    """Set a terminal's size."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def open_given(path: str) -> int:
    """A terminal of the caller's, made raw (`--console`)."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"console `{path}` cannot be opened: {error.strerror}") from error
    if not os.isatty(fd):
        os.close(fd)
        raise UsageError(f"console `{path}` is not a terminal")
    make_raw(fd)
    return fd


def send_master(path: str, master: int) -> None:
    """Hand the master end to whoever listens at `path`, as runc does: its name as data, the descriptor beside it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        # Not `settimeout`: connect(2) to a full queue would then fail at once instead of waiting for its turn.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SOCKET_TIMEOUT_S, 0))
        try:
            connection.connect(path)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [master]).tobytes())
            connection.sendmsg([b"/dev/ptmx"], [rights])
        except BlockingIOError as error:
            raise UsageError(f"console socket `{path}`: nobody accepts on it") from error
        except OSError as error:
            raise UsageError(f"console socket `{path}`: {error.strerror or error}") from error


class RawTerminal:
    """While entered, our own terminal (the first of 0, 1, 2 that is one) is raw. Restored however the block ends."""

    def __init__(self) -> None:
        self.fd = next((fd for fd in (0, 1, 2) if os.isatty(fd)), None)
        self._before: Attributes | None = None

    def __enter__(self) -> RawTerminal:
        if self.fd is not None:
            self._before = make_raw(self.fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.fd is not None and self._before is not None:
            try:
                termios.tcsetattr(self.fd, termios.TCSADRAIN, self._before)
            except termios.error:
                pass  # the terminal was hung up meanwhile: there is nothing to restore
