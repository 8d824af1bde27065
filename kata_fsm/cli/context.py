# SPDX-License-Identifier: Apache-2.0
"""What the global options say. Hot path: imports nothing but the world."""

from kata_fsm.world import run_dir


class Context:
    """The global options of one invocation."""

    __slots__ = ("config", "debug", "log", "log_format", "root", "systemd_cgroup", "verb")

    def __init__(self) -> None:
        self.root = run_dir()
        self.log: str | None = None
        self.log_format = "text"
        self.config: str | None = None
        self.debug = False
        self.systemd_cgroup = False
        self.verb = ""
