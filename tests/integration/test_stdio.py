# SPDX-License-Identifier: Apache-2.0
"""Goal: terminals, streams and mounts are what the workload and its caller expect."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import select
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest

from tests.support.kata import LIMIT_S, Kata


def _read_until(fd: int, wanted: bytes, limit_s: float = LIMIT_S) -> bytes:
    """What comes from `fd` up to and with `wanted`."""
    found = b""
    deadline = time.monotonic() + limit_s
    while wanted not in found:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            pytest.fail(f"no {wanted!r} within {limit_s:g} s in {found!r}")
        try:
            data = os.read(fd, 65536)
        except OSError:
            data = b""
        if not data:
            pytest.fail(f"the terminal ended before {wanted!r}: {found!r}")
        found += data
    return found


def test_a_terminal_is_a_terminal(kata: Kata) -> None:
    bundle = kata.bundle("b", "/bin/sh", "-c", 'tty; stty size; read x; echo "<$x>"; read y', terminal=True)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
    before = termios.tcgetattr(theirs)
    runner = subprocess.Popen(
        kata.argv("run", "--bundle", str(bundle), "c1"), env=kata.env, stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    with runner:
        out = _read_until(ours, b"33 111")
        assert b"/dev/pts/" in out or b"/dev/console" in out
        os.write(ours, b"hello\r")
        _read_until(ours, b"<hello>")
        os.write(ours, b"\x03")  # ^C: the guest's terminal turns it into SIGINT
        assert runner.wait(LIMIT_S) == 130
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_a_large_stream_arrives_whole(kata: Kata) -> None:
    size = 50 << 20
    script = f"head -c {size} /dev/zero | tr '\\0' x; echo end >&2"
    argv = kata.argv("run", "--bundle", str(kata.bundle("b", "/bin/sh", "-c", script)), "c1")
    with subprocess.Popen(argv, env=kata.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as runner:
        assert runner.stdout is not None
        digest, length = hashlib.sha256(), 0
        while data := runner.stdout.read(1 << 20):
            digest.update(data)
            length += len(data)
        assert runner.wait(LIMIT_S) == 0
    assert length == size
    assert digest.digest() == hashlib.sha256(b"x" * size).digest()


def test_bind_mounts_respect_read_only_and_files(kata: Kata, tmp_path: Path) -> None:
    (tmp_path / "ro").mkdir()
    (tmp_path / "rw").mkdir()
    (tmp_path / "ro" / "note").write_text("from the host\n")
    (tmp_path / "file").write_text("one file\n")
    script = (
        "cat /ro/note /file; touch /ro/x 2>/dev/null && echo BAD; echo y > /file 2>/dev/null && echo BAD;"
        " echo written > /rw/out; mount | grep -c ' /ro ' >/dev/null; touch /top && echo rootfs-writable"
    )
    mounts = [
        {"destination": "/ro", "type": "bind", "source": str(tmp_path / "ro"), "options": ["rbind", "ro"]},
        {"destination": "/rw", "type": "bind", "source": str(tmp_path / "rw"), "options": ["rbind", "rw"]},
        {"destination": "/file", "type": "bind", "source": str(tmp_path / "file"), "options": ["bind", "ro"]},
    ]
    from kata_fsm.testing.bundle import config

    usual = config([])["mounts"]
    bundle = kata.bundle("b", "/bin/sh", "-c", script, mounts=[*usual, *mounts])
    done = kata("run", "--bundle", str(bundle), "c1", check=False)
    assert done.stdout == "from the host\none file\nrootfs-writable\n"
    assert (tmp_path / "rw" / "out").read_text() == "written\n"
    assert (tmp_path / "file").read_text() == "one file\n"


def test_a_read_only_root(kata: Kata) -> None:
    bundle = kata.bundle(
        "b",
        "/bin/sh",
        "-c",
        "touch /x 2>&1; touch /tmp/y 2>/dev/null; echo $?",
        root={"path": "rootfs", "readonly": True},
    )
    assert "Read-only file system" in kata("run", "--bundle", str(bundle), "c1").stdout
