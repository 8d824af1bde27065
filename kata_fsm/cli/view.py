# SPDX-License-Identifier: Apache-2.0
"""A mount namespace in which the host side of a container is `/`, for the shim to stand in.

`podman cp` enters the mount namespace of the pid that it holds and reads or writes there (libpod/container_copy_linux.go);
were that the host's, a copy into the container would go to the host's own files. So the shim of a container's init process
lives where `/` is the container's root file system, with its volumes at their places. What is written there the guest sees
through the file share. `podman top` enters the same namespace to look at every process in its `/proc`: there is the shim,
which stands for them all, and none of the host's.

The guest may have put symbolic links anywhere in the root file system. What is mounted is therefore opened before, and put
in its place after, the change of root, from where no link leads out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from kata_fsm.effects import mounts

_PROC = ("/proc/stat", "/proc/uptime", "/proc/meminfo")
"""What a `ps` reads beside the processes."""


def make(tree: str, places: Sequence[tuple[str, str]]) -> tuple[int, int, int]:
    """(the view's namespace, the one we are in, our root directory) as descriptors that are not inherited.

    `tree` is the container's directory in the shared tree; `places` are (name in `tree`, destination). The calling process
    must have one thread; it is where it was afterwards, but in `/`. Raises OSError; then it may be anywhere, and should end.
    """
    here = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mounts.unshare(mounts.CLONE_NEWNS)
    mounts.mount(None, "/", mounts.MS_REC | mounts.MS_PRIVATE)
    view = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    process = (f"/proc/{os.getpid()}", *_PROC)
    sources = [*((path, path) for path in process), *((f"{tree}/{name}", place) for name, place in places)]
    copies = [(mounts.copy_tree(source), destination) for source, destination in sources]
    mounts.change_root(f"{tree}/rootfs")
    _begin_proc()
    for copy, destination in copies:
        mounts.put(copy, destination)
        os.close(copy)
    mounts.setns(here, mounts.CLONE_NEWNS)
    os.fchdir(root)
    os.chroot(".")  # whoever enters a mount namespace stands at its root; we may have come from a chroot
    os.chdir("/")
    return view, here, root


def _begin_proc() -> None:
    try:
        os.makedirs("/proc", 0o755, exist_ok=True)
        mounts.mount("none", "/proc", mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC, "tmpfs")
    except OSError:
        pass  # a root file system without the place: then nobody can look
