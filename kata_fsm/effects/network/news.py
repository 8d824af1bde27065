# SPDX-License-Identifier: Apache-2.0
"""That something has changed in a namespace's network, as the kernel tells everybody who listens (rtnetlink(7)). What has
changed is not read: whoever hears of it looks."""

from __future__ import annotations

import socket

import trio

from kata_fsm.effects import netns

_LINK, _ADDRESS4, _ROUTE4, _ADDRESS6, _ROUTE6 = 0x1, 0x10, 0x40, 0x100, 0x400  # RTMGRP_* of linux/rtnetlink.h
_MESSAGE_BYTES = 1 << 16


class News:
    """Those of the namespace at `path`, from now on. Blocks. Raises OSError."""

    def __init__(self, path: str) -> None:
        self._socket = netns.inside(path, _listening)

    async def some(self) -> None:
        """Wait for any; all that have come by then count as told."""
        await trio.lowlevel.wait_readable(self._socket)
        while True:
            try:
                self._socket.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                pass  # ENOBUFS: more than could be kept, which is news as well

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


def _listening() -> socket.socket:
    made = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    )
    try:
        made.bind((0, _LINK | _ADDRESS4 | _ROUTE4 | _ADDRESS6 | _ROUTE6))
    except OSError:
        made.close()
        raise
    return made
