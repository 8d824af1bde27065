# SPDX-License-Identifier: Apache-2.0
"""A supervisor's life.

It takes the sandbox's lock (there is one supervisor per sandbox, and whoever finds the lock free may start another),
opens the journal, folds its stream, recovers what was left behind, and says that it is ready. It ends when its sandbox
has been deleted and the last trace is removed, or when the sandbox has ended and nobody asks any more: whoever deletes it
later starts another. Being killed at any point is legal: the next one goes on from the journal.
"""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import signal
import socket
import sys
import time
import traceback
from typing import TYPE_CHECKING

import trio

from journal import Journal, JournalError
from kata_fsm import control, limits, system_log
from kata_fsm.effects import process
from kata_fsm.errors import Bug, KataFsmError, WorldError
from kata_fsm.machines import outstanding, sandbox
from kata_fsm.world import WORLD, Paths, journal_dir

if TYPE_CHECKING:
    from kata_fsm.effects.protocols import Processes
    from kata_fsm.recovery import PostMortem
    from kata_fsm.runtime import Runtime
    from kata_fsm.supervisor.server import Server
    from kata_fsm.supervisor.watch import Watcher

READY = b"ok\n"


class Options:
    """The arguments of `kata-fsm supervisor`."""

    def __init__(self, argv: list[str]) -> None:
        import argparse

        parser = argparse.ArgumentParser(prog="kata-fsm supervisor", description="one sandbox's supervisor (internal)")
        parser.add_argument("sandbox")
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--stream")
        which.add_argument("--resume", metavar="STREAM")
        parser.add_argument("--ready-fd", type=int, default=-1)
        found = parser.parse_args(argv)
        self.sandbox: str = found.sandbox
        self.stream: str = found.stream or found.resume
        self.is_new = bool(found.stream)
        self.ready_fd: int = found.ready_fd
        self.uid = self.stream.rpartition("@")[2]


def _report(fd: int, message: bytes) -> None:
    if fd < 0:
        return
    try:
        os.write(fd, message)
        os.close(fd)
    except OSError:
        pass  # whoever started us is gone; the sandbox needs us all the same


def _lock(paths: Paths) -> int | None:
    """The descriptor that holds the sandbox's lock until we end; None when another supervisor has it and listens.

    Readers take the lock for an instant to see whether it is free, and a supervisor that is leaving holds it without
    listening: both are waited for. Raises `WorldError` when the lock is held for long by one that does not listen.
    """
    deadline = WORLD.mono_ns() + int(limits.SUPERVISOR_START_S * 1e9)
    while True:
        fd = _open_lock(paths.supervisor_lock)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            if _listens(paths.supervisor_sock):
                return None
        else:
            if _is_at(fd, paths.supervisor_lock):
                _name_journal(fd)
                return fd
            os.close(fd)  # its last holder removed it together with the sandbox
            continue
        if WORLD.mono_ns() > deadline:
            raise WorldError("another supervisor holds the sandbox's lock and does not answer")
        time.sleep(limits.LOCK_POLL_S)


def _open_lock(path: str) -> int:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _name_journal(fd: int) -> None:
    """Say in the lock file whose sandbox it is, for those who find it in a run directory that several journals share."""
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, os.fsencode(os.path.abspath(journal_dir())), 0)
    except OSError:
        pass  # a full disk: a sandbox that can be taken down all the same


def _is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _require_space(paths: Paths) -> None:
    """Refuse a new sandbox on a full disk. Asked before the journal is opened: LMDB maps its files, and writing to a map
    that the disk cannot hold is the end of a process. One that exists already is supervised whatever the disk says."""
    from kata_fsm.effects.hypervisor.host import require_space

    for directory in (paths.base, journal_dir()):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        require_space(directory)


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _listen(path: str) -> trio.socket.SocketType:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener._sock.bind(path)  # type: ignore[attr-defined]  # trio's bind would resolve names in a thread
    finally:
        os.umask(before)
    listener.listen(64)
    return listener


def _clean(paths: Paths) -> None:
    """Remove the last traces of a deleted sandbox: its sockets, kept specs and logs.

    Never through a mount: what is still bound in there is a container's root file system, which is somebody's data.
    """
    from kata_fsm.effects import mounts

    for directory in (paths.logs, paths.base):
        if mounts.below(directory):
            print(f"supervisor: `{directory}` is left: something is still mounted in it", file=sys.stderr)
            continue
        shutil.rmtree(directory, ignore_errors=True)
    for directory in (os.path.dirname(paths.base), os.path.dirname(paths.logs)):
        try:
            os.rmdir(directory)
        except OSError:
            pass  # other sandboxes


class Supervisor:
    """Everything of one supervisor process, put together."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.paths = Paths(options.uid)

    async def run(self, journal: Journal) -> None:
        """Serve until there is nothing left to serve."""
        from kata_fsm.effects.agent.link import Link
        from kata_fsm.runtime import Runtime
        from kata_fsm.supervisor.server import Server
        from kata_fsm.supervisor.watch import Watcher

        async with trio.open_nursery() as nursery:
            link = Link(self.paths, WORLD, nursery)
            runtime = Runtime(journal, self.options.stream, WORLD, {}, nursery)
            if not runtime.rev and not self.options.is_new:
                # Its journal is gone, or another one is in its place. To know nothing of it is no licence to clean up.
                raise WorldError(
                    f"the journal `{journal.path}` knows nothing of `{self.options.stream}`",
                    hint="`kata-fsm recover` finds what is left of it",
                )
            watcher = Watcher(runtime, link, nursery)
            runtime.on_step = watcher.reconcile
            cleaned = trio.Event()
            server = Server(runtime, link, watcher, self.paths, cleaned)
            listener = _listen(self.paths.supervisor_sock)
            nursery.start_soon(server.serve, listener)
            await take_over(runtime, server, watcher)
            _report(self.options.ready_fd, READY)
            nursery.start_soon(_warm_up)
            await until_over(runtime, server)
            await until_shims_came(runtime, server)
            self._stop_listening()
            await until_answered(runtime, server)
            if runtime.pod.sandbox.state in (sandbox.DELETED, sandbox.ABSENT):
                await trio.to_thread.run_sync(_clean, self.paths)
            cleaned.set()
            await drain(server)
            if watcher.wiring is not None:
                await watcher.wiring.monitor.aclose()
            nursery.cancel_scope.cancel()

    def _stop_listening(self) -> None:
        """From here on whoever comes starts another supervisor."""
        try:
            os.unlink(self.paths.supervisor_sock)
        except FileNotFoundError:
            pass


async def take_over(
    runtime: Runtime,
    server: Server,
    watcher: Watcher,
    processes: Processes = process,
    post_mortem: PostMortem | None = None,
) -> None:
    """Go on from where the stream stands, if it has begun; from then on verbs are answered."""
    from kata_fsm.recovery import failed_too_often, recover

    if runtime.rev:
        server.wire(runtime.pod.sandbox.facts.get("config") or {})
        if watcher.wiring is not None:
            await watcher.wiring.settle_in()
        end = failed_too_often(runtime)
        watcher.blind = end is not None
        await recover(runtime, processes, end=end, post_mortem=post_mortem)
        watcher.reconcile(runtime.pod)
    server.taken_over.set()


async def until_over(runtime: Runtime, server: Server) -> None:
    """Return when this process is of no more use."""
    with trio.move_on_after(limits.SUPERVISOR_IDLE_S):
        if runtime.pod.sandbox.state == sandbox.ABSENT:
            await server.served.wait()
    while runtime.pod.sandbox.state == sandbox.ABSENT:
        if not server.requests:
            return  # nobody came, or what was asked for was refused
        await trio.sleep(limits.RETRY_S)
    while True:
        await runtime.until(lambda pod: pod.sandbox.state in sandbox.ENDED and not outstanding(pod))
        with trio.move_on_after(limits.SUPERVISOR_LINGER_S):
            await runtime.until(lambda pod: pod.sandbox.state == sandbox.DELETED)
        if runtime.pod.sandbox.state == sandbox.DELETED:
            return
        if not server.requests and not server.shims:
            return


async def until_shims_came(runtime: Runtime, server: Server, processes: Processes = process) -> None:
    """A shim that lost our predecessor comes to be told its exit code within a second; one that is stopped is not
    waited for longer than that."""
    from kata_fsm.supervisor.standing import shims_of

    def absent() -> bool:
        named = {shim for subject in runtime.pod.containers for shim in shims_of(runtime.pod, subject)}
        return sum(processes.alive(shim) for shim in named) > server.shims

    with trio.move_on_after(limits.SHIM_COMES_S):
        while absent():
            await trio.sleep(limits.LOCK_POLL_S)


async def until_answered(runtime: Runtime, server: Server) -> None:
    """Who came before it stopped listening is answered, also by a deletion."""
    with trio.move_on_after(limits.PROCESS_KILL_WAIT_S):
        while server.undecided and runtime.pod.sandbox.state != sandbox.DELETED:
            await trio.sleep(0.005)
    with trio.move_on_after(limits.VERB_REPLY_S):
        while server.requests and runtime.pod.sandbox.state != sandbox.DELETED:
            await trio.sleep(0.005)


async def _warm_up() -> None:
    """Import what is needed once the guest answers, while it boots: message classes and checks cost tens of milliseconds."""

    def work() -> None:
        from kata_fsm.oci import check
        from kata_wire import messages

        _ = (check, messages.agent, messages.health, messages.extension, messages.ttrpc)

    await trio.to_thread.run_sync(work)


async def drain(server: Server, processes: Processes = process) -> None:
    """Let replies and exit codes reach whoever waits for them."""
    with trio.move_on_after(limits.PROCESS_KILL_WAIT_S):
        while server.requests or server.shims:
            await trio.sleep(0.005)
    for shim in server.forced:
        # It is stopped, or whoever reads its output has stopped reading: with `--force` nothing is left behind.
        processes.kill(shim, signal.SIGKILL)


def _raise_file_limit() -> None:
    """A shim brings four descriptors, and there may be many: take what we may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        pass  # fewer shims, then


def main(argv: list[str]) -> int:
    """Run a supervisor. Reports `ok` or one error object on `--ready-fd`."""
    options = Options(argv)
    paths = Paths(options.uid)
    try:
        lock = _lock(paths)
        if lock is None:
            _report(options.ready_fd, READY)
            return 0
        if options.is_new:
            _require_space(paths)
        _raise_file_limit()
        from kata_fsm.recovery import journal_owner, note_failure

        owner = journal_owner(WORLD)
        lock_s = limits.JOURNAL_LOCK_S
        # One that goes on with a sandbox has a journal to go on from, or it has lost it: it does not begin another.
        with Journal.open(journal_dir(), create=options.is_new, lock_timeout_s=lock_s, owner=owner) as journal:
            try:
                trio.run(Supervisor(options).run, journal)
            except Exception as error:
                note_failure(journal, options.stream, WORLD, _first(error))
                raise
    except (KataFsmError, JournalError, OSError) as error:
        return _fail(options, error)
    except BaseExceptionGroup as group:
        if not _expected(group):
            traceback.print_exception(group)
        return _fail(options, _first(group))
    return 0


def _first(error: BaseException) -> BaseException:
    """The first of what a nursery collected."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _expected(group: BaseExceptionGroup[BaseException]) -> bool:
    """Whether all of it is the world's fault, so that nobody needs a traceback."""
    return group.split((KataFsmError, JournalError, OSError))[1] is None


def _fail(options: Options, error: BaseException) -> int:
    if isinstance(error, KataFsmError):
        wire = error.to_wire()
    elif isinstance(error, JournalError):
        wire = WorldError(error.message, hint=error.hint).to_wire()
    elif isinstance(error, OSError):
        wire = WorldError(f"the host refused: {error}").to_wire()
    else:
        wire = Bug(
            f"internal error: {type(error).__name__}: {error}", hint="a bug of ours, in the supervisor"
        ).to_wire()
    print(f"supervisor: {wire['message']}", file=sys.stderr)
    system_log.send("error", f"supervisor: {wire['message']}", {"sandbox": options.sandbox})
    _report(options.ready_fd, control.encode({"error": wire})[control.HEADER_BYTES :])
    return 1
