# SPDX-License-Identifier: Apache-2.0
"""The host's own log: journald by its native protocol where its socket is, else syslog; neither is no error.

One datagram a line, sent without ever waiting: a log that is full or gone must not change what a verb does. Through the C
module alone, as failing verbs are called often, too.
"""

import _socket
import os
import time

from kata_fsm.limits import SYSTEM_LOG_LINES_MAX, SYSTEM_LOG_WINDOW_S
from kata_fsm.world import WORLD

IDENTIFIER = "kata-fsm"
PRIORITIES = {"error": 3, "warning": 4, "info": 6, "debug": 7}
_DAEMON = 3 << 3  # syslog's facility


def sockets() -> "tuple[str, str]":
    """(journald's socket, syslog's). KATA_FSM_SYSTEM_LOG=`JOURNALD:SYSLOG` names others, for tests; empty: none."""
    given = os.environ.get("KATA_FSM_SYSTEM_LOG")
    if given is None:
        return "/run/systemd/journal/socket", "/dev/log"
    journald, _, syslog = given.partition(":")
    return journald, syslog


class _Rate:
    """At most so many lines in a window of time; what was left out is told with the next line that passes."""

    def __init__(self) -> None:
        self.began_ns = 0
        self.lines = 0
        self.left_out = 0

    def passes(self) -> bool:
        now = WORLD.mono_ns()
        if now - self.began_ns > SYSTEM_LOG_WINDOW_S * 1e9:
            self.began_ns, self.lines = now, 0
        self.lines += 1
        if self.lines > SYSTEM_LOG_LINES_MAX:
            self.left_out += 1
            return False
        return True


RATE = _Rate()


def send(level: str, message: str, fields: "dict[str, object]") -> None:
    """One line. `fields`: `sandbox`, `container`, `seq`, `command` where they are known."""
    if not RATE.passes():
        return
    if RATE.left_out:
        message, RATE.left_out = f"{message} ({RATE.left_out} lines before this one were left out)", 0
    journald, syslog = sockets()
    if journald and os.path.exists(journald):
        _send(journald, journald_datagram(level, message, fields))
    elif syslog and os.path.exists(syslog):
        _send(syslog, syslog_datagram(level, message, fields))


def _send(path: str, data: bytes) -> None:
    try:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        try:
            sock.sendto(data, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL, path)
        finally:
            sock.close()
    except OSError:
        pass  # full, gone, or not to be reached from here: the line is in --log, if there is one


def journald_datagram(level: str, message: str, fields: "dict[str, object]") -> bytes:
    """The native protocol: `NAME=value` lines; a value of several lines has its length (8 bytes, little end) before it."""
    words = {"MESSAGE": message, "PRIORITY": str(PRIORITIES[level]), "SYSLOG_IDENTIFIER": IDENTIFIER}
    words |= {f"KATA_FSM_{name.upper()}": str(value) for name, value in fields.items()}
    parts = []
    for name, value in words.items():
        data = value.encode("utf-8", "backslashreplace")
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


def syslog_datagram(level: str, message: str, fields: "dict[str, object]") -> bytes:
    """RFC 3164, as libc's syslog(3) writes it, with the fields behind the message."""
    now = time.localtime(WORLD.wall_ns() / 1e9)
    tail = "".join(f" {name}={value}" for name, value in fields.items())
    stamp = time.strftime("%b %e %H:%M:%S", now)
    text = f"<{_DAEMON | PRIORITIES[level]}>{stamp} {IDENTIFIER}[{os.getpid()}]: {message}{tail}"
    return text.replace("\n", " ").encode("utf-8", "backslashreplace")
