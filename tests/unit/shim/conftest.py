# SPDX-License-Identifier: Apache-2.0
"""A supervisor's socket in the test's hands, and real shims that attach to it."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kata_fsm import control
from kata_fsm.cli import launcher
from kata_fsm.world import Paths

LIMIT_S = 20.0
UID = "0123456789ab"
STREAM = f"box@{UID}"


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for `condition`, with a limit."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        select.select([], [], [], 0.005)


class Attached:
    """One attached shim, as its supervisor sees it."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.settimeout(LIMIT_S)
        self._decoder = control.Decoder()
        self.fds: list[int] = []
        self.hello = self.receive()

    def receive(self) -> dict[str, Any]:
        while (message := self._decoder.next()) is None:
            data, ancillary, _, _ = self.connection.recvmsg(65536, socket.CMSG_SPACE(64), socket.MSG_CMSG_CLOEXEC)
            assert data, "the shim hung up"
            self.fds += control.received_fds(ancillary)
            self._decoder.feed(data)
        return message

    def send(self, message: dict[str, Any]) -> None:
        self.connection.sendall(control.encode(message))

    def write(self, stream: str, data: bytes) -> None:
        fd = self.fds[self.hello["streams"].index(stream)]
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def close_outputs(self) -> None:
        for fd in self.fds[:-1]:
            os.close(fd)
        del self.fds[:-1]

    @property
    def stdin(self) -> socket.socket:
        """A descriptor of its own for the input."""
        taken = socket.socket(fileno=os.dup(self.fds[-1]))
        taken.settimeout(LIMIT_S)
        return taken

    def vanish(self) -> None:
        """What a SIGKILL does to a supervisor's descriptors."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        self.connection.close()


class Peer:
    """The socket of a sandbox's supervisor, and the shims that it is tested with."""

    def __init__(self, tmp_path: Path) -> None:
        self.directory = tmp_path
        self.environment = {"KATA_FSM_RUN": str(tmp_path / "run"), "KATA_FSM_STATE": str(tmp_path / "state")}
        self.paths = Paths(UID)
        os.makedirs(self.paths.base)
        self.command = tmp_path / "kata-fsm"
        launcher_text = launcher.text(os.path.realpath(sys.executable), launcher.search_path())
        marker = tmp_path / "started"
        # Starting a supervisor leaves a mark instead.
        mark = f"open({str(marker)!r}, 'a').write(repr(sys.argv) + '\\n')"
        hook = f"if sys.argv[1] == 'supervisor':\n    {mark}\n    sys.exit(0)\n"
        self.started = marker
        self.command.write_text(launcher_text.replace("import sys\n", "import sys\n" + hook, 1))
        self.command.chmod(0o755)
        self.attached: list[Attached] = []
        self.shims: list[subprocess.Popen[bytes]] = []
        self.listener = self.listen()

    until = staticmethod(until)

    def listen(self) -> socket.socket:
        if os.path.exists(self.paths.supervisor_sock):
            os.unlink(self.paths.supervisor_sock)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.paths.supervisor_sock)
        listener.listen(8)
        listener.settimeout(LIMIT_S)
        return listener

    def accept(self) -> Attached:
        connection, _ = self.listener.accept()
        attached = Attached(connection)
        self.attached.append(attached)
        attached.send({"ok": True})
        return attached

    def start(self, *extra: str, **how: Any) -> subprocess.Popen[bytes]:
        argv = [str(self.command), "shim", "box", "--stream", STREAM, "--container", "box", *extra]
        how.setdefault("stdin", subprocess.DEVNULL)
        shim = subprocess.Popen(argv, env=self.environment, **how)
        self.shims.append(shim)
        return shim

    def close(self) -> None:
        for shim in self.shims:
            if shim.poll() is None:
                shim.send_signal(signal.SIGKILL)
            shim.wait(LIMIT_S)
            for stream in (shim.stdin, shim.stdout, shim.stderr):
                if stream is not None:
                    stream.close()
        for attached in self.attached:
            attached.vanish()
        self.listener.close()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory in which a socket's path is short enough (unix(7): 108 bytes), however deep pytest's own is."""
    with tempfile.TemporaryDirectory(prefix="kf-") as made:
        yield Path(made)


@pytest.fixture
def peer(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    monkeypatch.setenv("KATA_FSM_RUN", str(short_path / "run"))
    monkeypatch.setenv("KATA_FSM_STATE", str(short_path / "state"))
    made = Peer(short_path)
    yield made
    made.close()
