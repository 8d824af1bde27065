# SPDX-License-Identifier: Apache-2.0
"""The agent's process. In the guest it is the one child of PID 1 and never returns: its end is the machine's."""

from __future__ import annotations

import gc
import os

from . import VERSION, files, ports
from .agent import Agent, Settings
from .loop import Loop
from .report import say, say_error
from .server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_GC_THRESHOLD = 20_000  # objects; the default, 700, costs a collection every few calls and finds nothing
_CONTROLLERS = ("cpu", "cpuset", "hugetlb", "io", "memory", "pids")


def main() -> None:
    """Serve for ever on the transport that the kernel's command line names (`agent.transport=serial` or `vsock`); with
    `agent.log=debug` each call is on the console."""
    gc.set_threshold(_GC_THRESHOLD)
    settings = Settings()
    loop = Loop()
    agent = Agent(loop, settings)
    server = Server(agent)
    prepare(settings)
    try:
        agent.children.spare(settings.procfs)
    except OSError as error:
        say_error("oom_score_adj", error)
    line = files.read_or(f"{settings.procfs}/cmdline", "")
    patience = ports.parameter(line, "agent.create_container_timeout", "")
    if patience.isdigit():
        settings.crun_timeout_s = max(float(patience), settings.crun_timeout_s)
    settings.log_calls = ports.parameter(line, "agent.log", "") in ("debug", "trace")
    transport = ports.parameter(line, "agent.transport", "serial")

    def opened(fd: Any, error: Exception | None) -> None:
        if error is not None:
            say_error("transport", error)
        elif transport != "vsock":
            server.serve(fd, serial=True)

    if transport == "vsock":
        loop.start(ports.listen_vsock(loop, ports.VSOCK_PORT, lambda fd: server.serve(fd, serial=False)), opened)
    else:
        loop.start(ports.open_serial(settings.sysfs), opened)
    say(f"version {VERSION} on {transport}")
    run(loop)


def prepare(settings: Settings) -> None:
    """Directories of ours, and the controllers for the containers' cgroups; what is missing shows when it is needed."""
    os.umask(0o022)
    os.makedirs(settings.state_dir, 0o700, exist_ok=True)
    enable_controllers(settings.cgroup_root)


def enable_controllers(root: str) -> None:
    """Pass every controller on from the root. One by one: the kernel refuses a list in which one is unknown."""
    present = files.read_or(f"{root}/cgroup.controllers", "").split()
    for controller in _CONTROLLERS:
        if controller in present:
            try:
                files.write(f"{root}/cgroup.subtree_control", f"+{controller}")
            except OSError as error:
                say(f"cgroup controller {controller}: {error.strerror}")


def run(loop: Loop) -> None:
    """Turn for ever. Handlers catch their own errors; whatever comes here is a bug, and no reason to stop."""
    while True:
        try:
            loop.turn()
        except Exception as error:
            say_error("loop", error)
