# SPDX-License-Identifier: Apache-2.0
"""A supervisor that speaks the protocol and runs nothing: `stub_supervisor.py ID --stream STREAM --ready-fd N`.

What it does is told by STUB in its environment's state directory (a JSON file `stub.json`): refuse to start, refuse the
creation, end in the middle, or answer it and play a workload that echoes its input and exits with 7.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

from kata_fsm import control
from kata_fsm.world import Paths, state_dir


class Client:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.decoder = control.Decoder()
        self.fds: list[int] = []

    def receive(self) -> dict[str, Any]:
        while (message := self.decoder.next()) is None:
            data, ancillary, _, _ = self.connection.recvmsg(65536, 1024, socket.MSG_CMSG_CLOEXEC)
            if not data:
                return {}
            self.fds += control.received_fds(ancillary)
            self.decoder.feed(data)
        return message

    def send(self, message: dict[str, Any]) -> None:
        self.connection.sendall(control.encode(message))


def play(shim: Client, stdout: int, stdin: socket.socket) -> None:
    """The workload: echo the input, then exit with 7."""
    while data := stdin.recv(65536):
        os.write(stdout, b"echo: " + data)
    shim.send({"exit": 7})


def serve(listener: socket.socket, plan: dict[str, Any]) -> None:
    client = Client(listener.accept()[0])
    request = client.receive()
    if request["op"] == "exec":
        serve_exec(listener, client, request, plan)
        return
    with open(state_dir() + "/request.json", "w") as file:
        json.dump(request, file)
    if plan.get("die"):
        return
    if plan.get("refuse"):
        client.send({"error": {"family": "world", "message": plan["refuse"], "hint": "try again", "exit": 1}})
        return
    key = request["container"]["id"]
    client.send({"need": "shim", "netns": None, "cgroups": ["/no/such/cgroup"], "container": key, "process": "init"})
    shim = Client(listener.accept()[0])
    hello = shim.receive()
    shim.send({"ok": True})
    client.send({"ok": True, "pid": hello["pid"]})
    play(shim, shim.fds[0], socket.socket(fileno=shim.fds[-1]))
    shim.receive()


def serve_exec(listener: socket.socket, client: Client, request: dict[str, Any], plan: dict[str, Any]) -> None:
    with open(state_dir() + "/request.json", "w") as file:
        json.dump(request, file)
    if plan.get("refuse"):
        client.send({"error": {"family": "spec", "message": plan["refuse"], "hint": None, "exit": 1}})
        return
    shim = Client(listener.accept()[0])
    hello = shim.receive()
    assert (hello["pid"], hello["process"], hello["early"]) == (request["shim"]["pid"], request["exec_id"], True)
    shim.send({"ok": True})
    client.send({"ok": True, "pid": hello["pid"], "warnings": ["exec: a warning"]})
    play(shim, shim.fds[0], socket.socket(fileno=shim.fds[-1]))
    shim.receive()


def main(argv: list[str]) -> int:
    stream, ready = argv[2], int(argv[4])
    with open(state_dir() + "/stub.json") as file:
        plan = json.load(file)
    if plan.get("ready"):
        os.write(ready, json.dumps({"error": {"family": "world", "message": plan["ready"], "exit": 1}}).encode())
        return 1
    paths = Paths(stream.rpartition("@")[2])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(paths.supervisor_sock)
        listener.listen()
        listener.settimeout(20)
        os.write(ready, b"ok\n")
        os.close(ready)
        serve(listener, plan)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
