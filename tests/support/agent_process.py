# SPDX-License-Identifier: Apache-2.0
"""The agent as a real process on the host, and a small client.

The agent runs in a process of its own, with one end of a socket pair as its transport and `pseudo_crun.py` in the place of
crun: that program has crun's command line, pid file, console socket and start fifo, but makes no namespaces. `Client` also
talks to an agent in a virtual machine, over the socket of its serial port.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kata_wire import envelope, methods, table, ttrpc
from kata_wire.session import HELLO_RESEND_S, HostSession

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
LIMIT_S = 20.0  # for anything that is waited for; reached only when a test fails

LAUNCHER = """
import ctypes, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER, which PID 1 is by itself
from guest.agent.agent import Agent, Settings
from guest.agent.loop import Loop
from guest.agent.main import prepare, run
from guest.agent.server import Server
base, transport, crun = sys.argv[1], sys.argv[2], sys.argv[3]
settings = Settings()
settings.state_dir = base + "/state"
settings.crun = (sys.executable, "-I", "-S", crun)
settings.crun_root = base + "/crun"
settings.cgroup_root = base + "/cgroup"
settings.shared_root = base + "/shared"
settings.resolv_conf = base + "/resolv.conf"
settings.log_calls = sys.argv[4] == "log"
prepare(settings)
loop = Loop()
Server(Agent(loop, settings)).serve(0, serial=transport == "serial")
run(loop)
"""


class CallError(Exception):
    """A call that was answered with a status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"status {code}: {message}")
        self.code = code
        self.message = message


class Client:
    """Calls over one socket. `start` sends, `finish` waits for that answer, `call` is both."""

    def __init__(self, sock: socket.socket, *, serial: bool = True) -> None:
        self.sock = sock
        self._stream_id = -1
        self._messages: dict[int, str] = {}
        self._answers: dict[int, envelope.Response] = {}
        self._session: HostSession | ttrpc.Decoder = ttrpc.Decoder()
        if serial:
            session = HostSession(os.urandom(16))
            self._session = session
            while not session.established:
                self.sock.sendall(session.hello())
                self._wait_until(lambda: session.established, HELLO_RESEND_S, give_up=False)

    def start(self, method: str, value: dict[str, Any] | None = None, timeout_ns: int = 0) -> int:
        """Send a call; returns its stream id."""
        service = next(name for name, known in methods.METHODS.items() if method in known)
        request, response = methods.METHODS[service][method]
        stream_id = self._next_id(response)
        parts = envelope.request_parts(stream_id, service, method, request, value or {}, timeout_ns)
        self.sock.sendall(b"".join(parts))
        return stream_id

    def start_raw(self, kind: int, payload: bytes, response: str = "google.protobuf.Empty") -> int:
        """Send any frame."""
        stream_id = self._next_id(response)
        self.sock.sendall(ttrpc.encode(stream_id, kind, 0, payload))
        return stream_id

    def expect(self, response: str) -> int:
        """A stream id for a frame that the test writes itself."""
        return self._next_id(response)

    def finish(self, stream_id: int, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """The answer. Raises CallError, TimeoutError."""
        self._wait_until(lambda: stream_id in self._answers, limit_s)
        answer = self._answers.pop(stream_id)
        if answer.code:
            raise CallError(answer.code, answer.error)
        return table.decode(self._messages.pop(stream_id), answer.payload)

    def call(self, method: str, value: dict[str, Any] | None = None, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """Both."""
        return self.finish(self.start(method, value), limit_s)

    def answered(self, stream_id: int) -> bool:
        """Has the answer come? Looks, does not wait."""
        while stream_id not in self._answers and select.select([self.sock], [], [], 0)[0]:
            self._receive()
        return stream_id in self._answers

    def _next_id(self, response: str) -> int:
        self._stream_id += 2
        self._messages[self._stream_id] = response
        return self._stream_id

    def _wait_until(self, condition: Callable[[], bool], limit_s: float, *, give_up: bool = True) -> None:
        end = time.monotonic() + limit_s
        while not condition():
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.sock], [], [], left)[0]:
                if give_up:
                    raise TimeoutError(f"no answer in {limit_s} s")
                return
            self._receive()

    def _receive(self) -> None:
        data = self.sock.recv(1 << 20)
        if not data:
            raise ConnectionError("the agent has closed the connection")
        self._session.feed(data)
        while (frame := self._session.next()) is not None:
            self._answers[frame.stream_id] = envelope.parse_response(frame.payload)


class AgentProcess:
    """The agent, running. `base` holds all it writes."""

    def __init__(self, base: Path, transport: str, *, log_calls: bool = False) -> None:
        self.base = base
        ours, theirs = socket.socketpair()
        self.sock = ours
        arguments = [str(base), transport, str(HERE / "pseudo_crun.py"), "log" if log_calls else ""]
        # mounts, host name and network of its own: this machine's are not for tests to change
        isolated = ["unshare", "-mun", *([] if os.geteuid() == 0 else ["--map-root-user"])]
        self.process = subprocess.Popen(
            [*isolated, sys.executable, "-c", LAUNCHER, *arguments],
            stdin=theirs,
            stderr=subprocess.PIPE,
            cwd=CHECKOUT,
            start_new_session=True,
        )
        theirs.close()
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """The first session."""
        if self._client is None:
            self._client = Client(self.sock)
        return self._client

    def stop(self) -> bytes:
        """End it, and what it started; returns what it had to say."""
        self.sock.close()
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        pids = [int(pid) for pid in children.read_text().split()]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # the agent has reaped it meanwhile
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        return self.process.communicate()[1]


def process(*args: str, terminal: bool = False) -> dict[str, Any]:
    """An OCI `process`, as a call carries it."""
    oci = {"args": list(args), "cwd": "/", "env": ["PATH=/usr/bin:/bin"], "user": {"uid": 0, "gid": 0}}
    return {"raw_json": json.dumps({**oci, "terminal": terminal}).encode()}


def container(container_id: str, *args: str, terminal: bool = False) -> dict[str, Any]:
    """A CreateContainer request. The stand-in for crun looks at the process alone."""
    spec = {
        "ociVersion": "1.2.0",
        "process": json.loads(process(*args, terminal=terminal)["raw_json"]),
        "root": {"path": "/"},
        "linux": {"namespaces": [{"type": "pid"}]},
    }
    return {"container_id": container_id, "exec_id": container_id, "OCI": {"raw_json": json.dumps(spec).encode()}}


def read_all(client: Client, container_id: str, exec_id: str = "", stream: int = 1, offset: int = 0) -> bytes:
    """Everything from `offset` to the end of a stream."""
    found = bytearray()
    while True:
        request = {
            "container_id": container_id,
            "exec_id": exec_id,
            "stream": stream,
            "len": 1 << 20,
            "timeout_ms": 1000,
        }
        answer = client.call("ReadStream", {**request, "offset": offset + len(found)})
        found += answer.get("data", b"")
        if answer.get("eof"):
            return bytes(found)
