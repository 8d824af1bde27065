# SPDX-License-Identifier: Apache-2.0
"""Hooks on the host (runtime-spec, config.md "POSIX-platform Hooks"): all but startContainer.

They belong to the effects beside which the specification puts them, and wrap their handlers: a failed prestart,
createRuntime or createContainer hook fails `container.create` before the guest hears of it, and the machine takes everything
down; what a failed poststart or poststop hook says is only recorded and logged.

Hooks may hold secrets, so they wait in a file of the run directory. Beside it every hook's beginning and end is noted, for a
hook must not be run twice: after a crash those that have ended are passed over, and one that had begun counts as failed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import trio

from kata_fsm import errors, limits
from kata_fsm.effects import hook_place
from kata_fsm.effects.bounded import Bounded
from kata_fsm.effects.protocols import Handler, Intent, Observed
from kata_fsm.world import WORLD, Paths

STATUS = {
    "prestart": "creating",
    "createRuntime": "creating",
    "createContainer": "creating",
    "poststart": "running",
    "poststop": "stopped",
}
"""The kinds that run on the host, and what the state document calls the container then (runtime-spec, lifecycle)."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SAID_BYTES = 500

Document = dict[str, Any]

Starter = Callable[[], "subprocess.Popen[bytes]"]
Within = Callable[[Document, Starter], "subprocess.Popen[bytes]"]
"""Starts a hook of that document where it belongs. Blocks. Raises OSError."""


def _here(_: Document, start: Starter) -> subprocess.Popen[bytes]:
    return start()


def keep(run_directory: str, container: str, document: Document) -> str:
    """Write the hooks of a container where only root can read; the file's path. `document` is {"state": {...}, kind:
    [hooks]}, and with createContainer hooks "root" and "places" (see `hook_place`)."""
    directory = run_directory + "/hooks"
    os.makedirs(directory, mode=0o700, exist_ok=True)
    path = f"{directory}/{container}.{WORLD.random_bytes(4).hex()}.json"  # a refused request touches nobody else's
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(json.dumps(document))
    return path


def forget(path: str) -> None:
    """Remove the file and what is beside it."""
    for name in (path, path + ".progress", path + ".said") if path else ():
        try:
            os.unlink(name)
        except FileNotFoundError:
            pass
    try:
        os.rmdir(os.path.dirname(path))
    except OSError:
        pass  # another container's are still there, or there never were any


def _load(path: str) -> Document:
    try:
        with open(path, "rb") as file:
            document: Document = json.load(file)
    except FileNotFoundError:
        return {}  # run to their end, or gone with the host's last boot
    return document


def _progress(path: str) -> set[str]:
    try:
        with open(path + ".progress", encoding="ascii") as file:
            return set(file.read().split("\n"))
    except FileNotFoundError:
        return set()


def _note(path: str, line: str) -> None:
    with open(path + ".progress", "a", encoding="ascii") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


async def run(path: str, kind: str, pid: int, within: Within = _here) -> list[str]:
    """Run the hooks of `kind` in order; what failed, one line each, beginning with the kind. `pid` 0 is left out."""
    document, done, failed = _load(path), _progress(path), []
    state = {**document.get("state", {}), "status": STATUS[kind], **({"pid": pid} if pid else {})}
    for index, hook in enumerate(document.get(kind) or []):
        name = f"{kind} {index}"
        if f"{name} ended" in done:
            continue
        label = f"hook `hooks.{kind}[{index}]` (`{hook['path']}`)"
        if f"{name} begun" in done:
            failed.append(f"{label}: how it ended is not known, the supervisor was ended meanwhile")
        else:
            _note(path, f"{name} begun")
            problem = await _run_one(hook, state, path + ".said", lambda start: within(document, start))
            failed += [f"{label} {problem}"] if problem else []
        _note(path, f"{name} ended")
        if failed and STATUS[kind] == "creating":
            break
    return failed


async def _run_one(
    hook: Mapping[str, Any], state: Document, said: str, within: Callable[[Starter], subprocess.Popen[bytes]]
) -> str:
    """Run one hook with the state on its stdin; what was wrong, or nothing."""
    timeout_s = hook.get("timeout") or limits.HOOK_TIMEOUT_S
    try:
        process = await _started(hook, state, said, within)
    except OSError as error:
        where = f": `{error.filename}`" if error.filename not in (None, hook["path"]) else ""
        return f"cannot be run{where}: {error.strerror}"
    except errors.EffectError as error:
        return f"cannot be run: {error.message}"
    ended = os.pidfd_open(process.pid)
    try:
        with trio.move_on_after(timeout_s):
            await trio.lowlevel.wait_readable(ended)
            code = process.wait()
            return "" if code == 0 else _outcome(code, said)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)  # with what it has started: it leads a session of its own
            with trio.CancelScope(shield=True):
                await trio.lowlevel.wait_readable(ended)
            process.wait()
        os.close(ended)
    return f"did not end in `{timeout_s}` s and was killed"


async def _started(
    hook: Mapping[str, Any], state: Document, said: str, within: Callable[[Starter], subprocess.Popen[bytes]]
) -> subprocess.Popen[bytes]:
    """It runs, and leads a session of its own. Raises OSError and EffectError."""
    # Without `env` runc would hand on its own, which is the caller's and not ours any more.
    given = hook.get("env")
    environment = dict(each.partition("=")[::2] for each in given) if given is not None else {"PATH": _PATH}
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        # Files rather than pipes: a hook that reads nothing, or leaves a child behind, holds nobody up.
        with (
            open(os.memfd_create("state", os.MFD_CLOEXEC), "wb+", buffering=0) as told,
            open(said, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as output,
        ):
            told.write(json.dumps(state).encode())
            told.seek(0)
            process = subprocess.Popen(
                list(hook.get("args") or [hook["path"]]),
                executable=hook["path"],
                stdin=told,
                stdout=output,
                stderr=output,
                env=environment,
                cwd=state.get("bundle") if os.path.isdir(str(state.get("bundle"))) else "/",
                start_new_session=True,
            )
        started.append(process)
        return process

    def take_back() -> None:
        for each in started:
            if each.poll() is None:
                os.killpg(each.pid, signal.SIGKILL)
                each.wait()

    try:
        return await Bounded("hook", f"starting `{hook['path']}`").run(lambda: within(start), late=take_back)
    except trio.Cancelled:
        take_back()  # nobody has it
        raise


def _outcome(code: int, said: str) -> str:
    with open(said, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _SAID_BYTES))
        words = " ".join(file.read().decode("utf-8", "replace").split())
    how = f"exited with code {code}" if code > 0 else f"was killed by signal {-code}"
    return f"{how}: {words}" if words else how


class _Wrapped:
    """A handler, and the hooks that belong to its effect: {"file", "pid"} in its parameters, when there are any."""

    def __init__(self, inner: Handler) -> None:
        self.inner = inner

    async def probe(self, intent: Intent) -> Observed:
        """As the handler's own."""
        return await self.inner.probe(intent)

    async def undo(self, intent: Intent) -> Document:
        """As the handler's own: what a hook has done, another hook undoes."""
        return await self.inner.undo(intent)


class Before(_Wrapped):
    """prestart, createRuntime and createContainer hooks, before `container.create`: the shim is in its namespaces, the
    program not begun."""

    def __init__(self, inner: Handler, paths: Paths) -> None:
        super().__init__(inner)
        self.paths = paths

    async def perform(self, intent: Intent) -> Document:
        """Raises EffectError naming the hook that failed; then the guest has heard nothing."""
        given = intent.params.get("hooks") or {}
        for kind in ("prestart", "createRuntime", "createContainer") if given else ():
            within = self._within(intent.subject) if kind == "createContainer" else _here
            failed = await run(str(given["file"]), kind, int(given["pid"]), within)
            if failed:
                raise errors.EffectError("hook", failed[0])
        return await self.inner.perform(intent)

    def _within(self, container: str) -> Within:
        netns, tree = self.paths.netns, self.paths.container_tree(container)
        return lambda document, start: hook_place.inside(netns, tree, document["root"], document["places"], start)


class After(_Wrapped):
    """Hooks of one kind after the effect. Failures are in its result: {"KIND_failed": [lines]}."""

    def __init__(self, inner: Handler, kind: str) -> None:
        super().__init__(inner)
        self.kind = kind

    async def perform(self, intent: Intent) -> Document:
        """The effect, then the hooks."""
        result = await self.inner.perform(intent)
        given = intent.params.get("hooks")
        if not given:
            return result
        last = self.kind == "poststop"
        failed = await run(str(given["file"]), self.kind, 0 if last else int(given["pid"]))
        if last:
            forget(str(given["file"]))
        return {**result, f"{self.kind}_failed": failed} if failed else result

    async def probe(self, intent: Intent) -> Observed:
        """Not done while a hook is left to be run."""
        observed = await self.inner.probe(intent)
        given = intent.params.get("hooks")
        if not given or not observed.done:
            return observed
        path = str(given["file"])
        left = len(_load(path).get(self.kind) or [])
        done = _progress(path)
        return observed if all(f"{self.kind} {at} ended" in done for at in range(left)) else Observed(False)
