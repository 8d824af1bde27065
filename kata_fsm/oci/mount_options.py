# SPDX-License-Identifier: Apache-2.0
"""The words in `mounts[].options` that are options of any mount; what is none of them is the file system's own."""

_RECURSIVE = ("ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec")

APPLIED = frozenset(
    [
        *("defaults", "bind", "rbind", "remount", "tmpcopyup"),
        *("sync", "async", "dirsync", "mand", "nomand", "diratime", "nodiratime"),
        *("atime", "noatime", "relatime", "norelatime", "strictatime", "nostrictatime"),
        *(*_RECURSIVE, *("r" + word for word in _RECURSIVE)),
        *("private", "rprivate", "slave", "rslave", "unbindable", "runbindable"),
    ]
)
"""Those that the guest's crun (1.8.1) applies: it fails with other recursive ones; `idmap` is refused, and `shared` only
warned about, for what is mounted in the guest stays there."""
