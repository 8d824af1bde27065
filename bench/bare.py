# SPDX-License-Identifier: Apache-2.0
"""The same virtual machine without the runtime: QEMU alone, by the very command line that the product would build.

The argv comes from the product's builder with the product's settings and its choice of accelerator, and the kernel and
initrd are those of the image. So what differs from a sandbox is the runtime alone.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from types import TracebackType

import trio

from bench.kit import BenchError
from kata_fsm.config.load import load as load_config
from kata_fsm.config.settings import hypervisor_settings
from kata_fsm.effects.hypervisor import argv, image, kvm
from kata_fsm.effects.hypervisor.settings import from_dict
from kata_fsm.world import Paths
from kata_wire import envelope, messages, session, ttrpc

LIMIT_S = 60.0
_POLL_S = 0.005  # as the product looks for the socket


class Bare:
    """One QEMU. Entering starts it; leaving kills it. `parameters` are added to the kernel's command line."""

    def __init__(self, parameters: str = "") -> None:
        self.paths = Paths(os.urandom(6).hex())
        settings = from_dict(hypervisor_settings(load_config(None)))
        guest = image.load(settings)
        self.accel = trio.run(kvm.choose, settings, guest).accel
        self.argv = argv.build(settings, self.paths, guest, self.accel, "bare")
        if parameters:
            self.argv[self.argv.index("-append") + 1] += " " + parameters
        self.started = 0.0
        self._port: socket.socket | None = None
        self._qemu: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Bare:
        for directory in (self.paths.base, self.paths.logs):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        self.started = time.monotonic()
        self._qemu = subprocess.Popen(
            self.argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._port is not None:
            self._port.close()
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
        for directory in (self.paths.base, self.paths.logs):
            shutil.rmtree(directory, ignore_errors=True)

    def connect(self) -> socket.socket:
        """The agent's port, as soon as QEMU has made its socket."""
        deadline = self.started + LIMIT_S
        while True:
            port = socket.socket(socket.AF_UNIX)
            try:
                port.connect(self.paths.agent_sock)
            except OSError as error:
                port.close()
                if time.monotonic() > deadline or self._qemu is None or self._qemu.poll() is not None:
                    raise BenchError(f"QEMU did not come up: {error}") from error
                time.sleep(_POLL_S)
                continue
            port.settimeout(session.HELLO_RESEND_S)
            self._port = port
            return port

    def ping(self) -> float:
        """Opens a session with the agent and asks whether it lives; seconds since QEMU's start."""
        port = self.connect()
        opened = session.HostSession(os.urandom(session.NONCE_BYTES))
        port.sendall(opened.hello())
        while not opened.established:
            self._feed(port, opened, again=opened.hello())
        request = messages.ttrpc.Request(
            service="grpc.Health", method="Check", payload=messages.health.CheckRequest().SerializeToString()
        )
        port.sendall(ttrpc.encode(1, ttrpc.REQUEST, 0, request.SerializeToString()))
        while (frame := opened.next()) is None:
            self._feed(port, opened)
        took = time.monotonic() - self.started
        reply = envelope.parse_response(frame.payload)
        if reply.code != envelope.OK:
            raise BenchError(f"the agent refused a ping: {reply.error}")
        return took

    def _feed(self, port: socket.socket, opened: session.HostSession, again: bytes = b"") -> None:
        try:
            data = port.recv(65536)
        except TimeoutError:
            if time.monotonic() > self.started + LIMIT_S:
                raise BenchError(f"the agent did not answer within {LIMIT_S:g} s:\n{self.console()}") from None
            port.sendall(again)
            return
        if not data:
            raise BenchError(f"the machine ended:\n{self.console()}")
        opened.feed(data)

    def console(self) -> str:
        """The last of what the guest printed."""
        try:
            with open(self.paths.console_log, encoding="utf-8", errors="replace") as file:
                return file.read()[-2000:]
        except OSError:
            return ""
