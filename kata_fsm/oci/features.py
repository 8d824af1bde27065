# SPDX-License-Identifier: Apache-2.0
"""What this runtime supports, for `features`. Everything in it is so: a feature is named only when the guest gives it."""

from __future__ import annotations

from typing import Any

from kata_fsm import __version__
from kata_fsm.oci.check import GUEST_MOUNT_TYPES
from kata_fsm.oci.mount_options import APPLIED
from kata_fsm.oci.spec import CAPABILITIES

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


SECCOMP_ARCHS = ["SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_X86_64"]

SECCOMP_FLAGS = ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"]

UNSAFE_ANNOTATIONS = ["io.katacontainers.config."]
"""By their beginning: they change the sandbox, as far as the configuration's `enable_annotations` lets them."""


def features() -> dict[str, Any]:
    """The document (runtime-spec, features.md)."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": sorted(APPLIED),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": CAPABILITIES,
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": False, "rdma": False},
            "seccomp": {
                "enabled": True,
                "actions": SECCOMP_ACTIONS,
                "operators": SECCOMP_OPERATORS,
                "archs": SECCOMP_ARCHS,
                "knownFlags": SECCOMP_FLAGS,
                "supportedFlags": SECCOMP_FLAGS,
            },
            "apparmor": {"enabled": False},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
            "netDevices": {"enabled": False},
        },
        "potentiallyUnsafeConfigAnnotations": UNSAFE_ANNOTATIONS,
        "annotations": {
            "org.kata-fsm.version": __version__,
            "org.kata-fsm.isolation": "virtual machine",
            "org.kata-fsm.guest.mount-types": ",".join(sorted(GUEST_MOUNT_TYPES)),
        },
    }
