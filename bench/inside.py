# SPDX-License-Identifier: Apache-2.0
"""exec: `kata-fsm exec C true`, against `crun exec C true` measured inside the guest.

Both run `true` in the same container C of the same VM, in turn. A is the wall time of our command on the host. For B a
second container of the sandbox, privileged in the guest and without a process namespace of its own, enters the guest's
own mount namespace (`nsenter -t 1 -m`), where a few lines of Python start the guest's crun as the agent does
(`posix_spawn`), wait for it, and read the guest's clock around that. The clock is checked: what it says for all of them
may not exceed what the host's clock says for the whole. crun stays until `true` has ended, as our command does. The first
run of each visit is not counted: the agent is still busy with the visit itself, which would be to crun's disadvantage.
"""

from __future__ import annotations

import json

from bench.kit import BenchError, Kit, say
from bench.report import AT_MOST, Claim, Report, Series, ratio
from kata_fsm.testing.bundle import config

RUNS = 20
GOAL = 2.0
_EACH = 3  # crun execs per visit to the guest that count

_CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
    *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER"),
    *("SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
    *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP"),
    *("MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF"),
    "CHECKPOINT_RESTORE",
)

# crun's root and cgroup manager are the agent's (guest/agent/launch.py).
_PROBE = """
import posix, sys, time
argv = ["/usr/bin/crun", "--root", "/run/crun", "--cgroup-manager=cgroupfs", "exec", sys.argv[1], "true"]
found = []
for _ in range(int(sys.argv[2])):
    start = time.monotonic()
    pid = posix.posix_spawn(argv[0], argv, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    _, status = posix.waitpid(pid, 0)
    found.append(time.monotonic() - start)
    if status:
        raise SystemExit(f"crun exec ended with status {status}")
print(found)
"""


class Pod:
    """A sandbox with the container that is measured and the one that measures."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.target = kit.new_id("target")
        self.meter = kit.new_id("meter")
        kind, of = "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"
        target = kit.bundle(self.target, "sleep", "100000", annotations={kind: "sandbox"})
        document = config(["sleep", "100000"])
        every = [f"CAP_{name}" for name in _CAPABILITIES]
        sets = ("bounding", "effective", "permitted", "inheritable", "ambient")
        process = {
            **document["process"],
            "capabilities": dict.fromkeys(sets, every),
            "noNewPrivileges": False,
        }
        # No `pid` among them: it sees the guest's process 1.
        namespaces = {"namespaces": [{"type": "mount"}, {"type": "network"}]}
        annotations = {kind: "container", of: self.target}
        meter = kit.bundle(
            self.meter, "sleep", "100000", process=process, linux=namespaces, annotations=annotations, hostname=""
        )
        kit.verb("run", "--detach", "--bundle", str(target), self.target)
        kit.verb("run", "--detach", "--bundle", str(meter), self.meter)

    def outside(self) -> float:
        """Seconds that `kata-fsm exec` takes."""
        return self.kit.verb("exec", self.target, "true").wall_s

    def inside(self, count: int) -> list[float]:
        """Seconds that each of `count` runs of `crun exec` takes."""
        enter = ("nsenter", "-t", "1", "-m", "/usr/bin/python3", "-I", "-S", "-c", _PROBE)
        ran = self.kit.verb("exec", self.meter, *enter, self.target, str(1 + count))
        times: list[float] = json.loads(ran.out)
        if sum(times) > ran.wall_s:
            raise BenchError(f"the guest's clock runs fast: {sum(times):.3f} s inside, {ran.wall_s:.3f} s outside")
        return times[1:]


def run(kit: Kit, runs: int) -> Report:
    """The two in turn, after one of each that is not counted."""
    pod = Pod(kit)
    ours: list[float] = []
    theirs: list[float] = []
    pod.outside()
    pod.inside(1)
    for number in range(1, runs + 1):
        ours.append(pod.outside())
        theirs += pod.inside(_EACH)
        say(f"exec {number}/{runs}: {ours[-1] * 1e3:.0f} ms, crun in the guest {theirs[-1] * 1e3:.0f} ms")
    kit.delete(pod.meter, pod.target)
    above = Series("kata-fsm exec C true", "ms", [each * 1e3 for each in ours])
    below = Series("crun exec C true, inside the guest", "ms", [each * 1e3 for each in theirs])
    return Report("exec", [above, below], [Claim("exec / crun exec in the guest", AT_MOST, GOAL, ratio(above, below))])
