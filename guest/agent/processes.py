# SPDX-License-Identifier: Apache-2.0
"""One process of a container: its init, or one that an exec started.

creating -> created (init only: `crun create` is done, the program not yet begun) -> running -> exited. How it ended stays
known until its container is removed.
"""

from __future__ import annotations

import os

from .errors import precondition
from .loop import Notice
from .streams import Input, Output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .children import Exit
    from .launch import Launched
    from .loop import Loop

SIGKILL = 9
_TIOCSWINSZ = 0x5414  # asm-generic/ioctls.h; `termios` is not built into the interpreter


class Process:
    """See the head of this file. `exec_id` is "" for the init process."""

    def __init__(self, container_id: str, exec_id: str, request: dict[str, Any]) -> None:
        self.container_id = container_id
        self.exec_id = exec_id
        self.request = request  # to tell a repeated request from another one of the same name
        self.state = "creating"
        self.pid = 0
        self.exit: Exit | None = None
        self.oom_killed = False
        self.killed_by_us = False
        self.stdin: Input | None = None
        self.outputs: dict[int, Output] = {}  # by descriptor number: 1 and 2, or 1 alone for a terminal
        self.terminal = False
        self.changed = Notice()  # at every change of state
        self._terminal_fd = -1

    @property
    def name(self) -> str:
        """For messages."""
        container = f"container `{self.container_id}`"
        return f"process `{self.exec_id}` of {container}" if self.exec_id else container

    def launched(self, loop: Loop, launch: Launched, state: str) -> None:
        """crun has made the process: take over its pid and descriptors."""
        self.pid = launch.child.pid
        self.terminal = launch.terminal_fd >= 0
        if self.terminal:
            # one descriptor each, because epoll knows a descriptor once
            self._terminal_fd = launch.terminal_fd
            os.set_blocking(launch.terminal_fd, False)  # of the open file, so it holds for the copies
            self.stdin = Input(loop, os.dup(launch.terminal_fd), terminal=True)
            self.outputs = {1: Output(loop, os.dup(launch.terminal_fd))}
        else:
            self.stdin = Input(loop, launch.stdin_fd, terminal=False)
            self.outputs = {1: Output(loop, launch.stdout_fd), 2: Output(loop, launch.stderr_fd)}
        self.become(state)

    def become(self, state: str) -> None:
        """Change state and tell."""
        self.state = state
        self.changed.notify()

    def signal(self, number: int) -> None:
        """Raises FAILED_PRECONDITION for a process that has ended; its pid is never reused before that is known."""
        if self.exit is not None or not self.pid:
            raise precondition(f"{self.name} has ended")
        if number == SIGKILL:
            self.killed_by_us = True
        os.kill(self.pid, number)

    def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size; the kernel sends SIGWINCH. Raises FAILED_PRECONDITION without a terminal."""
        if not self.terminal:
            raise precondition(f"{self.name} has no terminal")
        if self._terminal_fd >= 0:
            set_window_size(self._terminal_fd, rows, columns)

    def release(self) -> None:
        """Close every descriptor; unread output is lost."""
        if self.stdin is not None:
            self.stdin.close()
        for output in self.outputs.values():
            output.close()
        if self._terminal_fd >= 0:
            os.close(self._terminal_fd)
            self._terminal_fd = -1


def set_window_size(fd: int, rows: int, columns: int) -> None:
    """TIOCSWINSZ; sizes beyond 16 bits are cut to the largest."""
    from fcntl import ioctl
    from struct import pack

    ioctl(fd, _TIOCSWINSZ, pack("HHHH", min(rows, 0xFFFF), min(columns, 0xFFFF), 0, 0))
