# SPDX-License-Identifier: Apache-2.0
"""Putting a shim where engines look for it, and remembering where it came from."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def join(directories: Sequence[str], pid: int = 0) -> list[str]:
    """Move the process `pid` (0: this one) into each cgroup; answers one line for every one that refused.

    A refusal is no error: a v1 hierarchy that an engine never looks at may be read-only for us. The first move for a while
    sleeps about 10 ms: the kernel waits until no processor is forking by its old idea of who is where.
    """
    refused = []
    for directory in directories:
        try:
            with open(directory + "/cgroup.procs", "wb", buffering=0) as file:
                file.write(b"%d" % pid)
        except OSError as error:
            refused.append(f"cgroup `{directory}` does not take the shim: {error.strerror}")
    return refused


def homes(directories: Sequence[str]) -> list[str]:
    """For every hierarchy that `directories` lie in, the cgroup that this process is in now."""
    found = []
    for point, path in _memberships():
        if any(directory == point or directory.startswith(point + "/") for directory in directories):
            found.append(os.path.normpath(point + path))
    return found


def _memberships() -> list[tuple[str, str]]:
    """(mount point, our path below it) of each mounted hierarchy."""
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        lines = [line.rstrip("\n").split(":", 2) for line in file]
    found = []
    for point, root, kind, options in _mounts():
        for _, controllers, path in lines:
            unified = not controllers
            if unified != (kind == "cgroup2") or not (unified or set(controllers.split(",")) <= options):
                continue
            found.append((point, "/" + os.path.relpath(path, root) if root != "/" else path))
    return found


def _mounts() -> list[tuple[str, str, str, set[str]]]:
    """(mount point, root within the hierarchy, type, super block options) of each cgroup mount."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            kind, _, options = after.split(" ", 2)
            if kind in ("cgroup", "cgroup2"):
                fields = before.split(" ")
                found.append((fields[4], fields[3], kind, set(options.strip().split(","))))
    return found
