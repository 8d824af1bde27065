# SPDX-License-Identifier: Apache-2.0
"""A file system whose server never answers: whoever looks at it waits until the server is gone."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from kata_fsm.effects import mounts


@contextlib.contextmanager
def mounted(path: Path) -> Iterator[None]:
    """A FUSE file system at `path` whose first request nobody ever reads. Afterwards whoever waits gets ENOTCONN."""
    server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if libc.mount(b"hung", os.fsencode(path), b"fuse", ctypes.c_ulong(0), options) < 0:
            raise OSError(ctypes.get_errno(), "cannot mount a FUSE file system", str(path))
        try:
            yield
        finally:
            mounts.unmount(str(path), mounts.MNT_DETACH)
    finally:
        os.close(server)
