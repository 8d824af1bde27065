# SPDX-License-Identifier: Apache-2.0
"""Starting processes, and knowing how each one ended.

The agent is the guest's subreaper (the init says so), so it inherits every process whose parent is gone. Above all these
are the containers' own processes, which `crun` starts and leaves behind. `adopt` claims such a process by the pid that crun
wrote into its pid file. It may have ended before that, so while a crun is running (`expecting`) the statuses of unknown
processes are kept. A pid cannot come round again in that time.
"""

from __future__ import annotations

import os
from _signal import set_wakeup_fd, signal  # type: ignore[import-not-found]
from time import CLOCK_BOOTTIME, clock_gettime_ns

from .loop import READABLE, Loop, Notice
from .report import say_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from .loop import Wait

SIGKILL = 9
SIGPIPE = 13
SIGCHLD = 17
SIGXFSZ = 25
_IGNORED_BY_PYTHON = (SIGPIPE, SIGXFSZ)  # and so, without care, by every process it starts
_OOM_SPARED, _OOM_AS_OTHERS = b"-1000", b"0"  # proc(5), oom_score_adj

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "LC_ALL": "C.UTF-8"}


class Exit:
    """How a process ended. Exactly one of `code` and `signal` tells: `signal` is 0 when it exited by itself."""

    __slots__ = ("at_ns", "code", "signal")

    def __init__(self, code: int, signal: int, at_ns: int) -> None:
        self.code = code
        self.signal = signal
        self.at_ns = at_ns  # CLOCK_BOOTTIME

    @property
    def status(self) -> int:
        """The shell's convention: the code, or 128 + the signal."""
        return 128 + self.signal if self.signal else self.code


class Child:
    """One process of ours. `exit` is None while it runs."""

    __slots__ = ("changed", "exit", "on_exit", "pid")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exit: Exit | None = None
        self.on_exit: Callable[[], None] | None = None  # called as soon as `exit` is known, before any task wakes
        self.changed = Notice()

    def wait(self) -> Generator[Wait, bool, Exit]:
        """For a task: how it ended."""
        while self.exit is None:
            yield self.changed.wait()
        return self.exit


class Children:
    """All of them."""

    def __init__(self, loop: Loop) -> None:
        self._live: dict[int, Child] = {}
        self._expecting = 0
        self._oom_fd = -1
        self._strays: dict[int, Exit] = {}
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        loop.watch(self._wake_read, READABLE, self._on_signal)
        signal(SIGCHLD, lambda number, frame: None)
        set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)

    def spare(self, procfs: str) -> None:
        """Keep the guest's OOM killer from the agent, whose end is the machine's, not from what it starts. OSError."""
        self._oom_fd = os.open(f"{procfs}/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(self._oom_fd, _OOM_SPARED)

    def spawn(
        self, argv: Sequence[str], files: Mapping[int, int] | None = None, env: Mapping[str, str] | None = None
    ) -> Child:
        """Start `argv` (an absolute path first). `files` maps the child's descriptor numbers to ours. Raises OSError."""
        environment = dict(ENVIRONMENT if env is None else env)
        actions = [(os.POSIX_SPAWN_DUP2, ours, theirs) for theirs, ours in (files or {}).items()]
        if self._oom_fd >= 0:  # a child has what its parent has, and a container would keep it
            os.write(self._oom_fd, _OOM_AS_OTHERS)
        try:
            pid = os.posix_spawn(argv[0], list(argv), environment, file_actions=actions, setsigdef=_IGNORED_BY_PYTHON)
        finally:
            if self._oom_fd >= 0:
                os.write(self._oom_fd, _OOM_SPARED)
        child = self._live[pid] = Child(pid)
        return child

    def expect(self) -> None:
        """A program is about to leave a process behind: keep statuses of unknown processes until `expected`."""
        self._expecting += 1

    def expected(self) -> None:
        """That program is done, and its process was adopted or never came to be."""
        self._expecting -= 1
        if not self._expecting:
            self._strays.clear()

    def adopt(self, pid: int) -> Child:
        """Claim a process that a program of ours left behind. It may have ended already."""
        child = Child(pid)
        child.exit = self._strays.pop(pid, None)
        if child.exit is None:
            self._live[pid] = child
        return child

    def reap(self) -> None:
        """Take every status there is."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            signalled = os.WIFSIGNALED(status)
            end = Exit(
                0 if signalled else os.WEXITSTATUS(status),
                os.WTERMSIG(status) if signalled else 0,
                clock_gettime_ns(CLOCK_BOOTTIME),
            )
            child = self._live.pop(pid, None)
            if child is not None:
                child.exit = end
                if child.on_exit is not None:
                    child.on_exit()
                child.changed.notify()
            elif self._expecting:
                self._strays[pid] = end

    def _on_signal(self, events: int) -> None:
        try:
            while os.read(self._wake_read, 512):
                pass
        except BlockingIOError:
            pass
        try:
            self.reap()
        except Exception as error:  # this descriptor must stay watched whatever happens
            say_error("reaping", error)
