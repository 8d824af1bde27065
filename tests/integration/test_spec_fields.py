# SPDX-License-Identifier: Apache-2.0
"""Goal: what config.json asks for is so inside the guest, and `features` names only what is so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kata_fsm.oci import fields
from kata_fsm.testing.bundle import config
from tests.support.kata import ROOT, Kata

CGROUP = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]}
SYSCALLS = ("swapon", "swapoff", "acct", "quotactl", "nfsservctl", "sysfs", "ustat", "uselib", "vhangup")
"""Nothing in these tests calls them."""

KERNELS_FIRST = range(0xEFFFFFF8, 0xF0000000)
"""Inode numbers of the namespaces that a kernel begins with (Linux, include/linux/proc_ns.h)."""


def document(script: str, **linux: Any) -> dict[str, Any]:
    """A config.json whose process is a shell that runs `script`; `linux` goes over what there is."""
    made = config(["/bin/sh", "-c", script])
    made["linux"].update(linux)
    made["mounts"].append(CGROUP)
    return made


def run(kata: Kata, name: str, made: dict[str, Any]) -> list[str]:
    """The lines that it prints."""
    return kata("run", "--bundle", str(kata.bundle(name, **made)), name).stdout.splitlines()


def test_names_limits_paths_and_devices(kata: Kata) -> None:
    script = """
        uname -m; cat /proc/sys/kernel/domainname; cat /proc/sys/kernel/shmmax; cat /proc/sys/net/ipv4/ip_default_ttl
        ulimit -S -n; ulimit -H -n; umask; cat /proc/self/oom_score_adj; id -G
        touch /x 2>/dev/null || echo read-only root
        cat /etc/masked | wc -c; ls /etc/hidden | wc -l; echo x 2>/dev/null >/tmp/fixed || echo read-only path
        stat -c '%A %u %g' /dev/other-null; echo gone >/dev/other-null && echo null takes it; stat -c %A /dev/pipe
        cat /dev/my-fuse 2>&1; cat /dev/my-tun 2>&1 | grep -c 'not permitted'; mknod /dev/disk b 8 0; cat /dev/disk 2>&1
        cat /proc/self/cgroup; echo $$; awk '$5 == "/" { print $7 }' /proc/self/mountinfo
        stty size 2>/dev/null || echo no terminal
    """
    made = document(
        script,
        sysctl={"kernel.shmmax": "12345678", "net.ipv4.ip_default_ttl": "77"},
        maskedPaths=["/etc/masked", "/etc/hidden"],
        readonlyPaths=["/tmp/fixed"],
        personality={"domain": "LINUX32"},
        rootfsPropagation="rshared",
        devices=[
            {"type": "c", "path": "/dev/other-null", "major": 1, "minor": 3, "fileMode": 416, "uid": 5, "gid": 6},
            {"type": "p", "path": "/dev/pipe", "fileMode": 384},
            {"type": "c", "path": "/dev/my-fuse", "major": 10, "minor": 229},
            {"type": "c", "path": "/dev/my-tun", "major": 10, "minor": 200},
        ],
        resources={
            "devices": [{"allow": False}, {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "rwm"}]
        },
    )
    made["domainname"] = "example.org"
    made["root"]["readonly"] = True
    made["process"].update(
        rlimits=[{"type": "RLIMIT_NOFILE", "soft": 111, "hard": 222}],
        oomScoreAdj=321,
        user={"uid": 0, "gid": 0, "umask": 63, "additionalGids": [77]},
    )
    bundle = kata.bundle("b", **made)
    (bundle / "rootfs/etc/masked").write_text("secret")
    (bundle / "rootfs/etc/hidden").mkdir()
    (bundle / "rootfs/etc/hidden/secret").touch()
    (bundle / "rootfs/tmp/fixed").touch()
    said = kata("run", "--bundle", str(bundle), "c1").stdout.splitlines()
    assert said[:9] == ["i686", "example.org", "12345678", "77", "111", "222", "0077", "321", "0 77"]
    assert said[9:13] == ["read-only root", "0", "0", "read-only path"]
    assert said[13:16] == ["crw-r----- 5 6", "null takes it", "prw-------"]
    assert "not permitted" in said[16]
    assert said[17] == "0"
    assert "not permitted" in said[18]
    assert said[19:21] == ["0::/", "1"]
    assert said[21].startswith("shared:")
    assert said[22:] == ["no terminal"]


def test_resources_are_in_the_guests_cgroup(kata: Kata) -> None:
    files = "pids.max memory.max memory.low memory.high memory.swap.max cpu.weight cpu.max cpu.max.burst"
    wait = "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done"
    made = document(
        f"cd /sys/fs/cgroup; for name in {files}; do echo $name $(cat $name); done; {wait}",
        resources={
            "pids": {"limit": 33},
            "memory": {"limit": 64 << 20, "reservation": 32 << 20, "swap": 96 << 20},
            "cpu": {"shares": 512, "quota": 50000, "period": 100000, "burst": 10000},
            "unified": {"memory.high": str(48 << 20)},
        },
    )
    runner = kata.spawn("run", "--bundle", str(kata.bundle("b", **made)), "c1")
    with runner:
        assert runner.stdout is not None
        said: dict[str, str] = {}
        for line in runner.stdout:
            if line == "up\n":
                break
            name, _, value = line.strip().partition(" ")
            said[name] = value
        assert said == {
            "pids.max": "33",
            "memory.max": str(64 << 20),
            "memory.low": str(32 << 20),
            "memory.high": str(48 << 20),
            "memory.swap.max": str(32 << 20),
            "cpu.weight": "20",
            "cpu.max": "50000 100000",
            "cpu.max.burst": "10000",
        }
        change = kata.base / "resources.json"
        change.write_text(json.dumps({"cpu": {"idle": 1}, "memory": {"limit": 80 << 20, "swappiness": 5}}))
        kata("update", "--resources", str(change), "c1")
        found = kata("exec", "c1", "/bin/sh", "-c", "cd /sys/fs/cgroup; cat cpu.idle memory.max").stdout.split()
        assert found == ["1", str(80 << 20)]
        assert "`memory.swappiness` is not applied" in (kata.base / "log").read_text()
        change.write_text(json.dumps({"cpu": {"realtimeRuntime": 5}}))
        refused = kata("update", "--resources", str(change), "c1", check=False)
        assert refused.returncode == 1
        assert "`cpu.realtimeRuntime`: cannot be had" in refused.stderr
        kata("kill", "c1", "TERM")
        assert runner.wait(60) == 0


def test_features_are_what_the_guest_gives(kata: Kata) -> None:
    features = json.loads(kata("features").stdout)
    seccomp = features["linux"]["seccomp"]
    rules = [{"names": [name], "action": action} for name, action in zip(SYSCALLS, seccomp["actions"], strict=False)]
    rules += [
        {
            "names": ["kexec_load"],
            "action": "SCMP_ACT_ERRNO",
            "args": [{"index": index % 4, "value": 5, "valueTwo": 4, "op": operator}],
        }
        for index, operator in enumerate(seccomp["operators"])
    ]
    rules += [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]
    assert len(SYSCALLS) >= len(seccomp["actions"])
    options = [word for word in features["mountOptions"] if word not in ("bind", "rbind", "remount")]
    every = sorted(features["linux"]["capabilities"])
    made = document(
        """
        grep CapEff /proc/self/status; grep Seccomp: /proc/self/status; mkdir /tmp/x 2>&1
        readlink /proc/self/ns/user; cat /proc/self/uid_map; grep -c ' /mnt/' /proc/self/mountinfo
        """,
        seccomp={
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": seccomp["archs"],
            "flags": seccomp["supportedFlags"],
            "syscalls": rules,
        },
    )
    made["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), every)
    made["mounts"] += [
        {"destination": f"/mnt/{word}", "type": "tmpfs", "source": "tmpfs", "options": [word]} for word in options
    ]
    said = run(kata, "c1", made)
    assert said[0].split()[1] == f"{(1 << len(every)) - 1:016x}"
    assert said[1].split()[1] == "2"
    assert "not implemented" in said[2]
    assert said[4].split() == ["0", "0", "4294967295"]
    assert said[5] == str(len(options))

    kinds = [
        name for name in features["linux"]["namespaces"] if name not in ("mount", "network")
    ]  # the machine's is one
    links = " ".join(f"/proc/self/ns/{kind}" for kind in kinds)
    mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    made = document(
        f"cat /proc/self/uid_map; id -u; for link in {links}; do readlink $link; done",
        uidMappings=mapping,
        gidMappings=mapping,
    )
    made["linux"]["namespaces"] += [{"type": "user"}, {"type": "time"}]
    said = run(kata, "c2", made)
    assert [said[0].split(), said[1]] == [["0", "100000", "65536"], "0"]
    assert [line.partition(":")[0] for line in said[2:]] == kinds
    assert [line for line in said[2:] if int(line.partition("[")[2][:-1]) in KERNELS_FIRST] == []


def test_the_guests_crun_knows_every_field_that_it_is_given(kata: Kata) -> None:
    """By the names in the program, which a release without one of them would not hold."""
    initrd = Path(ROOT / "build/guest/initrd").read_bytes()
    names = {path.rpartition(".")[2].removesuffix("[]") for path in fields.GUEST} - {"*"}
    # the agent's own, and the names that C compilers and linkers may merge into the ends of longer ones
    missing = sorted(name for name in names if name.encode() + b"\0" not in initrd)
    assert missing == []


def test_what_cannot_be_had_is_refused_before_anything_is_started(kata: Kata) -> None:
    made = document("true")
    made["process"]["scheduler"] = {"policy": "SCHED_FIFO", "priority": 5}
    done = kata("run", "--bundle", str(kata.bundle("b", **made)), "c1", check=False)
    assert done.returncode == 1
    assert done.stderr == "config.json: `process.scheduler`: is not supported: nothing in the guest applies it\n"
    assert kata.processes("supervisor") == []
