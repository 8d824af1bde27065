# SPDX-License-Identifier: Apache-2.0
"""Starting a shim: our own child, so that our caller inherits it when we leave."""

from __future__ import annotations

import fcntl
import os

from kata_fsm import spawn
from kata_fsm.cli import cgroups
from kata_fsm.errors import WorldError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Any, NoReturn
else:
    import _signal  # what `signal` wraps in enums, whose import takes milliseconds of every exec

_REPORT_BYTES = 4096
_OUT_OF_THE_WAY = 10


class Plan:
    """What a shim is to be. `stdio`: the descriptors that become its 0, 1 and 2. `own_terminal`: they are a terminal made
    for it, which becomes its controlling one. `tty`: the process has a terminal, so there is no stderr of its own. `early`:
    it is started before its process is declared, and whoever starts it moves it into its cgroups (see `cgroups.join`).
    `scope`: (slice, unit) of systemd's that it belongs in, which is begun with it if need be.
    `places`, of an init process: what is mounted where in the container, for the shim's own sight of it (see `view`)."""

    def __init__(
        self,
        *,
        sandbox: str,
        stream: str,
        container: str,
        process: str,
        netns: str | None,
        cgroups: list[str],
        stdio: tuple[int, int, int] = (0, 1, 2),
        tty: bool = False,
        own_terminal: bool = False,
        preserve_fds: int = 0,
        early: bool = False,
        places: list[tuple[str, str]] | None = None,
        scope: tuple[str, str] | None = None,
    ) -> None:
        self.sandbox = sandbox
        self.stream = stream
        self.container = container
        self.process = process
        self.netns = netns
        self.cgroups = cgroups
        self.stdio = stdio
        self.tty = tty
        self.own_terminal = own_terminal
        self.preserve_fds = preserve_fds
        self.early = early
        self.places = places
        self.scope = scope


def plan_from(reply: dict[str, Any], *, sandbox: str, stream: str, **how: Any) -> Plan:
    """The plan in a supervisor's `{"need": "shim", ...}`."""
    places = [str(item["path"]) if isinstance(item, dict) else str(item) for item in reply.get("cgroups") or []]
    return Plan(
        sandbox=sandbox,
        stream=stream,
        container=str(reply["container"]),
        process=str(reply.get("process") or "init"),
        netns=reply.get("netns"),
        cgroups=places,
        scope=(str(scope[0]), str(scope[1])) if (scope := reply.get("scope")) else None,
        **how,
    )


class Starting:
    """A shim on its way. `pid` is its own from the beginning."""

    def __init__(self, plan: Plan) -> None:
        self._reader, writer = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            _child(plan, writer)
        os.close(writer)

    def confirm(self) -> list[str]:
        """Wait until it has become a shim; warnings. Raises `WorldError` when it could not."""
        report = b""
        while data := os.read(self._reader, _REPORT_BYTES):
            report += data
        os.close(self._reader)
        lines = report.decode("utf-8", "replace").splitlines()
        failed = [line.removeprefix("!") for line in lines if line.startswith("!")]
        if failed:
            raise WorldError(f"the shim cannot be started: {failed[0]}")
        return lines

    def abandon(self) -> None:
        """End it, whatever has become of it."""
        os.kill(self.pid, _signal.SIGKILL)
        os.waitpid(self.pid, 0)


def start(plan: Plan) -> tuple[int, list[str]]:
    """(pid of the shim, warnings). Raises `WorldError` when it could not be started."""
    starting = Starting(plan)
    try:
        return starting.pid, starting.confirm()
    except WorldError:
        os.waitpid(starting.pid, 0)
        raise


def _child(plan: Plan, report: int) -> NoReturn:
    try:
        # Out of the way of everything that is put in its place below.
        report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, max(3 + plan.preserve_fds, _OUT_OF_THE_WAY))
        _become(plan, report)
    except BaseException as error:
        os.write(report, f"!{error}\n".encode("utf-8", "replace"))
    finally:
        os._exit(127)


def _become(plan: Plan, report: int) -> None:
    # Signals wait until the shim can forward them; the mask outlives exec.
    _signal.pthread_sigmask(_signal.SIG_SETMASK, _signal.valid_signals())
    homes = cgroups.homes(plan.cgroups)
    if plan.scope is not None:
        from kata_fsm import systemd

        systemd.start_scope(plan.scope[1], plan.scope[0], os.getpid())
    for line in [] if plan.early else cgroups.join(plan.cgroups):
        os.write(report, (line + "\n").encode())
    os.setsid()
    _place(plan, report)
    home = -1
    if plan.netns:
        with open("/proc/self/ns/net", "rb") as before, open(plan.netns, "rb") as namespace:
            home = fcntl.fcntl(before, fcntl.F_DUPFD, report + 1)  # this one outlives exec
            spawn.set_namespace(namespace.fileno())
    if plan.own_terminal:
        import termios

        try:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        except OSError as error:
            raise WorldError(f"its terminal has been closed by whoever was given it: {error.strerror}") from error
    os.chdir("/")
    argv = spawn.command("shim", plan.sandbox, "--stream", plan.stream, "--container", plan.container)
    argv += ["--process", plan.process, *(["--tty"] if plan.tty else []), *(["--early"] if plan.early else [])]
    environment = spawn.clean_environment()
    if homes:
        environment["KATA_FSM_HOME_CGROUPS"] = ":".join(homes)
    if home >= 0:
        environment["KATA_FSM_HOME_NETNS"] = str(home)
    if plan.places is not None:
        environment["KATA_FSM_VIEW"] = _view(plan, report)
    os.execve(argv[0], argv, environment)


def _view(plan: Plan, report: int) -> str:
    """The container as the shim will see it, for its environment. Raises `WorldError`."""
    from kata_fsm.cli import view
    from kata_fsm.world import Paths

    tree = Paths(spawn.uid_of(plan.stream)).container_tree(plan.container)
    if not os.path.isdir(f"{tree}/rootfs"):
        return ""  # a container of which nothing is shared through the host
    try:
        pair = view.make(tree, plan.places or [])
    except OSError as error:
        raise WorldError(f"the container cannot be shown to it: `{error.filename}`: {error.strerror}") from error
    return ":".join(str(fcntl.fcntl(fd, fcntl.F_DUPFD, report + 1)) for fd in pair)


def _place(plan: Plan, report: int) -> None:
    """Put stdio at 0 to 2, keep what is to be preserved after it, and close all else but the report pipe."""
    first_free = 3 + plan.preserve_fds
    sources = [
        fd if fd == at else fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, report + 1) for at, fd in enumerate(plan.stdio)
    ]
    for at, fd in enumerate(sources):
        if fd != at:
            os.dup2(fd, at, inheritable=True)
    os.closerange(first_free, report)
    spawn.close_from(report + 1)
    for fd in range(3, first_free):
        try:
            os.set_inheritable(fd, True)
        except OSError:
            pass  # the caller promised more descriptors than it gave
