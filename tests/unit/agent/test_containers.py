# SPDX-License-Identifier: Apache-2.0
"""Containers and processes through the whole agent, with real children."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from kata_wire import envelope
from tests.support.agent_process import AgentProcess, CallError, Client, container, process, read_all


def run(client: Client, *args: str, container_id: str = "c", terminal: bool = False) -> dict[str, Any]:
    """Create, start, wait."""
    client.call("CreateContainer", container(container_id, *args, terminal=terminal))
    client.call("StartContainer", {"container_id": container_id})
    return client.call("WaitProcess2", {"container_id": container_id})


def execute(client: Client, exec_id: str, *args: str, terminal: bool = False) -> None:
    client.call("ExecProcess", {"container_id": "c", "exec_id": exec_id, "process": process(*args, terminal=terminal)})


def status_of(client: Client, method: str, request: dict[str, Any]) -> int:
    with pytest.raises(CallError) as caught:
        client.call(method, request)
    return caught.value.code


def left_behind(base: Path) -> list[str]:
    """Files the agent has not removed; its two directories stay."""
    keep = {"state", "bundles", "crun", "cgroup", "kata"}
    return [str(p) for p in base.rglob("*") if p.name not in keep]


def test_a_container_from_create_to_remove(agent: AgentProcess) -> None:
    client = agent.client
    client.call("CreateContainer", container("c", "/bin/sh", "-c", "echo out; echo err >&2; exit 7"))
    state = client.call("QueryState")["containers"][0]
    assert (state["state"], state["processes"][0]["state"]) == ("created", "created")
    client.call("StartContainer", {"container_id": "c"})
    answer = client.call("WaitProcess2", {"container_id": "c"})
    assert (answer["exited"], answer["code"], answer.get("signal", 0)) == (True, 7, 0)
    assert client.call("WaitProcess", {"container_id": "c", "exec_id": "c"}) == {"status": 7}
    assert read_all(client, "c") == b"out\n"
    assert read_all(client, "c", stream=2) == b"err\n"
    state = client.call("QueryState")["containers"][0]
    assert state["state"] == "stopped"
    assert state["processes"][0] | {"pid": 0, "exited_at_ns": 0} == {
        "pid": 0,
        "state": "exited",
        "exit_status": 7,
        "exited_at_ns": 0,
    }
    client.call("RemoveContainer", {"container_id": "c"})
    assert client.call("QueryState").get("containers", []) == []
    assert left_behind(agent.base) == []


def test_death_by_signal_is_told_from_an_exit_code(client: Client) -> None:
    answer = run(client, "/bin/sh", "-c", "kill -TERM $$")
    assert (answer.get("code", 0), answer["signal"]) == (0, 15)
    assert client.call("WaitProcess", {"container_id": "c"}) == {"status": 143}
    assert client.call("QueryState")["containers"][0]["processes"][0]["signalled"]


def test_repeated_calls_change_nothing(client: Client) -> None:
    request = container("c", "/bin/sleep", "60")
    client.call("CreateContainer", request)
    pid = client.call("QueryState")["containers"][0]["init_pid"]
    client.call("CreateContainer", request)
    client.call("StartContainer", {"container_id": "c"})
    client.call("StartContainer", {"container_id": "c"})
    execute(client, "e", "/bin/true")
    execute(client, "e", "/bin/true")
    assert client.call("WaitProcess", {"container_id": "c", "exec_id": "e"}) == {}
    execute(client, "e", "/bin/true")
    state = client.call("QueryState")["containers"][0]
    assert (state["init_pid"], len(state["processes"])) == (pid, 2)
    assert status_of(client, "CreateContainer", container("c", "/bin/true")) == envelope.ALREADY_EXISTS
    other = {"container_id": "c", "exec_id": "e", "process": process("/bin/false")}
    assert status_of(client, "ExecProcess", other) == envelope.ALREADY_EXISTS
    client.call("RemoveContainer", {"container_id": "c"})
    client.call("RemoveContainer", {"container_id": "c"})


def test_the_same_create_twice_at_once_makes_one_container(client: Client) -> None:
    request = container("c", "/bin/sleep", "60")
    first, second = client.start("CreateContainer", request), client.start("CreateContainer", request)
    client.finish(first)
    client.finish(second)
    assert len(client.call("QueryState")["containers"]) == 1


def test_a_create_whose_session_ended_is_carried_through(agent: AgentProcess) -> None:
    request = container("c", "/bin/sleep", "60")
    agent.client.start("CreateContainer", request)
    fresh = Client(agent.sock)
    fresh.call("CreateContainer", request)
    assert fresh.call("QueryState")["containers"][0]["state"] == "created"


def test_other_calls_go_on_during_a_slow_create(client: Client) -> None:
    slow = client.start("CreateContainer", container("c", "/hang"))
    for _ in range(20):
        client.call("Check")
    assert not client.answered(slow)


def test_crun_s_own_words_are_the_error_and_nothing_is_left(agent: AgentProcess) -> None:
    with pytest.raises(CallError, match="crun create: executable file `/fail` not found") as caught:
        agent.client.call("CreateContainer", container("c", "/fail"))
    assert caught.value.code == envelope.INTERNAL
    assert left_behind(agent.base) == []
    assert run(agent.client, "/bin/true")["exited"]
    execution = {"container_id": "c", "exec_id": "e", "process": process("/bin/true")}
    assert status_of(agent.client, "ExecProcess", execution) == envelope.FAILED_PRECONDITION


@pytest.mark.parametrize(
    "spec",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"process": {"args": ["x"]}, "root": {"path": "relative"}}',
        b'{"process": {"args": []}, "root": {"path": "/"}, "linux": {}}',
        b'{"process": {"args": ["x"]}, "root": {"path": "/"}, "linux": {"namespaces": 5}}',
        b'{"process": {"args": ["x"]}, "root": {"path": "/"}, "linux": {"namespaces": [{}]}}',
        b'{"process": {"args": ["x"], "user": 5}, "root": {"path": "/"}, "linux": {}}',
        b'{"process": {"args": ["x"]}, "root": {"path": "/"}, "linux": {"sysctl": {"net.no.such": "1"}}}',
    ],
)
def test_a_configuration_that_cannot_be(agent: AgentProcess, spec: bytes) -> None:
    request = {"container_id": "c", "OCI": {"raw_json": spec}}
    assert status_of(agent.client, "CreateContainer", request) == envelope.INVALID_ARGUMENT
    assert left_behind(agent.base) == []


@pytest.mark.parametrize("container_id", ["", "a/b", "..", "x" * 256])
def test_an_id_that_cannot_be_a_part_of_a_path(client: Client, container_id: str) -> None:
    assert status_of(client, "CreateContainer", container(container_id, "/bin/true")) == envelope.INVALID_ARGUMENT


def test_a_long_id_with_a_terminal(client: Client) -> None:
    """A console socket's path must be short, whatever the id."""
    assert run(client, "/bin/true", container_id="x" * 200, terminal=True)["exited"]


@pytest.mark.parametrize(
    "method",
    ["StartContainer", "WaitProcess", "WaitProcess2", "ReadStdout", "ReadStream", "WriteStream", "SignalProcess",
     "ExecProcess", "PauseContainer", "ResumeContainer", "StatsContainer", "UpdateContainer", "TtyWinResize", "CloseStdin",
     "ListPids", "RunPs"],
)  # fmt: skip
def test_calls_about_what_is_not_there(client: Client, method: str) -> None:
    assert status_of(client, method, {"container_id": "nope"}) == envelope.NOT_FOUND


def test_an_exec_has_streams_and_an_exit_of_its_own(client: Client) -> None:
    client.call("CreateContainer", container("c", "/bin/sleep", "60"))
    client.call("StartContainer", {"container_id": "c"})
    execute(client, "e", "/bin/sh", "-c", "cat; exit 3")
    client.call("WriteStream", {"container_id": "c", "exec_id": "e", "data": b"to and fro"})
    client.call("WriteStream", {"container_id": "c", "exec_id": "e", "offset": 10, "eof": True})
    assert read_all(client, "c", "e") == b"to and fro"
    assert client.call("WaitProcess", {"container_id": "c", "exec_id": "e"}) == {"status": 3}
    assert status_of(client, "SignalProcess", {"container_id": "c", "exec_id": "e", "signal": 15}) == envelope.NOT_FOUND


def test_a_terminal(client: Client) -> None:
    client.call(
        "CreateContainer", container("c", "/bin/sh", "-c", "stty size; read line; echo got $line", terminal=True)
    )
    client.call("TtyWinResize", {"container_id": "c", "row": 33, "column": 99})
    client.call("StartContainer", {"container_id": "c"})
    client.call("WriteStream", {"container_id": "c", "data": b"it\n"})
    client.call("WaitProcess", {"container_id": "c"})
    text = read_all(client, "c")
    assert b"33 99\r\n" in text
    assert b"got it\r\n" in text
    assert read_all(client, "c", stream=2) == b""


def test_output_survives_a_broken_session_byte_for_byte(agent: AgentProcess) -> None:
    count = 400_000
    agent.client.call("CreateContainer", container("c", "/usr/bin/seq", str(count)))
    agent.client.call("StartContainer", {"container_id": "c"})
    found, client = bytearray(), agent.client
    request = {"container_id": "c", "stream": 1, "len": 300_000, "timeout_ms": 5000}
    for _ in range(5):
        answer = client.call("ReadStream", {**request, "offset": len(found)})
        found += answer["data"]
        client.start("ReadStream", {**request, "offset": len(found)})  # its answer is on the way, or cut off
        client = Client(agent.sock)
        state = client.call("QueryState")["containers"][0]["processes"][0]
        assert state.get("stdout_read", 0) <= len(found)
    found += read_all(client, "c", offset=len(found))
    assert bytes(found) == b"".join(b"%d\n" % i for i in range(1, count + 1))


def test_a_process_that_prints_more_than_fits_waits_for_its_reader(client: Client) -> None:
    client.call("CreateContainer", container("c", "/usr/bin/head", "-c", "20000000", "/dev/zero"))
    client.call("StartContainer", {"container_id": "c"})
    assert client.call("WaitProcess2", {"container_id": "c", "timeout_ms": 200}) == {}
    assert len(read_all(client, "c")) == 20_000_000
    assert client.call("WaitProcess2", {"container_id": "c"})["exited"]


def test_a_read_waits_for_data_and_no_longer_than_asked(client: Client) -> None:
    client.call("CreateContainer", container("c", "/bin/cat"))
    client.call("StartContainer", {"container_id": "c"})
    request = {"container_id": "c", "stream": 1, "len": 100}
    assert client.call("ReadStream", {**request, "timeout_ms": 20}) == {}
    waiting = client.start("ReadStream", {**request, "timeout_ms": 20_000})
    client.call("Check")
    assert not client.answered(waiting)
    client.call("WriteStream", {"container_id": "c", "data": b"x"})
    assert client.finish(waiting) == {"data": b"x"}


def test_a_read_ahead_acknowledges_nothing_and_does_not_wait_for_room_that_only_an_acknowledgement_makes(
    client: Client,
) -> None:
    client.call("CreateContainer", container("c", "/usr/bin/head", "-c", "20000000", "/dev/zero"))
    client.call("StartContainer", {"container_id": "c"})
    request = {"container_id": "c", "stream": 1, "timeout_ms": 20_000}
    offset = 0
    for _ in range(3):  # until the stream has proved to be large
        offset += len(client.call("ReadStream", {**request, "offset": offset})["data"])
    skip = 0
    while data := client.call("ReadStream", {**request, "offset": offset, "skip": skip}).get("data", b""):
        skip += len(data)
    assert skip >= 1 << 20, "what a pipe may hold without privileges"
    again = client.call("ReadStream", {**request, "offset": offset})
    assert again["offset"] == offset
    with pytest.raises(CallError, match="`skip` leads to"):
        client.call("ReadStream", {**request, "offset": offset, "skip": skip + 1})
    assert len(read_all(client, "c", offset=offset)) == 20_000_000 - offset


def test_a_large_input_arrives_whole(client: Client) -> None:
    data = os.urandom(3 << 20)
    client.call("CreateContainer", container("c", "/usr/bin/sha256sum"))
    client.call("StartContainer", {"container_id": "c"})
    offset = 0
    while offset < len(data):
        piece = {"container_id": "c", "offset": offset, "data": data[offset : offset + (1 << 20)]}
        offset = client.call("WriteStream", piece)["offset"]
    client.call("CloseStdin", {"container_id": "c"})
    import hashlib

    assert read_all(client, "c").split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_the_kata_agent_s_own_stream_calls(client: Client) -> None:
    client.call("CreateContainer", container("c", "/bin/cat"))
    client.call("StartContainer", {"container_id": "c"})
    assert client.call("WriteStdin", {"container_id": "c", "data": b"abc"}) == {"len": 3}
    assert client.call("ReadStdout", {"container_id": "c", "len": 2}) == {"data": b"ab"}
    assert client.call("ReadStdout", {"container_id": "c", "len": 2}) == {"data": b"c"}
    client.call("CloseStdin", {"container_id": "c"})
    with pytest.raises(CallError, match="eof"):
        client.call("ReadStdout", {"container_id": "c", "len": 2})
    with pytest.raises(CallError, match="eof"):
        client.call("ReadStderr", {"container_id": "c", "len": 2})


def test_a_standard_message_without_raw_json(client: Client) -> None:
    spec = {
        "Version": "1.0.2",
        "Process": {"Args": ["/bin/sh", "-c", "echo $X"], "Cwd": "/", "Env": ["X=standard"]},
        "Root": {"Path": "/"},
        "Linux": {"Namespaces": [{"Type": "pid"}]},
    }
    client.call("CreateContainer", {"container_id": "c", "OCI": spec})
    client.call("StartContainer", {"container_id": "c"})
    assert read_all(client, "c") == b"standard\n"


def test_removing_a_running_container_kills_it(agent: AgentProcess) -> None:
    client = agent.client
    client.call("CreateContainer", container("c", "/bin/sleep", "60"))
    client.call("StartContainer", {"container_id": "c"})
    waiting = client.start("WaitProcess", {"container_id": "c"})
    client.call("RemoveContainer", {"container_id": "c", "timeout": 5})
    assert client.finish(waiting) == {"status": 137}
    assert left_behind(agent.base) == []


def test_an_update_reaches_crun(agent: AgentProcess) -> None:
    client = agent.client
    client.call("CreateContainer", container("c", "/bin/sleep", "60"))
    client.call("UpdateContainer", {"container_id": "c", "resources": {"raw_json": b'{"pids":{"limit":5}}'}})
    assert json.loads((agent.base / "crun/c/updated").read_text()) == {"pids": {"limit": 5}}
    client.call("UpdateContainer", {"container_id": "c", "resources": {"Memory": {"Limit": 1 << 20}}})
    assert json.loads((agent.base / "crun/c/updated").read_text()) == {"memory": {"limit": 1 << 20}}


def test_ps_and_pids_come_from_the_container_s_cgroup(agent: AgentProcess) -> None:
    client = agent.client
    client.call("CreateContainer", container("c", "/bin/sleep", "60"))
    client.call("StartContainer", {"container_id": "c"})
    pid = client.call("QueryState")["containers"][0]["init_pid"]
    group = agent.base / "cgroup/kata/c"
    group.mkdir(parents=True)
    (group / "cgroup.procs").write_text(f"{pid}\n999999999\n")
    assert client.call("ListPids", {"container_id": "c"}) == {"pids": [pid, 999999999]}
    end = time.monotonic() + 60
    while b"/bin/sleep 60" not in (text := client.call("RunPs", {"container_id": "c"})["stdout"]):
        assert time.monotonic() < end, text
    header, row = text.decode().splitlines()
    assert header.split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert row.split()[:2] == ["root", str(pid)]
    custom = client.call("RunPs", {"container_id": "c", "args": ["-o", "pid,comm"]})
    assert custom["stdout"].decode().split() == ["PID", "COMMAND", str(pid), "sleep"]
    wrong = client.call("RunPs", {"container_id": "c", "args": ["-o", "nope"]})
    assert wrong["status"] == 1
    assert b"`nope`" in wrong["stderr"]
    (group / "cgroup.procs").unlink()


def test_stats_from_the_files_of_the_cgroup(agent: AgentProcess) -> None:
    client = agent.client
    client.call("CreateContainer", container("c", "/bin/sleep", "60"))
    group = agent.base / "cgroup/kata/c"
    group.mkdir(parents=True)
    for name, text in {
        "cpu.stat": "usage_usec 5\nuser_usec 2\nsystem_usec 3\nnr_periods 1\nnr_throttled 0\nthrottled_usec 0\n",
        "memory.current": "4096\n",
        "memory.max": "max\n",
        "memory.stat": "anon 1\nfile 2\nkernel 3\n",
        "memory.events": "max 4\noom 1\noom_kill 1\n",
        "pids.current": "1\n",
        "pids.max": "64\n",
        "io.stat": "254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n",
        "hugetlb.2MB.current": "2097152\n",
    }.items():
        (group / name).write_text(text)
    found = client.call("StatsContainer", {"container_id": "c"})["cgroup_stats"]
    assert found["cpu_stats"]["cpu_usage"] == {
        "total_usage": 5000,
        "usage_in_kernelmode": 3000,
        "usage_in_usermode": 2000,
    }
    assert found["memory_stats"]["usage"] == {"usage": 4096, "failcnt": 4}
    assert found["memory_stats"]["stats"]["oom_kill"] == 1
    assert found["pids_stats"] == {"current": 1, "limit": 64}
    assert found["hugetlb_stats"] == {"2MB": {"usage": 2097152}}
    writes = [e for e in found["blkio_stats"]["io_service_bytes_recursive"] if e["op"] == "Write"]
    assert writes == [{"major": 254, "op": "Write", "value": 20}]
    for path in group.iterdir():
        path.unlink()


def test_pause_and_resume_write_the_freezer_and_wait_for_it(agent: AgentProcess) -> None:
    client = agent.client
    client.call("CreateContainer", container("c", "/bin/sleep", "60"))
    client.call("StartContainer", {"container_id": "c"})
    group = agent.base / "cgroup/kata/c"
    group.mkdir(parents=True)
    (group / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    pausing = client.start("PauseContainer", {"container_id": "c"})
    client.call("Check")
    assert not client.answered(pausing)
    assert (group / "cgroup.freeze").read_text() == "1"
    (group / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    client.finish(pausing)
    assert client.call("QueryState")["containers"][0]["state"] == "paused"
    execution = {"container_id": "c", "exec_id": "e", "process": process("/bin/true")}
    assert status_of(client, "ExecProcess", execution) == envelope.FAILED_PRECONDITION
    client.call("PauseContainer", {"container_id": "c"})
    (group / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    client.call("ResumeContainer", {"container_id": "c"})
    assert client.call("QueryState")["containers"][0]["state"] == "running"
    for path in group.iterdir():
        path.unlink()


def test_every_exec_is_remembered_in_order(client: Client) -> None:
    client.call("CreateContainer", container("c", "/bin/sleep", "60"))
    client.call("StartContainer", {"container_id": "c"})
    for i in range(3):
        execute(client, f"e{i}", "/bin/true")
        client.call("WaitProcess", {"container_id": "c", "exec_id": f"e{i}"})
    states = client.call("QueryState")["containers"][0]["processes"]
    assert [s.get("exec_id", "") for s in states] == ["", "e0", "e1", "e2"]
