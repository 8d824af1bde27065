# SPDX-License-Identifier: Apache-2.0
"""Stands in for crun on a host without cgroup v2: `create`, `start`, `exec`, `update`, and no namespaces.

It is a real program that leaves a real process behind, with crun's command line, pid file, start fifo, console socket and
log. `args[0]` of `/fail` makes it fail as crun does; `/hang` makes it never end.
"""

import json
import os
import select
import signal
import socket
import sys


def options(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """(options with their value, the rest)."""
    found: dict[str, str] = {}
    rest: list[str] = []
    flags = {"--detach", "--no-pivot"}
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            rest.append(word)
        elif word in flags:
            found[word] = ""
        elif "=" in word:
            name, _, found_value = word.partition("=")
            found[name] = found_value
        else:
            found[word] = words.pop(0)
    return found, rest


def main() -> None:
    """One run."""
    given, (verb, container_id) = options(sys.argv[1:])
    directory = f"{given['--root']}/{container_id}"
    if verb == "create":
        os.makedirs(directory)
        os.mkfifo(f"{directory}/exec.fifo")
        with open(f"{given['--bundle']}/config.json") as file:
            spec = json.load(file)
        leave_behind(given, spec["process"], f"{directory}/exec.fifo")
    elif verb == "exec":
        with open(given["--process"]) as file:
            leave_behind(given, json.load(file), None)
    elif verb == "update":
        with open(given["--resources"]) as file, open(f"{directory}/updated", "w") as copy:
            copy.write(file.read())


def leave_behind(given: dict[str, str], process: dict[str, object], fifo: str | None) -> None:
    """Fork the container's process, write its pid, end."""
    args = process["args"]
    assert isinstance(args, list)
    if args[0] == "/fail":
        with open(given["--log"], "w") as log:
            log.write("executable file `/fail` not found: No such file or directory\n")
        sys.exit(1)
    if args[0] == "/hang":
        signal.pause()
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK) if fifo is not None else -1
    slave = -1
    if process.get("terminal"):
        master, slave = os.openpty()
        console = socket.socket(socket.AF_UNIX)
        console.connect(given["--console-socket"])
        socket.send_fds(console, [b"/dev/ptmx"], [master])
        console.close()
        os.close(master)
    pid = os.fork()
    if pid:
        with open(given["--pid-file"], "w") as file:
            file.write(str(pid))
        return
    os.setsid()
    if slave >= 0:
        os.login_tty(slave)
    if fifo is not None:
        select.select([reader], [], [])  # until a byte was written; its writer has unlinked the path by then
        os.close(reader)
    env = dict(item.split("=", 1) for item in process.get("env") or [])  # type: ignore[attr-defined]
    os.execve(args[0], args, env)


main()
