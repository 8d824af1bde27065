# SPDX-License-Identifier: Apache-2.0
"""reading: `state` and `list` with 1 and 100 containers, against an interpreter that does nothing.

CPU time (user + system, from wait4) of the installed command against `python3 -I -S -c pass` of the same interpreter, in
turn. The containers are real to whoever reads: their journals are written by the machines and projections of the product,
and their supervisors' locks are held, so that nobody takes them for orphans. They have no VMs, which readers never touch.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess

from bench.fill import fill
from bench.kit import BenchError, Kit, cpu_s, interpreter, say
from bench.report import AT_MOST, Claim, Report, Series, ratio
from kata_fsm.world import Paths

RUNS = 60
GOAL = 2.0
COUNTS = (1, 100)


class Installation:
    """`count` running containers, as readers see them, below `base`."""

    def __init__(self, kit: Kit, count: int, name: str = "n") -> None:
        base = kit.base / f"{name}{count}"
        self.journal = base / "s" / "journal"
        self.env = {**kit.env, "KATA_FSM_RUN": str(base / "r"), "KATA_FSM_STATE": str(base / "s")}
        os.environ.update(self.env)  # the product's own code writes the journal
        self._locks: list[int] = []
        try:
            names = fill(self.journal, self.env["KATA_FSM_RUN"], count)
            for uid in names.values():
                self._hold(Paths(uid))
        finally:
            os.environ.update(kit.env)
        self.name = next(iter(names))
        self.count = count

    def _hold(self, paths: Paths) -> None:
        os.makedirs(paths.base, mode=0o700)
        fd = os.open(paths.supervisor_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        self._locks.append(fd)

    def check(self, kit: Kit) -> None:
        """Raises BenchError unless readers see every container running."""
        argv = kit.argv("list", "--format", "json")
        rows = json.loads(subprocess.run(argv, env=self.env, check=True, capture_output=True).stdout)
        if len(rows) != self.count or any(row["status"] != "running" for row in rows):
            raise BenchError(f"`list` shows {len(rows)} containers, not {self.count} running ones")

    def close(self) -> None:
        for fd in self._locks:
            os.close(fd)


def run(kit: Kit, runs: int) -> Report:
    """Floor, `state` and `list` with each count, in turn."""
    made = {count: Installation(kit, count) for count in COUNTS}
    floor = Series("python3 -I -S -c pass", "ms", [])
    series: dict[str, Series] = {}
    try:
        commands = {}
        for count, installation in made.items():
            installation.check(kit)
            many = f"{count} container" + ("s" if count > 1 else "")
            commands[f"state, {many}"] = (kit.argv("state", installation.name), installation.env)
            commands[f"list, {many}"] = (kit.argv("list"), installation.env)
        for number in range(runs + 1):
            base = cpu_s([interpreter(), "-I", "-S", "-c", "pass"], kit.env) * 1e3
            took = {name: cpu_s(argv, env) * 1e3 for name, (argv, env) in commands.items()}
            if number:  # the first round fills caches
                floor.samples.append(base)
                for name, value in took.items():
                    series.setdefault(name, Series(f"kata-fsm {name}", "ms", [])).samples.append(value)
    finally:
        for installation in made.values():
            installation.close()
    say(f"state and list: {runs} rounds")
    claims = [
        Claim(f"CPU of {name} / bare interpreter", AT_MOST, GOAL, ratio(each, floor)) for name, each in series.items()
    ]
    return Report("reading", [floor, *series.values()], claims, ["milliseconds of CPU, user + system"])
