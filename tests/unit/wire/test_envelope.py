# SPDX-License-Identifier: Apache-2.0
"""Goal: calls built from tables are calls to a protobuf peer, and the other way round."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_wire import envelope, messages, table, ttrpc
from kata_wire.errors import FrameTooLarge, WireError


def only_frame(parts: list[ttrpc.Buffer]) -> ttrpc.Frame:
    decoder = ttrpc.Decoder()
    for part in parts:
        decoder.feed(part)
    frame = decoder.next()
    assert frame is not None
    assert not decoder.partial
    return frame


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 2**63 - 1), st.binary())
def test_a_request_reads_the_same_on_both_sides(container_id, timeout_ns, data):
    value = {"container_id": container_id, "data": data}
    frame = only_frame(
        envelope.request_parts(5, "grpc.AgentService", "WriteStdin", "grpc.WriteStreamRequest", value, timeout_ns)
    )
    assert (frame.stream_id, frame.type, frame.flags) == (5, ttrpc.REQUEST, 0)
    library = messages.ttrpc.Request.FromString(frame.payload)
    assert (library.service, library.method, library.timeout_nano) == ("grpc.AgentService", "WriteStdin", timeout_ns)
    assert messages.agent.WriteStreamRequest.FromString(library.payload).data == data
    ours = envelope.parse_request(library.SerializeToString())
    assert (ours.service, ours.method, ours.timeout_ns) == ("grpc.AgentService", "WriteStdin", timeout_ns)
    assert table.decode("grpc.WriteStreamRequest", ours.payload).get("data", b"") == data


@given(st.binary())
def test_a_response_reads_the_same_on_both_sides(data):
    frame = only_frame(envelope.response_parts(7, "grpc.ReadStreamResponse", {"data": data}))
    assert (frame.stream_id, frame.type) == (7, ttrpc.RESPONSE)
    library = messages.ttrpc.Response.FromString(frame.payload)
    assert library.status.code == envelope.OK
    assert messages.agent.ReadStreamResponse.FromString(library.payload).data == data
    ours = envelope.parse_response(library.SerializeToString())
    assert (ours.code, ours.error) == (envelope.OK, "")
    assert table.decode("grpc.ReadStreamResponse", ours.payload).get("data", b"") == data


@pytest.mark.parametrize("text", ["no such container", "", "x" * 10_000, "broken \udc80 text"])
def test_an_error_can_always_be_sent(text):
    frame = only_frame(envelope.error_parts(9, envelope.NOT_FOUND, text))
    library = messages.ttrpc.Response.FromString(frame.payload)
    assert library.status.code == envelope.NOT_FOUND
    assert library.status.message == text[: envelope.MAX_ERROR_CHARS].replace("\udc80", "?")
    ours = envelope.parse_response(frame.payload)
    assert (ours.code, ours.error) == (envelope.NOT_FOUND, library.status.message)


def test_an_empty_call_is_legal_and_garbage_is_a_wire_error():
    assert bytes(envelope.parse_request(b"").payload) == b""
    with pytest.raises(WireError, match=r"message `ttrpc.Request` is malformed"):
        envelope.parse_request(b"\x0a\x05a")


def test_a_reply_over_the_limit_names_its_stream():
    with pytest.raises(FrameTooLarge) as caught:
        envelope.response_parts(11, "grpc.ReadStreamResponse", {"data": bytes(ttrpc.MAX_PAYLOAD_BYTES)})
    assert caught.value.stream_id == 11
