# SPDX-License-Identifier: Apache-2.0
"""The shim: the host pid that a caller knows one container process by.

`kata-fsm shim ID --stream STREAM --container KEY --process init` has the caller's stdio (or a terminal) as 0 to 2. It
gives the supervisor the ends of pipes of its own, moves bytes between those and the real descriptors (`relay`), forwards
every signal it can catch, and exits with the workload's exit code. The caller may hold it, signal it and wait for it as
if it were the workload itself.

It outlives its supervisor. When the connection ends without an exit code, it first empties the old pipes, so that its
count of delivered bytes is exact, then starts a supervisor where none is (`supervisor.lock` is free), connects again and
offers everything anew. stdin needs nothing: what the old supervisor had not consumed is still in the socket pair, of
which the shim keeps both ends; `stdin_taken`, the offset of its first unread byte, is what was sent less what is unread.

SIGSEGV, SIGBUS, SIGFPE and SIGILL are not caught: a handler for a real fault would spin. SIGKILL ends the shim alone; the
container lives on. Small on purpose (one per process of every container): C modules and `os` only.
"""

import fcntl
import os
import select
import sys

from kata_fsm import control, spawn
from kata_fsm.errors import KataFsmError, RemoteError, SupervisorGone, UsageError
from kata_fsm.limits import SHIM_ATTACH_S, SHIM_RECONNECT_S, SHIM_STARTS_S
from kata_fsm.relay import Input, Output
from kata_fsm.world import WORLD, Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal  # what `signal` wraps in enums, which cost half a megabyte

EXIT_UNKNOWN = 255
"""What the shim exits with when nobody can tell the workload's code: unknown is never success."""

TIOCGWINSZ = 0x5413
_RETRY_FIRST_S = 0.05
_RETRY_LAST_S = 1.0
_RESTART_EVERY_S = 5.0
_QUEUED_SIGNALS_MAX = 64
_UNCAUGHT = frozenset(
    (
        _signal.SIGKILL,
        _signal.SIGSTOP,
        _signal.SIGPIPE,
        _signal.SIGSEGV,
        _signal.SIGBUS,
        _signal.SIGFPE,
        _signal.SIGILL,
    )
)


def window_size(fds: tuple[int, ...] = (0, 1, 2)) -> list[int] | None:
    """[rows, columns] of the first of `fds` that is a terminal."""
    for fd in fds:
        try:
            raw = fcntl.ioctl(fd, TIOCGWINSZ, bytes(8))
        except OSError:
            continue
        return [int.from_bytes(raw[0:2], sys.byteorder), int.from_bytes(raw[2:4], sys.byteorder)]
    return None


class Options:
    """What the command line says."""

    def __init__(self, argv: list[str]) -> None:
        self.sandbox = self.stream = self.container = ""
        self.process = "init"
        self.tty = False
        self.early = False  # the process may not have been declared yet
        words = iter(argv)
        for word in words:
            if word in ("--tty", "--early"):
                setattr(self, word[2:], True)
            elif word in ("--stream", "--container", "--process"):
                setattr(self, word[2:], next(words, ""))
            elif not word.startswith("-") and not self.sandbox:
                self.sandbox = word
            else:
                raise UsageError(f"shim: unknown argument `{word}`")
        if not (self.sandbox and self.stream and self.container):
            raise UsageError("shim: expected `ID --stream STREAM --container KEY [--process ID] [--tty] [--early]`")


class View:
    """Where the shim stands: with `/` being the container's root file system, or at home with the host's.

    The verb that started us made that mount namespace (`cli/view.py`) and left three descriptors. Files in it are the
    guest's: in there nothing is imported, so that no code of the guest's runs on the host.
    """

    def __init__(self, text: str) -> None:
        self._inside, self._home, self._root = (int(word) for word in text.split(":")) if text else (-1, -1, -1)
        self._finders = sys.meta_path[:]
        if text:
            os.set_inheritable(self._inside, False)
            os.set_inheritable(self._home, False)
            os.set_inheritable(self._root, False)

    def enter(self) -> None:
        """Go in."""
        if self._inside >= 0:
            spawn.set_namespace(self._inside)
            sys.meta_path.clear()

    def leave(self) -> None:
        """Go home."""
        if self._home >= 0:
            spawn.set_namespace(self._home)
            os.fchdir(self._root)
            os.chroot(".")
            os.chdir("/")
            sys.meta_path[:] = self._finders


class Shim:
    """One process's stand-in. `run` returns the exit code."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.paths = Paths(spawn.uid_of(options.stream))
        names = ("stdout",) if options.tty else ("stdout", "stderr")
        self.outputs = [Output(name, fd) for name, fd in zip(names, (1, 2), strict=False)]
        self.input = Input(0)
        self.connection: control.Connection | None = None
        self.exit_code: int | None = None
        self.attached_once = False
        self.queued: list[dict[str, object]] = []
        self.retry_at_ns = 0
        self.retry_s = _RETRY_FIRST_S
        self.give_up_at_ns = WORLD.mono_ns() + int(SHIM_ATTACH_S * 1e9)
        self.restart_at_ns = WORLD.mono_ns() + int(SHIM_STARTS_S * 1e9)  # until then to those who had one
        self.wakeup = -1
        self.view = View(os.environ.pop("KATA_FSM_VIEW", ""))
        if home := os.environ.get("KATA_FSM_HOME_NETNS"):
            os.set_inheritable(int(home), False)

    # --- signals

    def catch_signals(self) -> None:
        """Have every catchable signal's number arrive on a pipe; then let in those that came before we could."""
        self.wakeup, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        _signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in range(1, _signal.NSIG):
            if number not in _UNCAUGHT:
                try:
                    _signal.signal(number, _ignore)
                except (OSError, ValueError):
                    pass  # 32 and 33 belong to the C library's threads
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())

    def take_signals(self) -> None:
        """Forward what arrived: a window change as the new size, a child's end not at all."""
        try:
            numbers = os.read(self.wakeup, 512)
        except BlockingIOError:
            return
        for number in numbers:
            if number == _signal.SIGCHLD:
                continue
            if number == _signal.SIGWINCH and self.options.tty:
                size = window_size()
                if size is not None:
                    self.tell({"op": "winsize", "rows": size[0], "cols": size[1]})
            else:
                self.tell({"op": "signal", "signal": number})

    def tell(self, message: dict[str, object]) -> None:
        """Send to the supervisor; a signal that none is there for is kept for the next one (the rest it hears anyway)."""
        if self.connection is not None:
            try:
                self.connection.send(message)
            except SupervisorGone:
                self.lost()
            else:
                return
        if message["op"] == "signal" and len(self.queued) < _QUEUED_SIGNALS_MAX:
            self.queued.append(message)

    # --- the supervisor

    def attach(self) -> None:
        """Connect and hand over fresh pipes, with the counts of what went through the old ones."""
        connection = control.Connection(self.paths.supervisor_sock, timeout_s=SHIM_ATTACH_S)
        writers = [output.open() for output in self.outputs]
        fds = [*writers, self.input.far_fd]
        hello: dict[str, object] = {
            "op": "attach",
            "container": self.options.container,
            "process": self.options.process,
            "pid": os.getpid(),
            "start_ticks": WORLD.start_ticks(os.getpid()),
            "delivered": {output.name: output.delivered for output in self.outputs},
            "stdin_sent": self.input.sent,
            "stdin_taken": self.input.taken,
            "stdin_eof": self.input.eof,
            "tty": self.options.tty,
            "early": self.options.early and not self.attached_once,
            "winsize": window_size() if self.options.tty else None,
            "streams": [*(output.name for output in self.outputs), "stdin"],
            "fds": len(fds),
        }
        try:
            connection.send(hello, fds)
        except SupervisorGone:
            connection.close()
            raise
        finally:
            for writer in writers:
                os.close(writer)
        self.connection = connection
        queued, self.queued = self.queued, []
        for message in queued:
            self.tell(message)

    def lost(self) -> None:
        """The connection ended: once the old pipes are empty, look for the next supervisor."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None
            self.retry_s = _RETRY_FIRST_S
            self.retry_at_ns = WORLD.mono_ns()
            self.give_up_at_ns = self.retry_at_ns + int(SHIM_RECONNECT_S * 1e9)

    def retry(self) -> None:
        """Try to attach; failing that, see to it that there is a supervisor, and when to try again."""
        now = WORLD.mono_ns()
        try:
            self.attach()
        except SupervisorGone as gone:
            if now > self.give_up_at_ns:
                raise
            if control.lock_is_free(self.paths.supervisor_lock) and now >= self.restart_at_ns:
                if not self.attached_once and not os.path.isdir(self.paths.base):
                    raise gone from None  # the sandbox was taken down before we came to be
                self.restart_at_ns = now + int(_RESTART_EVERY_S * 1e9)
                spawn.fork_supervisor(self.options.sandbox, self.options.stream, resume=True, before_exec=go_home)
            self.retry_at_ns = now + int(self.retry_s * 1e9)
            self.retry_s = min(self.retry_s * 2, _RETRY_LAST_S)

    def listen(self) -> None:
        """Take in what the supervisor sent."""
        connection = self.connection
        if connection is None:
            return
        try:
            alive = connection.fill()
        except OSError:
            alive = False
        message = connection.buffered()
        while message is not None:
            self.obey(message)
            message = connection.buffered()
        if not alive:
            self.lost()

    def obey(self, message: dict[str, object]) -> None:
        """One message: an exit code, a refusal, or a mere acknowledgement."""
        code = message.get("exit")
        if isinstance(code, int):
            self.exit_code = code & 0xFF
        elif "error" in message:
            control.raise_error(message)
        else:
            self.attached_once = True

    # --- the loop

    def drained(self) -> bool:
        """Whether everything that was written for the caller has reached it."""
        return all(output.empty for output in self.outputs)

    def interests(self) -> dict[int, int]:
        """Descriptor -> poll mask, of everything that we wait for now."""
        wanted = {self.wakeup: select.POLLIN}
        if self.connection is not None:
            wanted[self.connection.fileno()] = select.POLLIN
        streams: list[Output | Input] = [output for output in self.outputs if not output.ended]
        if self.exit_code is None and not self.input.eof:
            streams.append(self.input)
        for stream in streams:
            fd, mask = stream.interest()
            wanted[fd] = wanted.get(fd, 0) | mask
        return wanted

    def may_retry(self) -> bool:
        """Whether the old pipes are empty, so that the counts are exact, and it is time."""
        return all(output.ended for output in self.outputs) and WORLD.mono_ns() >= self.retry_at_ns

    def wait(self) -> set[int]:
        """The descriptors that have something for us."""
        poller = select.poll()
        for fd, mask in self.interests().items():
            poller.register(fd, mask)
        timeout_ms = None
        if self.connection is None and all(output.ended for output in self.outputs):
            timeout_ms = max(0, (self.retry_at_ns - WORLD.mono_ns() + 999_999) // 1_000_000)
        return {fd for fd, _ in poller.poll(timeout_ms)}

    def turn(self) -> None:
        """Wait for something, and do all of it."""
        ready = self.wait()
        if self.wakeup in ready:
            self.take_signals()
        for output in self.outputs:
            if not output.ended and output.interest()[0] in ready:
                output.pump()
        if self.exit_code is None and not self.input.eof and self.input.interest()[0] in ready:
            self.input.pump()
            if self.input.eof:
                self.tell({"op": "stdin_eof"})
        if self.connection is not None and self.connection.fileno() in ready:
            self.listen()
        elif self.connection is None and self.exit_code is None and self.may_retry():
            self.view.leave()
            self.retry()
            self.view.enter()

    def run(self) -> int:
        """Attach, relay until the workload has ended and its output is delivered, and answer its exit code."""
        self.catch_signals()
        while self.exit_code is None or not self.drained():
            self.turn()
        return self.exit_code


def _ignore(number: int, frame: object) -> None:
    """A handler that does nothing: the wake-up pipe carries the number."""


def go_home() -> None:
    """Leave the container's cgroups and network namespace, in the child that becomes a supervisor.

    A supervisor in a member's cgroup would be throttled with it, and would keep it from being removed; its
    own place it finds by itself. The verb that started the shim left in the environment which cgroups it came from, and the
    number of a descriptor of its network namespace (that of process 1 may be hidden from us).
    """
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    for directory in os.environ.pop("KATA_FSM_HOME_CGROUPS", "").split(":"):
        if directory:
            try:
                with open(directory + "/cgroup.procs", "w") as file:
                    file.write("0")
            except OSError as error:
                os.write(2, f"shim: cannot go back to cgroup `{directory}`: {error.strerror}\n".encode())
    home = os.environ.pop("KATA_FSM_HOME_NETNS", "")
    if home:
        try:
            spawn.set_namespace(int(home))
        except OSError as error:
            os.write(2, f"shim: cannot go back to the host's network namespace: {error.strerror}\n".encode())


def main(argv: list[str]) -> int:
    """The `shim` role. What the supervisor refuses, it tells the verb as well; the rest is said here, once."""
    shim: Shim | None = None
    try:
        shim = Shim(Options(argv))
        return shim.run()
    except RemoteError:
        return EXIT_UNKNOWN
    except KataFsmError as error:
        # Later on, stderr is the workload's own and would be spoilt by words of ours.
        if shim is None or not shim.attached_once:
            os.write(2, f"kata-fsm shim: {error}\n".encode(errors="replace"))
        return EXIT_UNKNOWN
