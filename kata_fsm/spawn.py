# SPDX-License-Identifier: Apache-2.0
"""How our long-lived processes are started: own session, nothing inherited, their role in their command line.

Used by verbs (a supervisor for a new sandbox, or for one whose supervisor is gone) and by shims (the latter only).
Imports C modules and `os` only.
"""

import os
import sys

from kata_fsm import cjson
from kata_fsm.errors import RemoteError, SupervisorGone
from kata_fsm.limits import SHIM_STARTS_S, SUPERVISOR_START_S
from kata_fsm.world import WORLD, Paths, repository_root, run_dir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SAFE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
READY = b"ok\n"
_FD_MAX = 1 << 16
# Resolved at once: it may be relative, and children change directory before they need it.
_OWN = os.path.realpath(sys.argv[0]) if sys.argv and sys.argv[0] else ""
_REPLY_BYTES_MAX = 65536
_LOOK_EVERY_S = 0.03


def launcher() -> str:
    """The installed command's absolute path: what this process was started by, or the one beside the interpreter."""
    if os.path.basename(_OWN) == "kata-fsm":
        return _OWN
    return os.environ.get("KATA_FSM_COMMAND") or f"{repository_root()}/.venv/bin/kata-fsm"


def command(role: str, *arguments: str) -> list[str]:
    """The argv of `kata-fsm ROLE ...`, started through this very interpreter.

    Our own launcher puts our directories on the path itself; the script that pip writes for a wheel needs `site` for that,
    and the environment's own name of the interpreter.
    """
    if sys.flags.no_site:
        return [os.path.realpath(sys.executable), "-IS", launcher(), role, *arguments]
    return [os.path.abspath(sys.executable), "-I", launcher(), role, *arguments]


def clean_environment() -> dict[str, str]:
    """What a long-lived process gets: our own settings and a PATH, never the caller's secrets or sync pipes."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("KATA_FSM_")}
    return {"PATH": os.environ.get("PATH") or SAFE_PATH, "LANG": "C.UTF-8", **kept}


def stream_of(sandbox_id: str, uid: str) -> str:
    """The journal stream of one sandbox life."""
    return f"{sandbox_id}@{uid}"


def uid_of(stream: str) -> str:
    """The uid in a stream's name."""
    return stream.rpartition("@")[2]


def _open_log(path: str) -> int:
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError:
        # A full or read-only disk must not keep a supervisor from starting: it can still tear the sandbox down.
        return os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)


def close_from(first: int) -> None:
    """Close every descriptor from `first` on."""
    os.closerange(first, _FD_MAX)


def set_namespace(fd: int) -> None:
    """setns(2). `os.setns` exists from Python 3.12 on. Raises `OSError`."""
    setns = getattr(os, "setns", None)
    if setns is not None:
        setns(fd)
    elif not _set_namespace_by_address(fd):
        import ctypes

        if ctypes.CDLL(None, use_errno=True).setns(fd, 0) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


def _set_namespace_by_address(fd: int) -> bool:
    """The same by what lies below `ctypes`, whose import is a tenth of a short exec. False when it could not be done, for
    whatever reason: `ctypes` can tell."""
    try:
        from _ctypes import call_function, dlopen, dlsym
    except ImportError:
        return False
    program = dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type]  # None is this program with all its libraries
    return bool(call_function(dlsym(program, "setns"), (fd, 0)) == 0)


def _become(argv: list[str], log_path: str, ready: int | None, before_exec: "Callable[[], None] | None") -> None:
    """In the forked child: leave everything of the caller behind, then exec. Does not return."""
    os.setsid()
    if os.fork():
        os._exit(0)  # the supervisor is nobody's child: whoever asked for it may end or wait for its own children
    null = os.open("/dev/null", os.O_RDONLY)
    log = _open_log(log_path)
    if ready is not None:
        # Out of the way of 0 to 2 first, whatever numbers the caller had left open.
        ready = _moved_up(ready)
    null, log = _moved_up(null), _moved_up(log)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if before_exec is not None:
        before_exec()
    if ready is not None:
        os.dup2(ready, 3, inheritable=True)
        close_from(4)
        argv = [*argv, "--ready-fd", "3"]
    else:
        close_from(3)
    os.chdir("/")
    os.umask(0o077)
    os.execve(argv[0], argv, clean_environment())


def _moved_up(fd: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)


def supervisor_arguments(sandbox_id: str, stream: str, *, resume: bool) -> list[str]:
    """The argv of a supervisor, role and sandbox id first, so that `ps` tells the story."""
    return command("supervisor", sandbox_id, "--resume" if resume else "--stream", stream)


def fork_supervisor(
    sandbox_id: str,
    stream: str,
    *,
    resume: bool,
    ready: int | None = None,
    before_exec: "Callable[[], None] | None" = None,
) -> None:
    """Start a supervisor and return as soon as it is on its own. `ready` is the write end that it reports on."""
    paths = Paths(uid_of(stream))
    argv = supervisor_arguments(sandbox_id, stream, resume=resume)
    pid = os.fork()
    if pid == 0:
        try:
            _become(argv, paths.supervisor_log, ready, before_exec)
        except BaseException as error:
            report = {"error": {"family": "world", "message": f"a supervisor cannot be started: {error}", "exit": 1}}
            if ready is not None:
                os.write(ready, cjson.dumps(report).encode("ascii"))
        finally:
            os._exit(127)
    os.waitpid(pid, 0)


def start_supervisor(sandbox_id: str, stream: str, *, resume: bool, wait_s: float = SUPERVISOR_START_S) -> None:
    """Start a supervisor and wait until it says that it is ready.

    Raises `RemoteError` with what it reported, or `SupervisorGone` when it ended or said nothing within `wait_s`.
    """
    prepare_run_dir(uid_of(stream))
    if resume:
        _leave_to_shims(stream)
    reader, writer = os.pipe()
    try:
        try:
            fork_supervisor(sandbox_id, stream, resume=resume, ready=writer)
        finally:
            os.close(writer)
        _await_ready(reader, stream, wait_s)
    finally:
        os.close(reader)


def _leave_to_shims(stream: str) -> None:
    """Let the sandbox's shims start a supervisor, if there are any: they see as soon as we do that there is none.

    What we start and leave behind becomes a child of whoever called us, if that adopts orphans. conmon does, and waits for
    all its children (seen with 2.1): that of a `podman exec` would stay as long as the supervisor.
    """
    import time

    from kata_fsm import control

    lock, until = Paths(uid_of(stream)).supervisor_lock, WORLD.mono_ns() + int(SHIM_STARTS_S * 1e9)
    shims = [int(name) for name in os.listdir("/proc") if name.isdigit() and _is_shim(int(name), stream)]
    while control.lock_is_free(lock) and WORLD.mono_ns() < until and any(_is_shim(pid, stream) for pid in shims):
        time.sleep(_LOOK_EVERY_S)


def _is_shim(pid: int, stream: str) -> bool:
    from kata_fsm.argv import argv_of

    words = argv_of(pid)
    return "shim" in words and stream in words


def prepare_run_dir(uid: str) -> None:
    """The private directories that a sandbox's sockets and locks live in."""
    for path in (run_dir(), f"{run_dir()}/sandboxes", Paths(uid).base):
        os.makedirs(path, mode=0o700, exist_ok=True)


def _await_ready(reader: int, stream: str, wait_s: float) -> None:
    import select

    deadline = WORLD.mono_ns() + int(wait_s * 1e9)
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    reply = b""
    log = Paths(uid_of(stream)).supervisor_log
    while not reply.endswith(b"\n"):
        left_ms = (deadline - WORLD.mono_ns()) // 1_000_000
        if left_ms <= 0 or not poller.poll(left_ms):
            raise SupervisorGone(
                f"the supervisor of `{stream}` was not ready within {wait_s:g} s", hint=f"its log is `{log}`"
            )
        data = os.read(reader, _REPLY_BYTES_MAX)
        if not data:
            break
        reply += data
    if reply == READY:
        return
    raise _reported(reply, stream, log)


def _reported(reply: bytes, stream: str, log: str) -> Exception:
    """The error that a supervisor wrote instead of being ready: JSON, with or without a frame's length before it."""
    start = reply.find(b"{")
    if start >= 0:
        try:
            error = cjson.loads_object(reply[start:]).get("error")
        except ValueError:
            error = None
        if isinstance(error, dict):
            return RemoteError(error)
    said = _last_words(log)
    return SupervisorGone(f"the supervisor of `{stream}` ended before it was ready" + (f": {said}" if said else ""))


def _last_words(path: str) -> str:
    """The last line of a log; empty when there is none. A supervisor that was killed, or met a bug of ours, reports
    nothing itself."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _REPLY_BYTES_MAX))
            lines = file.read().split(b"\n")
    except OSError:
        return ""
    return next((line.decode("utf-8", "replace").strip() for line in reversed(lines) if line.strip()), "")


def forget(uid: str) -> None:
    """Take away what was made for a supervisor that never came to be, or ended before it recorded anything: nobody else
    will. With it goes what was kept for the guest, which may hold secrets."""
    paths = Paths(uid)
    kept = [f"{paths.specs}/{name}" for name in os.listdir(paths.specs)] if os.path.isdir(paths.specs) else []
    for path in (paths.supervisor_lock, paths.supervisor_sock, paths.supervisor_log, *kept):
        _quietly(os.unlink, path)
    for path in (paths.specs, paths.base, paths.logs, os.path.dirname(paths.base), os.path.dirname(paths.logs)):
        _quietly(os.rmdir, path)


def _quietly(remove: "Callable[[str], None]", path: str) -> None:
    try:
        remove(path)
    except OSError:
        pass  # it is not there, or it holds what is not ours to take
