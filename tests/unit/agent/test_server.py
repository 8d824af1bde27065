# SPDX-License-Identifier: Apache-2.0
"""Calls as they should not be: each gets a status on its own stream, and the agent goes on."""

import contextlib
import socket
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest.agent.methods import HANDLERS, ONLY_WAITING, PRELOAD
from kata_wire import envelope, methods, session, table, ttrpc
from tests.support.agent_process import AgentProcess, CallError, Client, container

REQUEST = "ttrpc.Request"


def refused(client: Client, stream_id: int) -> CallError:
    with pytest.raises(CallError) as caught:
        client.finish(stream_id)
    assert client.call("Check") == {"status": 1}
    return caught.value


def test_every_handler_is_a_known_call_and_exists() -> None:
    for service, handlers in HANDLERS.items():
        for method, (module, function) in handlers.items():
            assert methods.find(service, method) is not None, method
            assert callable(getattr(__import__(f"guest.agent.{module}", fromlist=["_"]), function))
    every = {method for handlers in HANDLERS.values() for method in handlers}
    assert every > ONLY_WAITING
    assert {module for handlers in HANDLERS.values() for module, _ in handlers.values()} > set(PRELOAD)


def test_bytes_that_are_no_request(client: Client) -> None:
    assert refused(client, client.start_raw(ttrpc.REQUEST, b"\xff\xff")).code == envelope.INVALID_ARGUMENT


def test_a_request_whose_message_is_malformed(client: Client) -> None:
    call = {"service": "grpc.AgentService", "method": "CreateSandbox", "payload": b"\x0a\xff\xff"}
    error = refused(client, client.start_raw(ttrpc.REQUEST, table.encode(REQUEST, call)))
    assert error.code == envelope.INVALID_ARGUMENT
    assert "grpc.CreateSandboxRequest" in error.message


@pytest.mark.parametrize(
    ("service", "method"),
    [("grpc.AgentService", "Nope"), ("grpc.Nope", "Check"), ("grpc.AgentService", "AddSwap"), ("", "")],
)
def test_a_method_that_is_not_there(client: Client, service: str, method: str) -> None:
    call = table.encode(REQUEST, {"service": service, "method": method})
    assert refused(client, client.start_raw(ttrpc.REQUEST, call)).code == envelope.UNIMPLEMENTED


def test_frames_that_are_no_requests(client: Client) -> None:
    for kind in (ttrpc.RESPONSE, ttrpc.DATA, 0x55):
        assert refused(client, client.start_raw(kind, b"x")).code == envelope.INVALID_ARGUMENT


def test_an_oversized_frame_is_skipped_and_answered(client: Client) -> None:
    stream_id = client.expect("google.protobuf.Empty")
    size = ttrpc.MAX_PAYLOAD_BYTES + 1
    client.sock.sendall(size.to_bytes(4, "big") + stream_id.to_bytes(4, "big") + b"\x01\x00" + bytes(size))
    assert "over the limit" in refused(client, stream_id).message


def test_a_malformed_hello_is_answered_on_stream_0(agent: AgentProcess) -> None:
    client = agent.client
    client._messages[0] = "google.protobuf.Empty"
    client.sock.sendall(ttrpc.encode(0, ttrpc.HELLO, 0, b"hello?"))
    assert refused(client, 0).code == envelope.INVALID_ARGUMENT


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payload=st.binary(max_size=200), kind=st.sampled_from([1, 1, 1, 2, 3, 9]))
def test_any_payload_is_answered_once(client: Client, payload: bytes, kind: int) -> None:
    stream_id = client.start_raw(kind, payload)
    assert refused(client, stream_id).code in (envelope.INVALID_ARGUMENT, envelope.UNIMPLEMENTED)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_payload_for_any_call_gets_an_answer(client: Client, data: st.DataObject) -> None:
    service = data.draw(st.sampled_from(sorted(HANDLERS)))
    # without those that would change this host, or wait
    harmless = set(HANDLERS[service]) - ONLY_WAITING - {
        "SetGuestDateTime", "ReseedRandomDev", "OnlineCPUMem",
    }  # fmt: skip
    method = data.draw(st.sampled_from(sorted(harmless)))
    call = {"service": service, "method": method, "payload": data.draw(st.binary(max_size=60))}
    stream_id = client.start_raw(ttrpc.REQUEST, table.encode(REQUEST, call))
    with contextlib.suppress(CallError):
        client.finish(stream_id)
    assert client.call("Check") == {"status": 1}


def test_a_new_session_gets_no_answer_of_the_old_one(agent: AgentProcess) -> None:
    old = agent.client
    old.call("CreateContainer", container("c", "/bin/sleep", "60"))
    old.start("WaitProcess", {"container_id": "c"})
    new = Client(agent.sock)
    new._stream_id = 1001  # so that an answer to the old call cannot pass for one of ours
    new.call("SignalProcess", {"container_id": "c", "exec_id": "c", "signal": 9})
    assert new.call("WaitProcess", {"container_id": "c"}) == {"status": 137}
    assert not new._answers


def test_a_frame_that_stops_half_way_is_dropped_after_a_while(agent: AgentProcess) -> None:
    client = agent.client
    client.sock.sendall(b"\x00\x00\x10\x00\x00")
    client.sock.sendall(b"\x00\x00\x01\x01")
    started = time.monotonic()
    fresh = session.HostSession(b"n" * 16)
    while not fresh.established:  # as a host does: hello again until it is answered
        client.sock.sendall(fresh.hello()) if time.monotonic() - started > session.STALL_S + 0.2 else None
        client.sock.settimeout(0.1)
        try:
            fresh.feed(client.sock.recv(4096))
        except TimeoutError:
            assert time.monotonic() - started < 20
    client.sock.settimeout(None)
    assert client.call("Check") == {"status": 1}


def test_the_deadline_of_a_call_that_waits(client: Client) -> None:
    client.call("CreateContainer", container("c", "/bin/sleep", "60"))
    stream_id = client.start("WaitProcess", {"container_id": "c"}, timeout_ns=20_000_000)
    assert refused(client, stream_id).code == envelope.DEADLINE_EXCEEDED


def test_too_many_calls_at_once(client: Client) -> None:
    client.call("CreateContainer", container("c", "/bin/sleep", "60"))
    waiting = [client.start("WaitProcess", {"container_id": "c"}) for _ in range(1024)]
    assert refused_at_once(client, client.start("WaitProcess", {"container_id": "c"})) == envelope.RESOURCE_EXHAUSTED
    Client(client.sock)  # a new session ends them all
    assert len(waiting) == 1024


def refused_at_once(client: Client, stream_id: int) -> int:
    with pytest.raises(CallError) as caught:
        client.finish(stream_id)
    return caught.value.code


def test_a_plain_socket_serves_without_hello_and_ends_with_its_peer(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path, "vsock")
    client = Client(agent.sock, serial=False)
    assert client.call("Check") == {"status": 1}
    client._messages[0] = "google.protobuf.Empty"
    client.sock.sendall(session.hello(b"n" * 16))
    with pytest.raises(CallError, match="belongs on a serial port"):
        client.finish(0)
    agent.sock.shutdown(socket.SHUT_WR)
    assert agent.sock.recv(1) == b""
    assert agent.stop() == b""


def test_calls_are_on_the_console_where_they_are_asked_for(tmp_path: Path) -> None:
    running = AgentProcess(tmp_path, "serial", log_calls=True)
    client = running.client
    client.call("Check")
    with pytest.raises(CallError, match="nobody"):
        client.call("StartContainer", {"container_id": "nobody"})
    said = [line.partition("kata-agent: ")[2] for line in running.stop().decode().splitlines()]
    assert said[:3] == ["call 1: Check", "answer 1: Check: ok", "call 3: StartContainer"]
    assert said[3].startswith("answer 3: StartContainer: ")
    assert "nobody" in said[3]
