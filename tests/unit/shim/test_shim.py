# SPDX-License-Identifier: Apache-2.0
"""The shim against a supervisor's socket that the test holds: real processes, pipes, sockets and terminals."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import subprocess
import termios
import threading
from pathlib import Path
from typing import Any

import pytest

LIMIT_S = 20.0
BIG = bytes(range(256)) * 20_000  # 5 MB: more than every buffer on the way


def test_says_who_it_is_and_exits_with_the_workloads_code(peer: Any) -> None:
    shim = peer.start(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    attached = peer.accept()
    hello = attached.hello
    assert (hello["op"], hello["container"], hello["process"], hello["pid"]) == ("attach", "box", "init", shim.pid)
    assert (hello["streams"], hello["fds"], hello["tty"]) == (["stdout", "stderr", "stdin"], 3, False)
    assert (hello["delivered"], hello["stdin_sent"]) == ({"stdout": 0, "stderr": 0}, 0)
    stat = Path(f"/proc/{shim.pid}/stat").read_text()
    assert hello["start_ticks"] == int(stat.rpartition(")")[2].split()[19])
    attached.write("stdout", b"out")
    attached.write("stderr", b"err")
    attached.send({"exit": 42})
    out, err = shim.communicate(timeout=LIMIT_S)
    assert (out, err, shim.returncode) == (b"out", b"err", 42)


def test_a_large_stream_arrives_whole_before_the_exit(peer: Any) -> None:
    shim = peer.start(stdout=subprocess.PIPE)
    attached = peer.accept()

    def produce() -> None:
        attached.write("stdout", BIG)
        attached.send({"exit": 0})

    producer = threading.Thread(target=produce)
    producer.start()
    out, _ = shim.communicate(timeout=LIMIT_S)
    producer.join()
    assert out == BIG


def test_stdin_arrives_and_ends(peer: Any) -> None:
    shim = peer.start(stdin=subprocess.PIPE)
    attached = peer.accept()
    shim.stdin.write(b"question")
    shim.stdin.close()
    assert attached.receive() == {"op": "stdin_eof"}
    with attached.stdin as stdin:
        assert stdin.recv(100) == b"question"
        assert stdin.recv(100) == b""
    attached.send({"exit": 0})
    assert shim.wait(LIMIT_S) == 0


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH, signal.SIGUSR1, signal.SIGRTMIN + 3]
)
def test_forwards_signals(peer: Any, number: int) -> None:
    shim = peer.start()
    attached = peer.accept()
    shim.send_signal(number)
    while (message := attached.receive())["op"] == "stdin_eof":
        pass
    assert message == {"op": "signal", "signal": number}
    attached.send({"exit": 128 + number})
    assert shim.wait(LIMIT_S) == 128 + number


def test_a_signal_sent_before_it_is_up_is_not_lost(peer: Any) -> None:
    def block_all() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())

    shim = peer.start(preexec_fn=block_all)
    shim.send_signal(signal.SIGTERM)
    attached = peer.accept()
    while (message := attached.receive())["op"] == "stdin_eof":
        pass
    assert message == {"op": "signal", "signal": signal.SIGTERM}
    attached.send({"exit": 0})
    assert shim.wait(LIMIT_S) == 0


def test_a_terminal_has_one_output_a_size_and_tells_its_changes(peer: Any) -> None:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    shim = peer.start("--tty", stdin=slave, stdout=slave, stderr=slave, preexec_fn=own_terminal)
    os.close(slave)
    attached = peer.accept()
    assert (attached.hello["streams"], attached.hello["winsize"]) == (["stdout", "stdin"], [24, 80])
    attached.write("stdout", b"prompt> ")
    assert os.read(master, 100) == b"prompt> "
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 132, 0, 0))
    assert attached.receive() == {"op": "winsize", "rows": 50, "cols": 132}
    attached.send({"exit": 0})
    assert shim.wait(LIMIT_S) == 0
    os.close(master)


def test_a_nonblocking_stdout_loses_nothing(peer: Any) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    shim = peer.start(stdout=writer)
    os.close(writer)
    attached = peer.accept()

    def produce() -> None:
        attached.write("stdout", BIG)
        attached.send({"exit": 0})

    producer = threading.Thread(target=produce)
    producer.start()
    with os.fdopen(reader, "rb") as file:
        assert file.read() == BIG
    producer.join()
    assert shim.wait(LIMIT_S) == 0


def test_a_stdout_nobody_reads_does_not_hold_up_stderr(peer: Any) -> None:
    shim = peer.start(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    attached = peer.accept()
    producer = threading.Thread(target=attached.write, args=("stdout", BIG))
    producer.start()
    attached.write("stderr", b"first")
    assert os.read(shim.stderr.fileno(), 100) == b"first"
    assert len(shim.stdout.read(len(BIG))) == len(BIG)
    producer.join()
    attached.send({"exit": 0})
    assert shim.wait(LIMIT_S) == 0


def test_a_gone_reader_does_not_block_the_workload(peer: Any) -> None:
    reader, writer = os.pipe()
    shim = peer.start(stdout=writer)
    os.close(writer)
    os.close(reader)
    attached = peer.accept()
    attached.write("stdout", BIG)  # would block for ever if nobody drained it
    attached.send({"exit": 3})
    assert shim.wait(LIMIT_S) == 3


def test_appends_to_a_file_and_writes_to_a_socket(peer: Any, tmp_path: Path) -> None:
    near, far = socket.socketpair()
    file = tmp_path / "log"
    file.write_bytes(b"before ")
    fd = os.open(file, os.O_WRONLY | os.O_APPEND)
    shim = peer.start(stdout=fd, stderr=far)
    os.close(fd)
    far.close()
    attached = peer.accept()
    attached.write("stdout", b"after")
    attached.write("stderr", b"message")
    assert near.recv(100) == b"message"
    attached.send({"exit": 0})
    assert shim.wait(LIMIT_S) == 0
    assert file.read_bytes() == b"before after"
    near.close()


def test_attaches_again_with_exact_counts_and_keeps_unread_input(peer: Any) -> None:
    lock = os.open(peer.paths.supervisor_lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)  # as if a supervisor were on its way
    shim = peer.start(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    first = peer.accept()
    first.write("stdout", b"0123456789")
    shim.stdin.write(b"abcdef")
    shim.stdin.flush()
    with first.stdin as stdin:
        assert stdin.recv(2) == b"ab"  # consumed; "cdef" was not
    first.vanish()
    second = peer.accept()
    assert second.hello["delivered"] == {"stdout": 10, "stderr": 0}
    assert second.hello["stdin_sent"] == 6
    with second.stdin as stdin:
        assert stdin.recv(10) == b"cdef"
    second.write("stdout", b"ABC")
    second.send({"exit": 5})
    out, _ = shim.communicate(timeout=LIMIT_S)
    assert (out, shim.returncode) == (b"0123456789ABC", 5)
    assert not peer.started.exists()
    os.close(lock)


def test_starts_a_supervisor_where_there_is_none(peer: Any) -> None:
    shim = peer.start()
    first = peer.accept()
    peer.listener.close()
    os.unlink(peer.paths.supervisor_sock)
    first.vanish()
    peer.until(lambda: peer.started.exists() and peer.started.read_text().endswith("\n"), "a supervisor to be started")
    assert "'supervisor', 'box', '--resume', 'box@0123456789ab'" in peer.started.read_text()
    shim.send_signal(signal.SIGUSR1)  # kept for the next supervisor
    peer.listener = peer.listen()
    second = peer.accept()
    assert second.receive() == {"op": "signal", "signal": signal.SIGUSR1}
    second.send({"exit": 0})
    assert shim.wait(LIMIT_S) == 0


def test_a_refusal_ends_it_with_the_unknown_code_and_no_words(peer: Any) -> None:
    shim = peer.start(stderr=subprocess.PIPE)
    connection, _ = peer.listener.accept()
    from kata_fsm import control

    connection.sendall(control.encode({"error": {"family": "caller", "message": "no", "hint": None, "exit": 1}}))
    _, err = shim.communicate(timeout=LIMIT_S)
    assert (shim.returncode, err) == (255, b"")
    connection.close()


def test_stays_small(peer: Any) -> None:
    shim = peer.start()
    attached = peer.accept()
    attached.write("stdout", b"x")
    rollup = Path(f"/proc/{shim.pid}/smaps_rollup").read_text()
    private = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))
    assert private < 4096, f"{private} KiB of its own"
    attached.send({"exit": 0})
    assert shim.wait(LIMIT_S) == 0
