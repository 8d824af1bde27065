# SPDX-License-Identifier: Apache-2.0
"""Frames, JSON, terminals, pid files, cgroup homes and configuration."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_fsm import cjson, control, spawn
from kata_fsm.cli import attached, cgroups, client, console, pidfile
from kata_fsm.cli.main import one_line
from kata_fsm.config import load as config
from kata_fsm.config.settings import Settings, hypervisor_settings
from kata_fsm.errors import RemoteError, SupervisorGone, SupervisorUnread, UsageError
from kata_fsm.limits import CONTROL_FRAME_BYTES_MAX
from kata_fsm.world import Paths

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_json_agrees_with_the_standard_library(value: object) -> None:
    assert json.loads(cjson.dumps(value)) == value
    assert json.loads(cjson.dumps_indented(value)) == value
    assert cjson.loads(json.dumps(value)) == value


@pytest.mark.parametrize("text", ["", "{", "nul", "NaN", "{} {}", '{"a":}', "[" * 100_000])
def test_bad_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        cjson.loads(text)


def test_bad_json_is_a_value_error_without_the_json_package() -> None:
    """CPython's scanner behaves differently while `json.decoder` is not imported."""
    code = "import sys; sys.path += %r\nfrom kata_fsm import cjson\ntry: cjson.loads('{,}')\nexcept ValueError: print('ok')"
    argv = [sys.executable, "-IS", "-c", code % [str(Path(__file__).parents[3])]]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "ok\n"


@given(st.lists(st.dictionaries(st.text(), st.integers()), max_size=5), st.integers(1, 50))
def test_frames_survive_any_portions(messages: list[dict[str, object]], size: int) -> None:
    data = b"".join(control.encode(message) for message in messages)
    decoder = control.Decoder()
    found = []
    for at in range(0, len(data), size):
        decoder.feed(data[at : at + size])
        while (message := decoder.next()) is not None:
            found.append(message)
    assert found == messages


def test_frames_that_are_none() -> None:
    decoder = control.Decoder()
    decoder.feed((CONTROL_FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
    with pytest.raises(control.FrameError, match="at most"):
        decoder.next()
    decoder = control.Decoder()
    decoder.feed(b"\0\0\0\2[]")
    with pytest.raises(control.FrameError, match="not a JSON object"):
        decoder.next()


def test_a_connection_carries_messages_and_descriptors(tmp_path: Path) -> None:
    path = str(tmp_path / ("long" * 30) / "sock")
    os.makedirs(os.path.dirname(path))
    here = os.open(os.path.dirname(path), os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{here}/sock")
        listener.listen()
        with control.Connection(path, timeout_s=5) as client:
            server, _ = listener.accept()
            read, write = os.pipe()
            client.send({"op": "x", "fds": 1}, [write])
            os.close(write)
            data, ancillary, _, _ = server.recvmsg(4096, socket.CMSG_SPACE(64))
            (received,) = control.received_fds(ancillary)
            os.write(received, b"hello")
            os.close(received)
            assert os.read(read, 10) == b"hello"
            os.close(read)
            assert json.loads(data[4:]) == {"op": "x", "fds": 1}
            server.sendall(
                control.encode({"ok": True}) + control.encode({"error": {"message": "no", "family": "caller"}})
            )
            assert client.receive() == {"ok": True}
            with pytest.raises(RemoteError, match=r"^no$"):
                control.raise_error(client.receive())
            server.close()
            with pytest.raises(SupervisorGone, match="hung up before it answered"):
                client.receive()
    os.close(here)
    with pytest.raises(SupervisorGone, match="no supervisor answers"):
        control.Connection(str(tmp_path / "none"), timeout_s=1)


@pytest.mark.parametrize(
    ("end", "unread"),
    [("queued", True), ("closed", True), ("accepted", True), ("read", False), ("second", False), ("heard", False)],
)
def test_whether_a_supervisor_that_ended_had_read_what_it_was_asked(tmp_path: Path, end: str, unread: bool) -> None:
    """Linux resets what was closed unread; `second`, `heard`: the first message may have been acted upon."""
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with control.Connection(path, timeout_s=5) as asking:
            server = None if end == "queued" else listener.accept()[0]
            if end == "closed":
                server.close()
            else:
                asking.send({"op": "x"})
            if end in ("read", "second"):
                assert server.recv(100)
            if end == "second":
                asking.send({"op": "y"})
            if end == "heard":
                server.sendall(control.encode({"ok": True}))
                assert asking.receive() == {"ok": True}
            (server or listener).close()
            with pytest.raises(SupervisorGone) as gone:
                asking.send({"op": "x"}) if end == "closed" else asking.receive()
    assert isinstance(gone.value, SupervisorUnread) is unread


def test_the_next_supervisor_is_asked_what_one_had_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed takes connections until it comes to close its listening socket."""
    stream = "c1@0123456789ab"
    monkeypatch.setenv("KATA_FSM_RUN", str(tmp_path))
    path = Paths("0123456789ab").supervisor_sock
    os.makedirs(os.path.dirname(path))
    listeners = []

    def start(*_: object, **__: object) -> None:
        if listeners:
            os.unlink(path)
        listeners.append(socket.socket(socket.AF_UNIX))
        listeners[-1].bind(path)
        listeners[-1].listen()

    def attempt(connection: control.Connection) -> dict[str, object]:
        connection.send({"op": "ping"})
        if len(listeners) == 1 or endless:
            listeners[-1].close()
        else:
            server = listeners[-1].accept()[0]
            assert server.recv(100)
            server.sendall(control.encode({"ok": True}))
            server.close()
        return connection.receive()

    monkeypatch.setattr(spawn, "start_supervisor", start)
    endless = False
    assert client.asking("c1", stream, attempt) == {"ok": True}
    assert len(listeners) == 2
    listeners.pop().close()
    endless = True
    with pytest.raises(SupervisorUnread):
        client.asking("c1", stream, attempt)


def test_the_lock_tells_whether_somebody_is_there(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    assert control.lock_is_free(path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    assert control.lock_is_free(path)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert not control.lock_is_free(path)
    os.close(fd)
    assert control.lock_is_free(path)


def test_a_terminal_is_raw_while_entered_and_restored_after_an_error() -> None:
    master, slave = os.openpty()
    before = termios.tcgetattr(slave)
    terminal = console.RawTerminal()
    terminal.fd = slave

    def inside() -> None:
        with terminal:
            assert not termios.tcgetattr(slave)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
            raise KeyError

    with pytest.raises(KeyError):
        inside()
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_the_master_goes_over_the_console_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        master, slave = console.open_pair((30, 90))
        console.send_master(path, master)
        os.close(master)
        server, _ = listener.accept()
        with server:
            name, ancillary, _, _ = server.recvmsg(100, socket.CMSG_SPACE(4))
        (received,) = control.received_fds(ancillary)
        assert name == b"/dev/ptmx"
        os.write(slave, b"line\n")
        assert os.read(received, 10) == b"line\n"  # raw: no carriage return is added
        assert struct.unpack("HHHH", fcntl.ioctl(received, termios.TIOCGWINSZ, bytes(8)))[:2] == (30, 90)
        os.close(received)
        os.close(slave)
    with pytest.raises(UsageError, match="console socket `/none`"):
        console.send_master("/none", 0)


def test_the_pid_file_has_no_newline(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("old and longer")
    pidfile.write(str(path), 42)
    assert path.read_bytes() == b"42"
    assert os.listdir(tmp_path) == ["pid"]


def test_exit_codes() -> None:
    assert attached.exit_code_of(7 << 8) == 7
    assert attached.exit_code_of(signal.SIGKILL) == 137


def test_homes_are_cgroups_of_this_process() -> None:
    points = [point for point, _ in cgroups._memberships()]
    for home in cgroups.homes([point + "/x" for point in points]):
        pids = (Path(home) / "cgroup.procs").read_text().split()
        assert str(os.getpid()) in pids


def test_configuration_is_typed_and_names_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        '[hypervisor.qemu]\ndefault_memory = 512\nkernel_params = "a b"\nmsize_9p = 3\n[agent.kata]\nenable_debug = true\n'
    )
    settings = config.load(str(file))
    found = hypervisor_settings(settings)
    assert (found["memory_mib"], found["kernel_params"]) == (512, ["a", "b", "agent.log=debug"])
    reason = "has no effect here because directories reach the guest by virtio-fs"
    assert settings.warnings == (f"`{file}:4`: `hypervisor.qemu.msize_9p` {reason}",)
    for text, words in {
        '[hypervisor.qemu]\ndefault_memory = "x"': "`hypervisor.qemu.default_memory`: expected `int`, got `str`",
        '[hypervisor.qemu]\npath = "qemu"': "`hypervisor.qemu.path`: `qemu` is not an absolute path",
        '[hypervisor.qemu]\nimage = "/x.img"': "guest images on a disk are not supported",
        '[runtime]\ninternetworking_model = "bridged"': "`runtime.internetworking_model`",
        "[hypervisor]\nqemu = 1": "`hypervisor.qemu` is not a table",
        "[": "is not TOML",
    }.items():
        file.write_text(text)
        with pytest.raises(UsageError) as caught:
            config.load(str(file))
        assert words in str(caught.value)
        assert str(file) in str(caught.value)
    with pytest.raises(UsageError, match="does not exist"):
        config.load(str(tmp_path / "none"))


def test_the_shipped_configuration_says_what_the_defaults_are() -> None:
    shipped = Path(__file__).parents[3] / "configs" / "configuration-qemu.toml"
    settings = config.load(str(shipped))
    assert (settings.qemu, settings.agent, settings.runtime) == (Settings().qemu, Settings().agent, Settings().runtime)
    assert settings.warnings == ()
    keys = {
        line[1:].split(" = ")[0] for line in shipped.read_text().splitlines() if line.startswith("#") and " = " in line
    }
    known = {name for type_ in config.SECTIONS.values() for name in type_.__struct_fields__}
    assert keys == known - {"image"}


def test_a_pid_file_that_cannot_be_is_refused_before_anything_is_begun(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no directory"):
        pidfile.prepare(str(tmp_path / "none" / "pid"))
    with pytest.raises(UsageError, match="it is a directory"):
        pidfile.prepare(str(tmp_path))


def test_a_stale_pid_file_is_gone_before_anything_is_begun(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("1")
    pidfile.prepare(str(path))
    assert not path.exists()


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """`--pid-file /dev/stdout`, as root: to rename over a device would take it away from the whole host."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    pidfile.prepare(str(path))
    pidfile.write(str(path), 42)
    assert os.read(reader, 10) == b"42"
    assert path.is_fifo()
    os.close(reader)


def test_a_pid_file_that_cannot_be_written_leaves_no_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        pidfile.write(str(tmp_path / ("x" * 250)), 42)
    assert os.listdir(tmp_path) == []


def test_configuration_nested_too_deeply_is_told(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("a = " + "[" * 3000 + "]" * 3000)
    with pytest.raises(UsageError, match="is not TOML"):
        config.load(str(file))


def test_the_dial_timeout_is_honoured(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[agent.kata]\ndial_timeout = 7\n")
    settings = config.load(str(file))
    assert (settings.agent.dial_timeout, settings.warnings) == (7, ())


def test_errors_do_not_obey_what_they_quote() -> None:
    assert one_line(UsageError("`a\x1b[31m\0b`\nc", hint="é")) == r"`a\x1b[31m\x00b` c (é)"


_SILENT = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("known", [True, False])
def test_a_supervisor_that_says_nothing_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """And nobody else who happens to listen there."""
    monkeypatch.setenv("KATA_FSM_RUN", str(tmp_path))
    monkeypatch.setattr(client, "SUPERVISOR_SILENT_S", 0.1)
    stream = "box@0123456789ab"
    spawn.prepare_run_dir("0123456789ab")
    argv = [sys.executable, "-c", _SILENT, Paths("0123456789ab").supervisor_sock, stream if known else "else"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as silent:
        assert silent.stdout is not None
        silent.stdout.readline()
        client.end_silent(stream)
        assert silent.stdin is not None
        silent.stdin.close()
        assert silent.wait(10) == (-signal.SIGKILL if known else 0)


def test_a_supervisor_that_never_came_to_be_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KATA_FSM_RUN", str(tmp_path / "run"))
    monkeypatch.setenv("KATA_FSM_STATE", str(tmp_path / "state"))
    spawn.prepare_run_dir("0123456789ab")
    paths = Paths("0123456789ab")
    for path in (paths.supervisor_lock, paths.supervisor_sock, paths.supervisor_log):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    spawn.forget("0123456789ab")
    assert [os.listdir(tmp_path / name) for name in ("run", "state")] == [[], []]
