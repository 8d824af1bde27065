# SPDX-License-Identifier: Apache-2.0
"""A unit that `podman generate systemd` has written, and what systemd would do with it (systemd.service(5))."""

from __future__ import annotations

import os
import shlex
import socket
from pathlib import Path

from tests.support.engines import Podman
from tests.support.kata import LIMIT_S, wait_until


class Unit:
    """The commands of one unit, run in systemd's order. `%t` and `%n` are a directory of the test and the unit's name."""

    def __init__(self, podman: Podman, text: str) -> None:
        self.podman = podman
        self.settings: dict[str, str] = {}
        for line in text.replace("\\\n", " ").splitlines():
            name, _, value = line.partition("=")
            self.settings[name] = value.replace("%t", str(podman.base)).replace("%n", "unit.service")

    def _run(self, name: str) -> None:
        """Run the command of a setting, podman with its private places, which only some of podman's lines have."""
        program, *words = shlex.split(self.settings[name])
        if program.endswith("/podman"):
            self.podman(*(word for word in words if word not in self.podman.places()))
        elif program == "/bin/rm":
            Path(words[-1]).unlink(missing_ok=True)
        else:
            raise AssertionError(f"{name} runs `{program}`")

    def start(self) -> int:
        """ExecStartPre and ExecStart; the main pid, as the unit's type has it told."""
        if "ExecStartPre" in self.settings:
            self._run("ExecStartPre")
        if self.settings["Type"] == "forking":
            self._run("ExecStart")
            return int(Path(self.settings["PIDFile"]).read_text())
        assert self.settings["Type"] == "notify"
        return self._start_notified()

    def _start_notified(self) -> int:
        """sd_notify(3): datagrams of lines NAME=VALUE; `READY=1` says that it is up."""
        path = self.podman.base / "notify"
        told: dict[str, str] = {}
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(path))
            listener.settimeout(LIMIT_S)
            self.podman.env["NOTIFY_SOCKET"] = str(path)
            try:
                self._run("ExecStart")
                while told.get("READY") != "1" or "MAINPID" not in told:
                    told.update(line.split("=", 1) for line in listener.recv(4096).decode().splitlines())
            finally:
                del self.podman.env["NOTIFY_SOCKET"]
                path.unlink()
        return int(told["MAINPID"])

    def stop(self) -> None:
        """ExecStop and ExecStopPost."""
        self._run("ExecStop")
        self._run("ExecStopPost")

    def after_the_end(self) -> None:
        """What is run when the main process has ended by itself."""
        self._run("ExecStopPost")

    @staticmethod
    def wait_for_end(pid: int) -> None:
        """Until the main process is gone: systemd is told by the kernel."""
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), f"process {pid} ends")
