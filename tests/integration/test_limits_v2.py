# SPDX-License-Identifier: Apache-2.0
"""Goal: limits are written as a real kernel wants them where cgroups are of version 2 alone: in a guest of ours.

The host of the tests may have version 1. So a container in a guest runs this checkout's own code, with the host's Python, on
the cgroups that the guest's kernel gives it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kata_fsm.testing.bundle import config
from tests.support.kata import ROOT, Kata

SCRIPT = """
import os, subprocess, sys
from kata_fsm.effects import cgroup, cgroup_limits
from kata_fsm.errors import EffectError
from kata_fsm.oci.hosting import Limits

top = "/sys/fs/cgroup"
os.mkdir(top + "/self")
for pid in cgroup.pids(top):
    open(top + "/self/cgroup.procs", "w").write(str(pid))
made = cgroup.create("/above/box", "uid")
(hierarchy,) = cgroup.hierarchies()
directory = top + "/above/box"
place = cgroup_limits.Place(hierarchy, directory, cgroup.owner_of(directory) == "uid")

def says(*names):
    print(*(open(f"{directory}/{name}").read().strip() or "-" for name in names), sep="|")

names = ("cpuset.cpus", "cpuset.mems", "cpu.weight", "cpu.max", "memory.max")
done = cgroup_limits.apply([place], Limits(cpus="0", mems="0", shares=512, quota=150000, memory=64 << 20))
print(sorted(os.path.basename(path) for path in done.written), done.unheld)
says(*names)
print(cgroup_limits.apply([place], Limits(cpus="0", mems="0", shares=512, quota=150000, memory=64 << 20)).written)
done = cgroup_limits.apply([place], Limits(io_weight=500))
print(done.unheld, sorted(item for item in done.written.items() if "io." in item[0]))
says(*names)
open(top + "/above/cpuset.cpus", "w").write("0")
try:
    cgroup_limits.apply([place], Limits(cpus="1"))
except EffectError as error:
    print(error.message.split(":")[-1], error.hint)
says("cpuset.cpus")
hog = "import os, sys; b = bytearray(24 << 20); print('up', flush=True); sys.stdin.read()"
held = subprocess.Popen(["sh", "-c", f"echo $$ >{directory}/cgroup.procs; exec {sys.executable} -IS -c \\"{hog}\\""],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE)
held.stdout.readline()
try:
    cgroup_limits.apply([place], Limits(memory=16 << 20))
except EffectError as error:
    print(error.message.split(":")[0], error.hint)
says("memory.max")
print(held.poll())
cgroup_limits.apply([place], Limits(memory=48 << 20))
says("memory.max")
held.communicate(b"")
print(held.returncode)
"""


def test_version_2(kata: Kata) -> None:
    made: dict[str, Any] = config([str(ROOT / ".venv/bin/python"), "-c", SCRIPT])
    made["process"]["env"] += [f"PYTHONPATH={ROOT}", "PYTHONDONTWRITEBYTECODE=1"]
    for kind in ("bounding", "effective", "permitted"):
        made["process"]["capabilities"][kind].append("CAP_SYS_ADMIN")
    binds = sorted({"/usr", "/lib", "/lib64", str(ROOT)})
    made["mounts"] += [
        {"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]}
        for path in binds
        if Path(path).exists()
    ]
    made["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]})
    (kata.base / "c.toml").write_text("[hypervisor.qemu]\ndefault_vcpus = 2\n")
    said = kata(
        "--config", str(kata.base / "c.toml"), "run", "--bundle", str(kata.bundle("b", **made)), "c1"
    ).stdout.splitlines()
    assert said == [
        "['cpu.max', 'cpu.weight', 'cpuset.cpus', 'cpuset.mems', 'memory.max'] {}",
        f"0|0|20|150000 100000|{64 << 20}",
        "{}",
        "{} [('/sys/fs/cgroup/above/box/io.weight', '4950')]",
        "-|-|100|max 100000|max",
        " only `0` of it would be in force the cgroup above allows fewer",
        "-",
        "`linux.resources.memory.limit` cannot be applied on the host the machine's processes use more already",
        "max",
        "None",
        str(48 << 20),
        "0",
    ]
