# SPDX-License-Identifier: Apache-2.0
"""Whose processes a further container of a pod is to see.

Engines name a namespace by the pid that they know a container by: `/proc/PID/ns/pid`, its shim's. Mostly that is the
sandbox's own container; for a debugging container it is the one looked into (CRI's `TARGET`).
"""

from __future__ import annotations

import re

from kata_fsm.argv import argv_of
from kata_fsm.oci.guest import Adapted
from kata_fsm.oci.sandbox import Place
from kata_fsm.oci.spec import Loaded

TARGET = "container:"
"""How the guest is told, in the path of the pid namespace (guest/agent/bundle.py)."""

_PATH = re.compile(r"/proc/([0-9]+)/ns/pid\Z")


def name_target(loaded: Loaded, adapted: Adapted, place: Place) -> None:
    """Put the container whose processes are meant into the guest's specification, if it is not the sandbox's own."""
    if not adapted.sandbox_pidns:
        return
    linux = loaded.spec.linux
    paths = [each.path or "" for each in (linux.namespaces if linux else None) or [] if each.type == "pid"]
    match = _PATH.match(paths[0]) if paths else None
    owner = container_of(int(match[1])) if match else ""
    if owner in ("", place.sandbox):
        return
    for namespace in adapted.guest_spec["linux"]["namespaces"]:
        if namespace["type"] == "pid":
            namespace["path"] = TARGET + owner


def container_of(pid: int) -> str:
    """The container whose init process the shim `pid` stands for; "" for a process that is no shim of ours."""
    words = argv_of(pid)
    if "shim" not in words or "--container" not in words[:-1]:
        return ""
    return words[words.index("--container") + 1]
