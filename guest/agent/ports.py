# SPDX-License-Identifier: Apache-2.0
"""Finding the way to the host: a virtio-serial port by its name, or a vsock listener."""

from __future__ import annotations

import os
from _socket import SO_REUSEADDR, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, socket

from . import files
from .loop import READABLE, Loop, pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from .loop import Wait

PORT_NAME = "agent.0"
VSOCK_PORT = 1024
_AF_VSOCK = 40
_VMADDR_CID_ANY = 0xFFFF_FFFF
_POLL_S = 0.001
_BACKLOG = 8


def parameter(command_line: str, name: str, default: str) -> str:
    """The value of `name=value` on the kernel's command line; the last one counts."""
    value = default
    for word in command_line.split():
        key, equals, rest = word.partition("=")
        if key == name and equals:
            value = rest
    return value


def find_serial(sysfs: str, name: str) -> str | None:
    """The device node's name of the port, or None while there is none."""
    directory = f"{sysfs}/class/virtio-ports"
    try:
        candidates = os.listdir(directory)
    except FileNotFoundError:
        return None
    for candidate in candidates:
        if files.read_or(f"{directory}/{candidate}/name", "").strip() == name:
            return candidate
    return None


def open_serial(sysfs: str, name: str = PORT_NAME) -> Generator[Wait, bool, int]:
    """Wait for the port, however long the kernel takes to find it, and open it."""
    while True:
        node = find_serial(sysfs, name)
        if node is not None:
            try:
                return os.open(f"/dev/{node}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                pass  # devtmpfs is a moment behind sysfs
        yield pause(_POLL_S)


def listen_vsock(loop: Loop, port: int, accepted: Callable[[int], object]) -> Generator[Wait, bool, socket]:
    """Wait for the vsock device and listen; `accepted` takes over each connection's descriptor."""
    while True:
        listener = None
        try:
            listener = socket(_AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
            listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            listener.bind((_VMADDR_CID_ANY, port))
            listener.listen(_BACKLOG)
            break
        except OSError:  # the module is still being loaded
            if listener is not None:
                listener.close()
            yield pause(_POLL_S * 10)
    loop.watch(listener.fileno(), READABLE, lambda events: _accept(listener, accepted))
    return listener


def _accept(listener: socket, accepted: Callable[[int], object]) -> None:
    try:
        fd, _ = listener._accept()  # type: ignore[attr-defined]
    except OSError:
        return  # it went away again
    accepted(fd)
