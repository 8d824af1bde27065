# SPDX-License-Identifier: Apache-2.0
"""Every field of runtime-spec 1.3's `config.json` for Linux, a value that asks for something, and what must become of it.

Paths are of one document: `mounts/0/options` is a field of an item. Fates: `guest` (the guest's document has it, there or
as `CARRIED` says), `host` (`tests.unit.oci.test_fields` has the evidence), `refused` and `warned` (by the field's name).
"""

from __future__ import annotations

from typing import Any

BASES: dict[str, Any] = {
    "mounts/0": {"destination": "/x", "type": "tmpfs", "source": "x"},
    "mounts/1": {"destination": "/y", "type": "bind", "source": "/data", "options": ["bind"]},
    "hooks/prestart/0": {"path": "/h"},
    "hooks/createRuntime/0": {"path": "/h"},
    "hooks/createContainer/0": {"path": "/h"},
    "hooks/startContainer/0": {"path": "/h"},
    "hooks/poststart/0": {"path": "/h"},
    "hooks/poststop/0": {"path": "/h"},
    "process/rlimits/0": {"type": "RLIMIT_CORE", "soft": 3, "hard": 9},
    "linux/namespaces/0": {"type": "network"},
    "linux/uidMappings/0": {"containerID": 0, "hostID": 0, "size": 9},
    "linux/gidMappings/0": {"containerID": 0, "hostID": 0, "size": 9},
    "linux/devices/0": {"type": "c", "path": "/dev/null", "major": 1, "minor": 3},
    "linux/resources/devices/0": {"allow": False},
    "linux/seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
    "linux/seccomp/syscalls/0": {"names": ["sync"], "action": "SCMP_ACT_ERRNO"},
    "linux/seccomp/syscalls/0/args/0": {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
}
"""What has to be there for a field to be legal: laid before it, the longest last."""

_ID = {"containerID": 1, "hostID": 2, "size": 3}

FIELDS: list[tuple[str, Any, str]] = [
    ("ociVersion", "1.2.0", "host"),
    ("root", {"path": "other"}, "host"),
    ("root/path", "other", "host"),
    ("root/readonly", True, "guest"),
    ("hostname", "h", "guest"),
    ("domainname", "d", "guest"),
    ("annotations", {"a": "b"}, "guest"),
    ("annotations/a", "b", "guest"),
    ("mounts", [{"destination": "/x", "type": "tmpfs"}], "guest"),
    ("mounts/0/destination", "/z", "guest"),
    ("mounts/0/type", "proc", "guest"),
    ("mounts/0/source", "other", "guest"),
    ("mounts/0/options", ["ro", "size=5"], "guest"),
    ("mounts/1/uidMappings", [_ID], "refused"),
    ("mounts/1/gidMappings", [_ID], "refused"),
    ("hooks", {"poststop": [{"path": "/h"}]}, "host"),
    *[
        (f"hooks/{kind}/0/{name}", value, fate)
        for kind, fate in (
            ("prestart", "host"),
            ("createRuntime", "host"),
            ("createContainer", "host"),
            ("startContainer", "guest"),
            ("poststart", "host"),
            ("poststop", "host"),
        )
        for name, value in (("path", "/other"), ("args", ["h", "x"]), ("env", ["A=b"]), ("timeout", 5))
    ],
    *[
        (f"hooks/{kind}", [{"path": "/h"}], "host")
        for kind in ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    ],
    ("hooks/startContainer", [{"path": "/h"}], "guest"),
    ("process", {"args": ["x"], "cwd": "/"}, "guest"),
    ("process/args", ["x", "y"], "guest"),
    ("process/commandLine", "x y", "warned"),
    ("process/cwd", "/tmp", "guest"),
    ("process/env", ["A=b"], "guest"),
    ("process/terminal", False, "guest"),
    ("process/consoleSize", {"height": 3, "width": 4}, "guest"),
    ("process/consoleSize/height", 3, "guest"),
    ("process/consoleSize/width", 3, "guest"),
    ("process/user", {"uid": 1}, "guest"),
    ("process/user/uid", 7, "guest"),
    ("process/user/gid", 7, "guest"),
    ("process/user/umask", 63, "guest"),
    ("process/user/additionalGids", [7], "guest"),
    ("process/user/username", "me", "warned"),
    ("process/capabilities", {"bounding": ["CAP_KILL"]}, "guest"),
    *[
        (f"process/capabilities/{name}", ["CAP_CHOWN"], "guest")
        for name in ("bounding", "effective", "inheritable", "permitted", "ambient")
    ],
    ("process/rlimits", [{"type": "RLIMIT_CORE", "soft": 1, "hard": 1}], "guest"),
    ("process/rlimits/0/type", "RLIMIT_CPU", "guest"),
    ("process/rlimits/0/soft", 4, "guest"),
    ("process/rlimits/0/hard", 8, "guest"),
    ("process/noNewPrivileges", False, "guest"),
    ("process/oomScoreAdj", 100, "guest"),
    ("process/apparmorProfile", "p", "warned"),
    ("process/selinuxLabel", "l", "warned"),
    ("process/scheduler", {"policy": "SCHED_FIFO", "priority": 5}, "refused"),
    ("process/ioPriority", {"class": "IOPRIO_CLASS_IDLE", "priority": 1}, "refused"),
    ("process/execCPUAffinity", {"initial": "0"}, "refused"),
    ("linux", {"namespaces": [{"type": "network"}, {"type": "uts"}]}, "guest"),
    ("linux/cgroupsPath", "/there", "host"),
    ("linux/devices", [{"type": "p", "path": "/dev/p"}], "guest"),
    ("linux/devices/0/type", "u", "guest"),
    ("linux/devices/0/path", "/dev/other", "guest"),
    ("linux/devices/0/major", 1, "guest"),
    ("linux/devices/0/minor", 5, "guest"),
    ("linux/devices/0/fileMode", 384, "guest"),
    ("linux/devices/0/uid", 5, "guest"),
    ("linux/devices/0/gid", 5, "guest"),
    ("linux/namespaces", [{"type": "network"}, {"type": "mount"}], "guest"),
    ("linux/namespaces/1", {"type": "ipc"}, "guest"),
    ("linux/namespaces/1/type", "uts", "guest"),
    ("linux/namespaces/0/path", "/run/netns/x", "host"),
    ("linux/uidMappings", [_ID], "guest"),
    ("linux/gidMappings", [_ID], "guest"),
    *[
        (f"linux/{which}/0/{name}", 4, "guest")
        for which in ("uidMappings", "gidMappings")
        for name in ("containerID", "hostID", "size")
    ],
    ("linux/intelRdt", {"closID": "x"}, "refused"),
    ("linux/maskedPaths", ["/x"], "guest"),
    ("linux/readonlyPaths", ["/x"], "guest"),
    ("linux/memoryPolicy", {"mode": "MPOL_BIND", "nodes": "0"}, "refused"),
    ("linux/mountLabel", "l", "warned"),
    ("linux/netDevices", {"eth9": {}}, "refused"),
    ("linux/personality", {"domain": "LINUX32"}, "guest"),
    ("linux/personality/domain", "LINUX32", "guest"),
    ("linux/personality/flags", ["X"], "refused"),
    ("linux/rootfsPropagation", "rprivate", "guest"),
    ("linux/sysctl", {"kernel.shmmax": "5"}, "guest"),
    ("linux/sysctl/kernel.shmmax", "5", "guest"),
    ("linux/timeOffsets", {"boottime": {"secs": 5}}, "refused"),
    ("linux/seccomp", {"defaultAction": "SCMP_ACT_LOG"}, "guest"),
    ("linux/seccomp/defaultAction", "SCMP_ACT_LOG", "guest"),
    ("linux/seccomp/defaultErrnoRet", 5, "guest"),
    ("linux/seccomp/architectures", ["SCMP_ARCH_X86_64"], "guest"),
    ("linux/seccomp/flags", ["SECCOMP_FILTER_FLAG_LOG"], "guest"),
    ("linux/seccomp/listenerPath", "/x", "refused"),
    ("linux/seccomp/listenerMetadata", "x", "warned"),
    ("linux/seccomp/syscalls", [{"names": ["sync"], "action": "SCMP_ACT_LOG"}], "guest"),
    ("linux/seccomp/syscalls/0/names", ["mkdir"], "guest"),
    ("linux/seccomp/syscalls/0/action", "SCMP_ACT_LOG", "guest"),
    ("linux/seccomp/syscalls/0/errnoRet", 5, "guest"),
    ("linux/seccomp/syscalls/0/args", [{"index": 1, "value": 2, "op": "SCMP_CMP_EQ"}], "guest"),
    ("linux/seccomp/syscalls/0/args/0/index", 2, "guest"),
    ("linux/seccomp/syscalls/0/args/0/value", 2, "guest"),
    ("linux/seccomp/syscalls/0/args/0/valueTwo", 2, "guest"),
    ("linux/seccomp/syscalls/0/args/0/op", "SCMP_CMP_NE", "guest"),
    ("linux/resources", {"pids": {"limit": 5}}, "guest"),
    ("linux/resources/devices", [{"allow": True, "type": "c"}], "guest"),
    ("linux/resources/devices/0/allow", True, "guest"),
    ("linux/resources/devices/0/type", "c", "guest"),
    ("linux/resources/devices/0/major", 5, "guest"),
    ("linux/resources/devices/0/minor", 5, "guest"),
    ("linux/resources/devices/0/access", "r", "guest"),
    ("linux/resources/memory", {"limit": 1 << 26}, "guest"),
    ("linux/resources/memory/limit", 1 << 26, "guest"),
    ("linux/resources/memory/reservation", 1 << 26, "guest"),
    ("linux/resources/memory/swap", 1 << 26, "guest"),
    ("linux/resources/memory/kernel", 1 << 26, "warned"),
    ("linux/resources/memory/kernelTCP", 1 << 26, "warned"),
    ("linux/resources/memory/swappiness", 5, "warned"),
    ("linux/resources/memory/disableOOMKiller", True, "refused"),
    ("linux/resources/memory/useHierarchy", False, "warned"),
    ("linux/resources/memory/checkBeforeUpdate", True, "guest"),
    ("linux/resources/cpu", {"shares": 512}, "guest"),
    ("linux/resources/cpu/shares", 512, "guest"),
    ("linux/resources/cpu/quota", 50000, "guest"),
    ("linux/resources/cpu/period", 100000, "guest"),
    ("linux/resources/cpu/burst", 1000, "guest"),
    ("linux/resources/cpu/idle", 1, "guest"),
    ("linux/resources/cpu/realtimeRuntime", 5, "refused"),
    ("linux/resources/cpu/realtimePeriod", 5, "refused"),
    ("linux/resources/cpu/cpus", "0", "host"),
    ("linux/resources/cpu/mems", "0", "host"),
    ("linux/resources/pids", {"limit": 5}, "guest"),
    ("linux/resources/pids/limit", 5, "guest"),
    ("linux/resources/unified", {"memory.high": "5"}, "guest"),
    ("linux/resources/unified/memory.high", "5", "guest"),
    ("linux/resources/blockIO", {"weight": 10}, "host"),
    ("linux/resources/blockIO/weight", 20, "host"),
    ("linux/resources/blockIO/leafWeight", 20, "warned"),
    *[
        (f"linux/resources/blockIO/{name}", [{"major": 8, "minor": 0, "rate": 5}], "warned")
        for name in (
            *("weightDevice", "throttleReadBpsDevice", "throttleWriteBpsDevice"),
            *("throttleReadIOPSDevice", "throttleWriteIOPSDevice"),
        )
    ],
    ("linux/resources/hugepageLimits", [{"pageSize": "2MB", "limit": 5}], "warned"),
    ("linux/resources/network", {"classID": 5}, "warned"),
    ("linux/resources/rdma", {"mlx5_1": {"hcaHandles": 3}}, "warned"),
    ("vm", {"kernel": {"path": "/k"}}, "refused"),
    ("windows", {"layerFolders": ["x"]}, "warned"),
    ("solaris", {"milestone": "x"}, "warned"),
    ("zos", {"namespaces": [{"type": "pid"}]}, "warned"),
    ("freebsd", {"jail": {"parent": "x"}}, "warned"),
    ("linux/tomorrow", {"x": 1}, "warned"),
    ("tomorrow", 5, "warned"),
    ("process/tomorrow", "x", "warned"),
    ("mounts/1/tomorrow", "x", "warned"),
]

CARRIED: dict[str, tuple[str, Any]] = {
    "linux/resources/cpu/burst": ("linux/resources/unified/cpu.max.burst", "1000"),
    "linux": ("linux/namespaces", [{"type": "uts"}]),
    "linux/namespaces": ("linux/namespaces", [{"type": "mount"}]),
    "linux/namespaces/1": ("linux/namespaces/0", {"type": "ipc"}),
    "linux/namespaces/1/type": ("linux/namespaces/0/type", "uts"),
    "mounts": ("mounts/0", {"destination": "/x", "type": "tmpfs", "options": []}),
}
"""Fields that reach the guest elsewhere or in other words."""
