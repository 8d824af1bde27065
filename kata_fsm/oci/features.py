# SPDX-License-Identifier: Apache-2.0
"""What this runtime supports, for `features`. Everything in it is so: a feature is named only when the guest gives it."""

from __future__ import annotations

from typing import Any

from kata_fsm import __version__
from kata_fsm.oci.check import GUEST_MOUNT_TYPES
from kata_fsm.oci.spec import CAPABILITIES


def _words(text: str) -> list[str]:
    return text.split()


MOUNT_OPTIONS = _words(
    "async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noatime nodev "
    "nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid private rbind "
    "relatime remount ro rprivate rslave rw silent slave strictatime suid sync tmpcopyup "
)

SECCOMP_ACTIONS = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
]

SECCOMP_OPERATORS = [
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
]


def features() -> dict[str, Any]:
    """The document (runtime-spec, features.md)."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.0.2-dev",
        "hooks": ["prestart", "createRuntime", "startContainer", "poststart", "poststop"],
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "capabilities": CAPABILITIES,
            "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False, "rdma": False},
            "seccomp": {"enabled": True, "actions": SECCOMP_ACTIONS, "operators": SECCOMP_OPERATORS},
            "apparmor": {"enabled": False},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
        },
        "annotations": {
            "org.kata-fsm.version": __version__,
            "org.kata-fsm.isolation": "virtual machine",
            "org.kata-fsm.guest.mount-types": ",".join(sorted(GUEST_MOUNT_TYPES)),
        },
    }
