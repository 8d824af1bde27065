# SPDX-License-Identifier: Apache-2.0
"""podman: `podman run --rm ... true` and `podman exec ... true` with kata-fsm, beside the same with crun.

One podman, one image, no network; the two runtimes in turn. What podman and conmon take themselves is in both times: it is
what an engine's user waits for. There is no goal: crun boots nothing. All of it is in a mount namespace of its own in which
the empty tree of cgroup v2 beside version 1 is unmounted, because crun does not start where it finds both.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from bench.kit import COMMAND, BenchError, Kit, say, timed
from bench.report import Report, Series, ratio
from kata_fsm.testing.bundle import make_rootfs

RUNS = 10
_PROGRAMS = ("podman", "conmon", "crun")
_IMAGE = "localhost/bench:latest"
_HYBRID = "/sys/fs/cgroup/unified"
_SETTINGS = """[containers]
default_ulimits=["nofile=20000:20000","nproc=32768:32768"]
[engine]
cgroup_manager="cgroupfs"
events_logger="file"
"""


class Podman:
    """podman with storage and settings of its own, in a mount namespace of its own. Use as a context manager."""

    def __init__(self, kit: Kit) -> None:
        self.base = kit.base
        self.env = {**kit.env, "CONTAINERS_CONF": f"{kit.base}/containers.conf"}
        (kit.base / "containers.conf").write_text(_SETTINGS)
        # podman's clean-up calls the runtime with almost no environment: the private places are in the command itself.
        self.ours = kit.base / "kata-fsm"
        exports = "".join(f"export {name}={kit.env[name]}\n" for name in ("KATA_FSM_RUN", "KATA_FSM_STATE"))
        self.ours.write_text(f'#!/bin/sh\n{exports}exec {COMMAND} "$@"\n')
        self.ours.chmod(0o755)

    def __enter__(self) -> Podman:
        script = f"umount {_HYBRID} 2>/dev/null; echo there; exec cat"
        argv = ["unshare", "--mount", "--propagation=private", "sh", "-c", script]
        self._holder = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"there\n":
            raise BenchError("a mount namespace cannot be made")
        image = self.base / "image.tar"
        rootfs = make_rootfs(self.base / "image")
        subprocess.run(["tar", "-C", str(rootfs), "-cf", str(image), "."], check=True)
        self.call("import", "-q", "-c", "ENV PATH=/bin", str(image), _IMAGE)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.call("rm", "--all", "--force", "--time=0")
        finally:
            assert self._holder.stdin is not None
            self._holder.stdin.close()
            self._holder.wait()

    def call(self, *args: str, runtime: str = "") -> float:
        """Seconds that podman takes. Raises `BenchError` when it fails."""
        enter = ["nsenter", f"--target={self._holder.pid}", "--mount", "--"]
        where = [f"--root={self.base}/ps", f"--runroot={self.base}/pr", f"--tmpdir={self.base}/pt"]
        which = [f"--runtime={runtime}"] if runtime else []
        return timed([*enter, "podman", *where, "--storage-driver=vfs", *which, *args], self.env).wall_s

    def run(self, runtime: str) -> float:
        """A container from nothing to nothing."""
        return self.call("run", "--rm", "--network=none", _IMAGE, "true", runtime=runtime)

    @contextmanager
    def running(self, runtime: str, name: str) -> Iterator[None]:
        """A container that stays."""
        self.call("run", "-d", "--network=none", f"--name={name}", _IMAGE, "sleep", "100000", runtime=runtime)
        yield
        self.call("rm", "-f", "-t=0", name)


def missing() -> list[str]:
    """What of podman is not installed."""
    return [name for name in _PROGRAMS if shutil.which(name, path=os.defpath + ":/usr/sbin:/sbin") is None]


def run(kit: Kit, runs: int) -> Report:
    """The two in turn; a first pair of each is not counted."""
    lacking = missing()
    if lacking:
        return Report(
            "podman", notes=[f"not measured: `{'`, `'.join(lacking)}` not installed (`apt-get install podman crun`)"]
        )
    with Podman(kit) as podman:
        series = [*_runs(podman, runs), *_execs(podman, runs)]
    run_ours, run_crun, exec_ours, exec_crun = series
    notes = [_compared("run", run_ours, run_crun), _compared("exec", exec_ours, exec_crun)]
    return Report("podman", series, [], notes)


def _runs(podman: Podman, runs: int) -> list[Series]:
    pairs = []
    for number in range(runs + 1):
        pairs.append((podman.run(str(podman.ours)), podman.run("crun")))
        say(f"podman run {number}/{runs}: {pairs[-1][0]:.2f} s, with crun {pairs[-1][1]:.2f} s")
    return _series("run", pairs)


def _execs(podman: Podman, runs: int) -> list[Series]:
    pairs = []
    with podman.running(str(podman.ours), "ours"), podman.running("crun", "theirs"):
        for number in range(runs + 1):
            pairs.append((podman.call("exec", "ours", "true"), podman.call("exec", "theirs", "true")))
            say(f"podman exec {number}/{runs}: {pairs[-1][0]:.2f} s, with crun {pairs[-1][1]:.2f} s")
    return _series("exec", pairs)


def _series(what: str, pairs: list[tuple[float, float]]) -> list[Series]:
    """Of kata-fsm and of crun, without the first pair."""
    names = (f"podman {what} ... true, kata-fsm", f"podman {what} ... true, crun")
    return [Series(name, "s", [pair[at] for pair in pairs[1:]]) for at, name in enumerate(names)]


def _compared(what: str, ours: Series, crun: Series) -> str:
    return f"podman {what}, kata-fsm / crun: {ratio(ours, crun):.2f} times, {ours.median - crun.median:+.2f} s"
