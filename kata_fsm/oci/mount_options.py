# SPDX-License-Identifier: Apache-2.0
"""The words in `mounts[].options` that are options of any mount; what is none of them is the file system's own."""

RECURSIVE = [
    "ro",
    "rw",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "sync",
    "async",
    "dirsync",
    "mand",
    "nomand",
]
_TIMES = ["atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime"]

APPLIED = frozenset(
    [
        *("defaults", "bind", "rbind", "remount", "tmpcopyup"),
        *(word for plain in (*RECURSIVE, *_TIMES) for word in (plain, "r" + plain)),
        *("private", "rprivate", "slave", "rslave", "unbindable", "runbindable"),
    ]
)
"""Those that the guest's crun (1.8.1) has, without `idmap`, which is refused, and `shared`: what is mounted in the guest
stays there, which is warned about."""

TOLD = frozenset({"shared", "rshared"})
"""Known, and warned about elsewhere."""
