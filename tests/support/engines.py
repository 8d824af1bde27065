# SPDX-License-Identifier: Apache-2.0
"""Real container engines for tests: installed, started privately, and told to use the command of this checkout."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kata_fsm.effects.cgroup import RUN_MARK
from tests.support import names
from tests.support.enclosure import Enclosure
from tests.support.kata import COMMAND, GONE_S, LIMIT_S, Kata, Traces, clean_up_by_force, kill_rest, leaks, wait_until

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NO_SKIP = "KATA_FSM_NO_SKIP"  # set where everything must be tested: what would be skipped fails
_INSTALL_S = 600


@functools.cache
def _install(packages: tuple[str, ...]) -> str:
    """Install Debian packages that are missing; why not, or nothing."""
    query = ["dpkg-query", "-W", "-f=${db:Status-Status}"]
    present = [subprocess.run([*query, name], capture_output=True, text=True, check=False).stdout for name in packages]
    if all(status == "installed" for status in present):
        return ""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300"]
    subprocess.run([*apt, "update"], env=environment, capture_output=True, timeout=_INSTALL_S, check=False)
    done = subprocess.run(
        [*apt, "install", "--no-install-recommends", *packages],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_INSTALL_S,
        check=False,
    )
    return "" if done.returncode == 0 else (done.stderr or done.stdout)[-500:]


def require_packages(*packages: str) -> None:
    """Skip the test when one cannot be installed; fail instead where nothing may be skipped."""
    why = _install(packages)
    if why:
        (pytest.fail if os.environ.get(NO_SKIP) else pytest.skip)(f"cannot install {' '.join(packages)}: {why}")


def _cgroups_named(word: str, base: Path) -> set[str]:
    """Cgroups in whose path `word` is, without those that another installation has marked: other tests may run."""
    found = (f"{where}/{name}" for where, names, _ in os.walk("/sys/fs/cgroup") for name in names)
    return {path for path in found if word in path and _marked(path) in ("", f"{base}/r")}


def _marked(path: str) -> str:
    try:
        return os.fsdecode(os.getxattr(path, RUN_MARK))
    except OSError:
        return ""


def end(daemon: subprocess.Popen[bytes]) -> None:
    """Ask a daemon to end, and make it."""
    daemon.terminate()
    try:
        daemon.wait(LIMIT_S)
    finally:
        daemon.kill()
        daemon.wait()


class Engine:
    """What the engines have in common: a directory, a private installation of ours in it, a runtime command that uses it.

    One that changes the network is in an `enclosure`, with everything that it starts.
    """

    def __init__(self, base: Path, rootfs: Path, enclosure: Enclosure | None = None) -> None:
        self.base = base
        self.enclosure = enclosure
        self.prefix = enclosure.prefix if enclosure else []
        self.kata = Kata(base, rootfs)
        self.kata.prefix = self.prefix
        self.env = {"PATH": PATH}
        # Engines call a runtime with an environment of their own, podman's clean-up with nearly none: so the place of this
        # private installation is in the command itself. It says nothing else.
        self.runtime = base / "kata-fsm"
        exports = "".join(f"export {name}={self.kata.env[name]}\n" for name in ("KATA_FSM_RUN", "KATA_FSM_STATE"))
        self.runtime.write_text(f'#!/bin/sh\n{exports}exec {COMMAND} "$@"\n')
        self.runtime.chmod(0o755)

    def command(self, *args: str) -> list[str]:
        """The engine's client with `args`."""
        raise NotImplementedError

    def __call__(self, *args: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run the client to its end. Through files, since what it starts may keep its stdout open."""
        with (
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
            tempfile.TemporaryFile("w+") as given,
        ):
            given.write(stdin)
            given.seek(0)
            done = subprocess.run(
                [*self.prefix, *self.command(*args)],
                env=self.env,
                timeout=LIMIT_S,
                stdin=given,
                stdout=out,
                stderr=err,
                check=False,
            )
            out.seek(0)
            err.seek(0)
            result = subprocess.CompletedProcess(done.args, done.returncode, out.read(), err.read())
        if check and done.returncode:
            said = f"{result.stdout}\n{result.stderr}\n{self.kata.logs()}\n{self.kata.latest_story()}"
            pytest.fail(f"`{' '.join(args)}` exited {done.returncode}\n{said}")
        return result

    def popen(self, *args: str, **kwargs: Any) -> subprocess.Popen[bytes]:
        """Start the client."""
        return subprocess.Popen([*self.prefix, *self.command(*args)], env=self.env, **kwargs)

    def keeps(self, leak: str) -> bool:
        """Whether a line about a leak tells of the engine itself, which has only just made it."""
        return False

    def close(self) -> None:
        """End what runs as long as the engine."""


class Podman(Engine):
    """Rootful podman with storage, run directory and configuration of its own."""

    def __init__(self, base: Path, rootfs: Path, enclosure: Enclosure | None = None) -> None:
        super().__init__(base, rootfs, enclosure)
        settings = base / "containers.conf"
        # Root without CAP_SYS_RESOURCE, as in many containers, cannot raise limits to podman's defaults.
        settings.write_text(
            '[containers]\ndefault_ulimits=["nofile=20000:20000","nproc=32768:32768"]\n'
            '[engine]\ncgroup_manager="cgroupfs"\nevents_logger="file"\n'
            f'[network]\nnetwork_config_dir="{base}/net"\n'
        )
        self.env["CONTAINERS_CONF"] = str(settings)
        image = base / "busybox.tar"
        subprocess.run(["tar", "-C", str(rootfs), "-cf", str(image), "."], check=True)
        changes = [word for change in ('CMD ["sh"]', f"ENV PATH={PATH}") for word in ("-c", change)]
        self("import", "-q", *changes, str(image), "localhost/bb:latest")
        image.unlink()

    def command(self, *args: str) -> list[str]:
        """podman with its private places."""
        return ["/usr/bin/podman", *self.places(), *args]

    def places(self) -> list[str]:
        """The options that say where it keeps everything, and which runtime it uses."""
        where = [f"--root={self.base}/ps", f"--runroot={self.base}/pr", f"--tmpdir={self.base}/pt"]
        return [*where, "--storage-driver=vfs", f"--runtime={self.runtime}"]

    def run(
        self, *options: str, command: Sequence[str] = (), config: Path | None = None, **kwargs: Any
    ) -> subprocess.CompletedProcess[str]:
        """`podman run` of the busybox image without a network, unless the options say otherwise. `config`: the runtime's
        configuration file."""
        network = [] if any(option.startswith(("--network", "--pod")) for option in options) else ["--network=none"]
        flags = [f"--runtime-flag=config={config}"] if config else []
        return self(*flags, "run", *network, *options, "localhost/bb:latest", *command, **kwargs)

    def inspect(self, name: str) -> dict[str, Any]:
        """What `podman inspect` knows of a container."""
        found: list[dict[str, Any]] = json.loads(self("inspect", name).stdout)
        return found[0]

    def clean_up(self) -> None:
        """Remove whatever a test left."""
        self("pod", "rm", "--all", "--force", "--time=0", check=False)
        self("rm", "--all", "--force", "--time=0", check=False)
        self("volume", "rm", "--all", "--force", check=False)
        self("network", "prune", "--force", check=False)


class Typist:
    """A client on a terminal of ours."""

    def __init__(self, engine: Engine, *args: str, rows: int = 24, columns: int = 80) -> None:
        import fcntl
        import pty
        import struct
        import termios

        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.sized = f"until [ \"$(stty size)\" = '{rows} {columns}' ]; do sleep 0.1; done"
        """A line of shell that ends when the guest's terminal is as large: some clients tell of that after the start."""
        self.process = engine.popen(*args, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        self.text = ""

    def read_until(self, pattern: str) -> re.Match[str]:
        """Read until the text matches; fails with what was read."""
        import select

        def look() -> re.Match[str] | None:
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self.master, 4096).decode(errors="replace")
                except OSError:
                    pass  # the terminal's other end was closed
            return re.search(pattern, self.text)

        found: re.Match[str] = wait_until(look, f"`{pattern}` on the terminal, which says: {self.text!r}")
        return found

    def type(self, text: str) -> None:
        """Type it."""
        os.write(self.master, text.encode())

    def close(self) -> int:
        """Wait for the client's end; its exit code."""
        try:
            return self.process.wait(LIMIT_S)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.master)


@contextmanager
def clean(engine: Engine, word: str, tidy: Callable[[], None]) -> Iterator[None]:
    """After the block, and after `tidy`, nothing may be left: neither of ours, nor a cgroup named like `word`."""
    traces = Traces(engine.base, engine.enclosure.pid if engine.enclosure else "self", of_engine=True)
    before, cgroups = traces.snapshot(), _cgroups_named(word, engine.base)
    running = set(engine.kata.processes())
    try:
        yield
    finally:
        tidy()
    left: list[str] = []

    def is_clean() -> bool:
        if hasattr(engine, "daemon"):
            running.add(engine.daemon.pid)  # a test may have started it anew
        found = leaks(engine.kata, traces, before)
        left[:] = [each for each in found if not _is_elsewhere(each, running) and not engine.keeps(each)]
        left.extend(f"cgroup {path}" for path in _cgroups_named(word, engine.base) - cgroups)
        return not left

    try:
        wait_until(is_clean, "nothing left behind", GONE_S)
    except pytest.fail.Exception:
        pytest.fail("left behind:\n" + "\n".join(left) + "\n" + engine.kata.logs(), pytrace=False)


def _is_elsewhere(leak: str, pids: set[int]) -> bool:
    """Whether it is a process that ran before, or a name in the host's network that no engine gives: other tests may run."""
    if leak.startswith(("link ", "namespace ")):
        return not leak.split(" ")[1].startswith(("veth", "podman", "cni", "netns-"))
    return any(leak.startswith(f"process {pid}:") for pid in pids)


@contextmanager
def enclosed(kind: Callable[[Path, Path, Enclosure], Any], rootfs: Path) -> Iterator[Any]:
    """An engine in a directory of its own and in an enclosure, which are gone afterwards."""
    enclosure = Enclosure()
    try:
        with installed(lambda base, rootfs: kind(base, rootfs, enclosure), rootfs) as engine:
            yield engine
    finally:
        enclosure.close()


@contextmanager
def installed(kind: Callable[[Path, Path], Any], rootfs: Path) -> Iterator[Any]:
    """An engine in a directory of its own, which is gone afterwards."""
    base = names.directory()
    base.chmod(0o755)  # a workload that is not root walks through it
    engine = kind(base, rootfs)
    try:
        yield engine
    finally:
        engine.close()
        clean_up_by_force(engine.kata)
        kill_rest(engine.kata)
        shutil.rmtree(base, ignore_errors=True)
