# SPDX-License-Identifier: Apache-2.0
"""Goal: whatever a dead predecessor left in the port, host and agent agree again on where frames begin."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_wire import session, ttrpc
from kata_wire.errors import FrameTooLarge, WireError

NONCE = bytes(range(16))
CALL = ttrpc.encode(1, ttrpc.REQUEST, 0, b"call")
REPLY = ttrpc.encode(1, ttrpc.RESPONSE, 0, b"reply")


def synced_agent() -> session.AgentSession:
    agent = session.AgentSession()
    agent.feed(session.hello(NONCE))
    frame = agent.next()
    assert frame is not None
    assert session.is_hello(frame)
    assert agent.echo(frame) == session.hello(NONCE)
    return agent


def test_hello_is_a_ttrpc_frame_of_32_bytes_on_stream_0():
    data = session.hello(NONCE)
    assert data[:10] == b"\0\0\0\x20\0\0\0\0\x7f\0"
    assert len(data) == 42
    with pytest.raises(WireError, match="nonce has `3` bytes; it needs `16`"):
        session.hello(b"abc")


@given(st.binary(max_size=120), st.integers(1, 50))
def test_the_host_drops_everything_before_its_own_echo(stale, step):
    host = session.HostSession(NONCE)
    other = session.hello(bytes(16))
    data = stale + other + host.hello()[:20] + host.hello() + REPLY
    for at in range(0, len(data), step):
        host.feed(data[at : at + step])
    assert host.established
    frame = host.next()
    assert frame is not None
    assert frame.payload == b"reply"
    assert host.next() is None
    assert host.dropped == len(stale) + len(other) + 20


def test_the_host_gives_nothing_before_the_echo():
    host = session.HostSession(NONCE)
    host.feed(REPLY)
    assert not host.established
    assert host.next() is None


def test_the_host_leaves_out_the_echoes_of_its_repeats():
    host = session.HostSession(NONCE)
    host.feed(host.hello() * 3 + REPLY + host.hello())
    frame = host.next()
    assert frame is not None
    assert frame.type == ttrpc.RESPONSE
    assert host.next() is None


@given(st.binary(max_size=100), st.integers(1, 50))
def test_after_a_hang_up_the_agent_drops_everything_before_the_next_hello(noise, step):
    agent = synced_agent()
    agent.reset()
    data = noise + session.hello(NONCE) + CALL
    got = []
    for at in range(0, len(data), step):
        agent.feed(data[at : at + step])
        while (frame := agent.next()) is not None:
            got.append(frame)
    assert [frame.type for frame in got] == [ttrpc.HELLO, ttrpc.REQUEST]
    assert agent.generation == 2
    assert not agent.lost


def test_without_hello_it_is_plain_ttrpc():
    agent = session.AgentSession()
    agent.feed(CALL + CALL[:3])
    assert [frame.type for frame in iter(agent.next, None) if frame] == [ttrpc.REQUEST]
    agent.reset()
    assert not agent.lost
    agent.feed(CALL + session.hello(NONCE))
    assert [frame.type for frame in iter(agent.next, None) if frame] == [ttrpc.REQUEST, ttrpc.HELLO]


def test_the_agent_takes_a_hello_between_frames_as_a_new_session():
    agent = synced_agent()
    agent.feed(CALL + session.hello(bytes(16)) + CALL)
    types = [frame.type for frame in iter(agent.next, None) if frame]
    assert types == [ttrpc.REQUEST, ttrpc.HELLO, ttrpc.REQUEST]
    assert agent.generation == 2


def test_a_hello_inside_a_payload_is_only_payload():
    agent = synced_agent()
    forged = ttrpc.encode(3, ttrpc.REQUEST, 0, session.hello(NONCE) + CALL)
    agent.feed(forged)
    frame = agent.next()
    assert frame is not None
    assert frame.stream_id == 3
    assert agent.next() is None
    assert agent.generation == 1


@pytest.mark.parametrize("cut", range(1, len(CALL)))
def test_a_frame_whose_writer_died_is_given_up_and_the_next_hello_is_found(cut):
    agent = synced_agent()
    agent.feed(CALL[:cut])
    assert agent.next() is None
    assert agent.partial
    agent.reset()
    assert agent.lost
    assert not agent.partial
    agent.feed(CALL[cut:] + session.hello(bytes(16)) + CALL)
    types = [frame.type for frame in iter(agent.next, None) if frame]
    assert types == [ttrpc.HELLO, ttrpc.REQUEST]


def test_reset_also_ends_the_skipping_of_an_oversized_frame():
    agent = synced_agent()
    agent.feed(ttrpc.MAX_PAYLOAD_BYTES.to_bytes(4, "big").replace(b"\0@", b"\x7f@") + b"\0\0\0\1\1\0")
    with pytest.raises(FrameTooLarge):
        agent.next()
    assert agent.partial
    agent.reset()
    agent.feed(session.hello(NONCE))
    assert agent.next() is not None


def test_a_malformed_hello_is_an_error_and_not_the_end():
    agent = synced_agent()
    agent.feed(ttrpc.encode(0, ttrpc.HELLO, 0, b"x" * 32) + CALL)
    with pytest.raises(WireError, match="hello frame on stream `0` is malformed"):
        agent.next()
    frame = agent.next()
    assert frame is not None
    assert frame.type == ttrpc.REQUEST
    assert agent.generation == 1


def test_the_host_repeats_only_after_the_agent_has_given_up():
    assert session.HELLO_RESEND_S > session.STALL_S
