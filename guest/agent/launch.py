# SPDX-License-Identifier: Apache-2.0
"""One run of `crun create` or `crun exec --detach`: pipes or a terminal, the pid file, and crun's own words if it fails.

The process that crun leaves behind has our pipes as its standard streams; crun has them too while it runs, so its messages
go to a log file. A terminal is made by crun inside the container, and its master comes back through a socket (the "console
socket" of the OCI runtimes: one message with the descriptor in SCM_RIGHTS).
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, socket
from errno import EACCES, ENOENT
from fcntl import F_SETPIPE_SZ, fcntl
from time import monotonic

from kata_wire.envelope import DEADLINE_EXCEEDED

from . import files
from .children import Child
from .errors import RpcError, internal
from .streams import PIPE_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from .agent import Agent
    from .loop import Wait

_LOG_CHARS_MAX = 1000
_SIGKILL = 9
_FD_BYTES = 4


class Launched:
    """What came of it. Our ends of the pipes are -1 when there is a terminal, and `terminal_fd` is -1 when there is none."""

    __slots__ = ("child", "stderr_fd", "stdin_fd", "stdout_fd", "terminal_fd")

    def __init__(self, child: Child, pipes: _Pipes | None, terminal_fd: int) -> None:
        self.child = child
        self.stdin_fd, self.stdout_fd, self.stderr_fd = pipes.ours if pipes is not None else (-1, -1, -1)
        self.terminal_fd = terminal_fd


class _Pipes:
    """Standard input, output and error of a process. `theirs` and `ours` are indexed by descriptor number."""

    def __init__(self, uid: int, gid: int) -> None:
        self.theirs: list[int] = []
        self.ours: list[int] = []
        try:
            for number in range(3):
                read_end, write_end = os.pipe2(os.O_CLOEXEC)
                mine, other = (write_end, read_end) if number == 0 else (read_end, write_end)
                self.ours.append(mine)
                self.theirs.append(other)
                os.set_blocking(mine, False)
                # whoever the process runs as may open /dev/stdout again, as runc sees to as well
                os.fchown(other, uid, gid)
                for size in PIPE_BYTES:
                    try:
                        fcntl(mine, F_SETPIPE_SZ, size)
                    except OSError:
                        continue  # it works with a smaller one, only slower
                    break
        except OSError:
            self.close_theirs()
            self.close_ours()
            raise

    def close_theirs(self) -> None:
        while self.theirs:
            os.close(self.theirs.pop())

    def close_ours(self) -> None:
        while self.ours:
            os.close(self.ours.pop())


class _Console:
    """The listening socket for a terminal's master."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
        self._socket.bind(path)
        self._socket.listen(1)

    def receive(self) -> int:
        """The master. crun has sent it before it ended, so nothing here waits. Raises OSError."""
        fd, _ = self._socket._accept()  # type: ignore[attr-defined]
        peer = socket(fileno=fd)
        try:
            _, ancillary, _, _ = peer.recvmsg(4096, 128)
        finally:
            peer.close()
        received = [
            int.from_bytes(data[at : at + _FD_BYTES], "little", signed=True)
            for level, kind, data in ancillary
            if level == SOL_SOCKET and kind == SCM_RIGHTS
            for at in range(0, len(data) - _FD_BYTES + 1, _FD_BYTES)
        ]
        for surplus in received[1:]:
            os.close(surplus)
        if not received:
            raise OSError("no descriptor came with the message")
        os.set_inheritable(received[0], False)
        return received[0]

    def close(self) -> None:
        self._socket.close()
        files.remove(self.path)


def crun_argv(agent: Agent, log: str, *arguments: str) -> list[str]:
    """A command line of crun with our root and log."""
    settings = agent.settings
    return [*settings.crun, "--root", settings.crun_root, "--cgroup-manager=cgroupfs", f"--log={log}", *arguments]


def run_crun(agent: Agent, *arguments: str) -> Generator[Wait, bool, None]:
    """Run crun to its end, without streams. Raises INTERNAL with what it logged."""
    log = f"{agent.settings.state_dir}/{agent.next_serial()}.log"
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        child = agent.children.spawn(crun_argv(agent, log, *arguments), {0: null, 1: null, 2: null})
    finally:
        os.close(null)
    try:
        yield from _finish(child, arguments[0], log, agent.settings.crun_timeout_s)
    finally:
        files.remove(log)


def launch(
    agent: Agent, verb: str, options: Sequence[str], container_id: str, *, terminal: bool, owner: tuple[int, int]
) -> Generator[Wait, bool, Launched]:
    """Run `crun VERB OPTIONS... ID` and adopt the process it leaves. `owner`: uid and gid for the pipes.

    Raises INTERNAL with crun's words, DEADLINE_EXCEEDED, OSError.
    """
    base = f"{agent.settings.state_dir}/{agent.next_serial()}"
    pid_file, log = f"{base}.pid", f"{base}.log"
    console = _Console(f"{base}.sock") if terminal else None
    pipes: _Pipes | None = None
    agent.children.expect()
    try:
        extra = ["--pid-file", pid_file]
        if console is not None:
            extra += ["--console-socket", console.path]
        else:
            pipes = _Pipes(*owner)
        child = _spawn(agent, crun_argv(agent, log, verb, *extra, *options, container_id), pipes)
        yield from _finish(child, verb, log, agent.settings.crun_timeout_s)
        terminal_fd = console.receive() if console is not None else -1
        process = agent.children.adopt(int(files.read(pid_file)))
        launched, pipes = Launched(process, pipes, terminal_fd), None
        return launched
    finally:
        agent.children.expected()
        if pipes is not None:
            pipes.close_theirs()
            pipes.close_ours()
        if console is not None:
            console.close()
        files.remove(pid_file)
        files.remove(log)


def _spawn(agent: Agent, argv: list[str], pipes: _Pipes | None) -> Child:
    if pipes is not None:
        child = agent.children.spawn(argv, dict(enumerate(pipes.theirs)))
        pipes.close_theirs()
        return child
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        return agent.children.spawn(argv, {0: null, 1: null, 2: null})
    finally:
        os.close(null)


def _finish(child: Child, verb: str, log: str, timeout_s: float) -> Generator[Wait, bool, None]:
    """Wait for crun; its failure as an error with its own words."""
    deadline = monotonic() + timeout_s
    while child.exit is None:
        left_s = deadline - monotonic()
        if left_s <= 0:
            os.kill(child.pid, _SIGKILL)
            raise RpcError(DEADLINE_EXCEEDED, f"`crun {verb}` took longer than `{timeout_s:.0f}` s")
        yield child.changed.wait(left_s)
    if child.exit.status:
        words = _in_lower_case(" ".join(files.read_or(log, "").split())[-_LOG_CHARS_MAX:])
        raise internal(f"crun {verb}: {words or f'ended with status `{child.exit.status}`'}")


def _in_lower_case(words: str) -> str:
    """With the errno's text at the end as Go writes it: Docker's client looks for "no such file or directory" and
    "permission denied" in these letters (docker/cli, cli/command/container/run.go)."""
    head, colon, last = words.rpartition(": ")
    known = (os.strerror(ENOENT), os.strerror(EACCES))
    return f"{head}{colon}{last.lower()}" if last in known else words
