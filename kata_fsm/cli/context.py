# SPDX-License-Identifier: Apache-2.0
"""What the global options say. Hot path: imports nothing but the world."""

from kata_fsm.world import run_dir


class Context:
    """The global options of one invocation, and what it is about."""

    __slots__ = (
        "asked",
        "config",
        "container",
        "debug",
        "log",
        "log_format",
        "pending",
        "root",
        "seq",
        "stream",
        "systemd_cgroup",
        "verb",
    )

    def __init__(self) -> None:
        self.root = run_dir()
        self.log: str | None = None
        self.log_format = "text"
        self.config: str | None = None
        self.debug = False
        self.systemd_cgroup = False
        self.verb = ""
        # What a log line belongs to, as far as the verb has got: the container, its sandbox's stream, and whether its
        # supervisor was asked (then there is a record of that).
        self.container = ""
        self.stream = ""
        self.asked = False
        self.seq = 0  # of the record that holds the command, once its supervisor has said so
        self.pending: list[tuple[str, str]] = []  # lines (level, message) that wait until that is known
