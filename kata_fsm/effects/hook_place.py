# SPDX-License-Identifier: Apache-2.0
"""Where a createContainer hook runs: in the container's namespaces, as far as the host has them.

Such a hook is found by its path on the host, and run "in the container namespace" before the container has its root
(runtime-spec, config.md, "CreateContainer Hooks"). The container's processes and their namespaces are in another kernel.
What it has on the host is the pod's network namespace, and its root file system and volumes, which the guest gets through
the file share. So the hook has the pod's network namespace, and a mount namespace that is the host's with the volumes at
their places in the root file system. What it writes there the guest sees. What it mounts is its own: nothing that is mounted
on the host appears in the guest.

The root file system may hold any symbolic link. So what is mounted is opened before, and put in its place after, the thread
has changed its root to there, from where no link leads out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

from kata_fsm.effects import mounts, netns

T = TypeVar("T")


def inside(space: str, tree: str, root: str, places: Sequence[Sequence[str]], work: Callable[[], T]) -> T:
    """Run `work`, which starts a process, in there, and answer or raise what it did. Blocks. Raises OSError.

    `space` is the pod's network namespace, `tree` the container's directory in the shared tree, `root` its root file system
    on the host, `places` are (name in `tree`, destination in the container).
    """

    def prepared() -> T:
        mounts.unshare(mounts.CLONE_NEWNS)
        mounts.mount(None, "/", mounts.MS_REC | mounts.MS_SLAVE)
        outside = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        copies: list[tuple[int, str]] = []
        try:
            copies += [(mounts.copy_tree(f"{tree}/{name}"), destination) for name, destination in places]
            os.chroot(root)
            os.chdir("/")
            for copy, destination in copies:
                mounts.put(copy, destination)
            os.fchdir(outside)
            os.chroot(".")
        finally:
            for fd in (outside, *(copy for copy, _ in copies)):
                os.close(fd)
        return work()

    return netns.inside(space, prepared)
