# SPDX-License-Identifier: Apache-2.0
"""Output rings and input, over real pipes, against the simplest possible model."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest.agent import streams
from guest.agent.errors import RpcError
from guest.agent.loop import Loop
from guest.agent.streams import Input, Output
from kata_wire.envelope import FAILED_PRECONDITION, OUT_OF_RANGE

SMALL_RING = 64


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def small_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RING_BYTES", SMALL_RING)
    monkeypatch.setattr(streams, "KEPT_BYTES", SMALL_RING)
    monkeypatch.setattr(streams, "_RING_FIRST_BYTES", SMALL_RING // 2)
    monkeypatch.setattr(streams, "_RESUME_FREE_BYTES", SMALL_RING // 4)


def pump(loop: Loop) -> None:
    """One turn that does not block."""
    loop.call_later(0, lambda: None)
    loop.turn()


def pipe() -> tuple[int, int]:
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    return read_end, write_end


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 100)),
        st.tuples(st.just("turn"), st.just(0)),
        st.tuples(st.just("read"), st.integers(1, 80)),  # acknowledge what was seen, then look
        st.tuples(st.just("again"), st.integers(1, 80)),  # look without having seen the answer
        st.tuples(st.just("ahead"), st.integers(1, 80)),  # look beyond an answer that is on its way
    ),
    max_size=60,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(steps=STEPS)
def test_whatever_the_order_of_writes_and_reads_every_byte_comes_once_and_in_place(
    steps: list[tuple[str, int]], small_ring: None
) -> None:
    loop = Loop()
    read_end, write_end = pipe()
    output = Output(loop, read_end)
    written = bytearray()
    seen = 0  # bytes the host holds
    for kind, size in steps:
        if kind == "write":
            data = bytes((len(written) + i) % 251 for i in range(size))
            written += data
            os.write(write_end, data)
        elif kind == "turn":
            pump(loop)
        else:
            output.acknowledge(seen)
            if size % 2:
                output.demand()
            skip = min(size, output.end - seen) if kind == "ahead" else 0
            data = bytes(output.peek(size, skip))
            assert data == written[seen + skip : seen + skip + len(data)]
            assert len(data) <= size
            assert data or output.end == seen + skip
            if kind == "read":
                seen += len(data)
        assert output.end - output.acknowledged <= SMALL_RING
    os.close(write_end)
    while not output.at_eof or seen < output.end:
        pump(loop)
        output.acknowledge(seen)
        output.demand()
        data = bytes(output.peek(1000))
        assert data == written[seen : seen + len(data)]
        seen += len(data)
    output.acknowledge(seen)
    assert seen == len(written)
    assert output.peek(10) == b""
    loop.close()


def test_a_full_ring_stops_reading_and_an_acknowledgement_resumes_it(loop: Loop, small_ring: None) -> None:
    read_end, write_end = pipe()
    output = Output(loop, read_end)
    os.write(write_end, bytes(3 * SMALL_RING))
    for _ in range(3):
        pump(loop)
    first = SMALL_RING // 2
    assert output.end == first, "a ring begins small"
    output.acknowledge(first)
    assert output.end == first + SMALL_RING, (
        "it grows once it was full, and fills without waiting for a turn of the loop"
    )
    for _ in range(3):
        pump(loop)
    assert output.end == first + SMALL_RING, "full again"
    os.close(write_end)
    output.close()


def test_after_a_small_read_nobody_asked_for_the_rest_stays_in_the_pipe(loop: Loop) -> None:
    read_end, write_end = pipe()
    output = Output(loop, read_end)
    for _ in range(3):
        os.write(write_end, b"line\n")
        pump(loop)
    assert output.end == 5, "one wake-up, however many lines"
    output.demand()
    assert output.end == 15
    os.close(write_end)
    output.close()


def test_offsets_outside_the_stream_are_refused(loop: Loop) -> None:
    read_end, write_end = pipe()
    output = Output(loop, read_end)
    os.write(write_end, b"abcdef")
    pump(loop)
    output.acknowledge(4)
    for offset in (3, 7):
        with pytest.raises(RpcError, match="legal are `4` to `6`") as caught:
            output.acknowledge(offset)
        assert caught.value.code == OUT_OF_RANGE
    assert bytes(output.peek(10)) == b"ef"
    os.close(write_end)
    output.close()


def test_a_terminal_that_everyone_has_left_is_at_its_end(loop: Loop) -> None:
    master, slave = os.openpty()
    os.set_blocking(master, False)
    output = Output(loop, master)
    os.write(slave, b"bye")
    os.close(slave)
    while not output.at_eof:
        pump(loop)
        output.demand()
    assert bytes(output.peek(10)) == b"bye"
    output.close()


def test_a_repeated_write_is_accepted_once(loop: Loop) -> None:
    read_end, write_end = pipe()
    stdin = Input(loop, write_end, terminal=False)
    assert stdin.write(0, b"hello") == 5
    assert stdin.write(0, b"hello") == 5
    assert stdin.write(3, b"lo world") == 11
    assert os.read(read_end, 100) == b"hello world"
    with pytest.raises(RpcError, match="leaves a gap; the next byte wanted is `11`") as caught:
        stdin.write(12, b"x")
    assert caught.value.code == OUT_OF_RANGE
    stdin.finish()
    stdin.finish()
    assert os.read(read_end, 100) == b""
    assert stdin.write(6, b"world") == 11, "old news is no error"
    os.close(read_end)


def test_input_is_bounded_and_closes_only_when_all_was_taken(loop: Loop) -> None:
    read_end, write_end = pipe()
    stdin = Input(loop, write_end, terminal=False)
    data = bytes(i % 251 for i in range(streams.INPUT_BYTES * 3))
    accepted = stdin.write(0, data)
    assert streams.INPUT_BYTES <= accepted < len(data)
    assert stdin.write(accepted, data[accepted:]) == accepted, "full"
    stdin.finish()
    taken = bytearray()
    while part := read_or_none(read_end):
        taken += part
        pump(loop)
    assert taken == data[:accepted]
    assert read_or_none(read_end) == b"", "closed"
    os.close(read_end)


def read_or_none(fd: int) -> bytes | None:
    try:
        return os.read(fd, 10_000)
    except BlockingIOError:
        return None


def test_a_reader_that_is_gone_is_told(loop: Loop) -> None:
    read_end, write_end = pipe()
    stdin = Input(loop, write_end, terminal=False)
    os.close(read_end)
    with pytest.raises(RpcError, match="closed by its reader") as caught:
        stdin.write(0, b"x")
    assert caught.value.code == FAILED_PRECONDITION
    stdin.finish()
