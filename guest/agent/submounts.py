# SPDX-License-Identifier: Apache-2.0
"""Directories of the host that a container is given are held by the agent, too, until the container is removed.

virtiofsd announces each bind as a file system of its own (a FUSE submount). The kernel mounts it when somebody first walks
into it, and in the mount namespace where that happens. Were that the container's alone, its last process would unmount it
by ending, perhaps while a read-ahead of its program is still on the way; the reply leads to a further request (RELEASE) that
holds an inode, and Linux takes the file system apart meanwhile: "Busy inodes after unmount", a BUG in kernels that check
(6.1, fs/super.c generic_shutdown_super; virtio_kill_sb waits for requests only with the connection's last mount). So the
agent walks in first, and lets go when all of the container's processes have ended and what they asked for was answered.

All of it happens in threads, as a server that does not answer would hold up the agent.
"""

from __future__ import annotations

import os
from _thread import start_new_thread

from .loop import READABLE, Notice
from .mounts import mounted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from typing import Any

    from .agent import Agent
    from .loop import Wait

_PATIENCE_S = 10.0  # for a file server; a container that cannot do without it fails by itself
_QUESTIONS = 3  # the server answers in order: a read-ahead, the release that follows, and one to be sure


def directories(spec: dict[str, Any], shared_root: str) -> list[str]:
    """The paths below `shared_root` that an adapted configuration makes the container's: its root and its binds."""
    asked = [(spec.get("root") or {}).get("path"), *(mount.get("source") for mount in spec.get("mounts") or [])]
    return list(dict.fromkeys(path for path in asked if isinstance(path, str) and path.startswith(f"{shared_root}/")))


def hold(agent: Agent, paths: Sequence[str]) -> Generator[Wait, bool, None]:
    """Walk into each, if it is a directory; the container's namespace is a copy of ours and gets the same mounts."""
    yield from _apart(agent, lambda: _ask(paths, os.stat, "/."))


def let_go(agent: Agent, paths: Sequence[str]) -> Generator[Wait, bool, None]:
    """Unmount what `hold` mounted, once nothing that the container asked for is unanswered. Not before: then it stays."""
    held = mounted(agent, paths)
    if held and (yield from _apart(agent, lambda: _ask(held * _QUESTIONS, os.statvfs, ""))):
        child = agent.children.spawn([agent.settings.busybox, "umount", "-l", *held])
        yield from child.wait()


def _ask(paths: Sequence[str], question: Callable[[str], object], tail: str) -> None:
    for path in paths:
        try:
            question(path + tail)
        except OSError:
            pass  # a file, or gone


def _apart(agent: Agent, work: Callable[[], None]) -> Generator[Wait, bool, bool]:
    """Do it in a thread; whether it was done in time. One that is not goes on by itself."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    done = Notice()

    def run() -> None:
        try:
            work()
        finally:
            os.close(write_end)

    agent.loop.watch(read_end, READABLE, lambda events: done.notify())  # it ends: a hang-up
    try:
        start_new_thread(run, ())
        return (yield done.wait(_PATIENCE_S))
    finally:
        agent.loop.unwatch(read_end)
        os.close(read_end)
