# SPDX-License-Identifier: Apache-2.0
"""A real systemd for tests: the first process of namespaces of its own, with cgroups of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kata_fsm.effects import cgroup
from tests.support.kata import wait_until

SYSTEMD = "/lib/systemd/systemd"

# systemd mounts the hierarchies that it uses itself; in a cgroup namespace, so that their roots are ours.
_INNER = """
mount --make-rprivate /
mount -t proc proc /proc
umount -R /sys/fs/cgroup || umount -l /sys/fs/cgroup
mount -t tmpfs tmpfs /sys/fs/cgroup
mkdir /sys/fs/cgroup/systemd
mount -t cgroup -o none,name=systemd,xattr cgroup /sys/fs/cgroup/systemd
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/units
for unit in test shutdown reboot poweroff; do printf '[Unit]\\nDefaultDependencies=no\\n' >/run/units/$unit.target; done
export container=test SYSTEMD_UNIT_PATH=/run/systemd/system.control:/run/systemd/transient:/run/units
exec /lib/systemd/systemd --system --unit=test.target --log-target=null
"""


class Machine:
    """`pid` is systemd's."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def argv(self, *words: str) -> list[str]:
        """A command that runs where it is the first process, starting in its root cgroup."""
        inside = ["nsenter", "-t", str(self.pid), "-m", "-p", "-C", "-i", "-u", "--"]
        return [*inside, *words]

    def run(self, *words: str) -> str:
        """What a command says that runs there; it has to succeed."""
        return subprocess.run(self.argv(*words), capture_output=True, text=True, check=True).stdout

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit, in systemctl's words."""
        lines = self.run("systemctl", "show", unit, *(f"--property={name}" for name in names)).splitlines()
        return {name: value for name, _, value in (line.partition("=") for line in lines)}

    def units(self, pattern: str) -> set[str]:
        """The names of the units that it knows and that match."""
        listed = ["systemctl", "list-units", "--all", "--plain", "--no-legend", pattern]
        return {line.split()[0] for line in self.run(*listed).splitlines()}


@contextmanager
def systemd(base: Path) -> Iterator[Machine]:
    """Started, answering, and ended with everything that runs in it; its cgroups are gone afterwards."""
    top = f"/kf-systemd-{os.getpid()}"
    cgroup.create(top, "test")
    script = base / "systemd.sh"
    script.write_text(_INNER)
    tops = [each.point + top for each in cgroup.hierarchies()]
    join = "".join(f"echo $$ >{each}/cgroup.procs; " for each in tops)
    outer = subprocess.Popen(
        ["sh", "-c", f"{join} exec unshare -m -p -C -u -i --fork --kill-child sh -e {script}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Machine(wait_until(lambda: _ready(outer.pid), "systemd answers"))
    finally:
        outer.kill()  # and with it, by --kill-child, the namespaces' first process
        outer.wait()
        wait_until(lambda: not any(cgroup.pids(each) for each in tops), "systemd's processes are gone")
        for each in tops:
            for where, _, _ in os.walk(each, topdown=False):
                os.rmdir(where)


def _ready(outer: int) -> int:
    """systemd's pid, once it can be asked; 0 before."""
    for pid in Path(f"/proc/{outer}/task/{outer}/children").read_text().split():
        socket = Path(f"/proc/{pid}/root/run/systemd/private")
        if Path(f"/proc/{pid}/exe").resolve() == Path(SYSTEMD).resolve() and socket.exists():
            return int(pid)
    return 0
