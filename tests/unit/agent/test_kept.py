# SPDX-License-Identifier: Apache-2.0
"""Large output, kept in pipes: over real pipes and sockets, against the simplest possible model."""

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest.agent.connection import Connection
from guest.agent.errors import RpcError
from guest.agent.kept import Answer, Kept
from guest.agent.loop import Loop
from guest.agent.streams import KEPT_BYTES, Output
from kata_wire import envelope, table, ttrpc
from tests.unit.agent.test_streams import pipe, pump

FIRST = 64 << 10  # what a ring holds in the beginning


def pattern(start: int, size: int) -> bytes:
    """The bytes of a stream from `start` on; no stretch of them is like another."""
    first = start // 4
    whole = b"".join(number.to_bytes(4, "big") for number in range(first, first + size // 4 + 2))
    return whole[start - 4 * first :][:size]


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def source() -> Iterator[tuple[int, int]]:
    read_end, write_end = pipe()
    yield read_end, write_end
    os.close(read_end)
    os.close(write_end)


def sent(answer: Answer | bytes, limit: int | None = None) -> bytes:
    """What a host gets of an answer, through a socket that takes little at a time; all, or at least `limit` bytes."""
    if isinstance(answer, bytes):
        return answer
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)
    ours.setblocking(False)
    got = bytearray()
    with ours, theirs:
        while len(answer) and (limit is None or len(got) < limit):
            moved = answer.move(ours.fileno())
            while moved:
                piece = theirs.recv(moved)
                got += piece
                moved -= len(piece)
    return bytes(got)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 60_000)),
        st.tuples(st.just("take"), st.integers(1, 200_000)),
        st.tuples(st.just("acknowledge"), st.integers(0, 200_000)),
        st.tuples(st.just("answer"), st.integers(1, 300_000)),
        st.tuples(st.just("ahead"), st.integers(1, 300_000)),  # of what comes after an answer that is on its way
        st.tuples(st.just("cut"), st.integers(1, 300_000)),  # an answer of which only a part leaves
    ),
    max_size=40,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(steps=STEPS)
def test_every_answer_begins_so_far_after_the_first_byte_that_was_not_acknowledged(
    steps: list[tuple[str, int]],
) -> None:
    read_end, write_end = pipe()
    kept = Kept()
    written = taken = acknowledged = 0
    for kind, size in steps:
        if kind == "write":
            try:
                written += os.write(write_end, pattern(written, size))
            except BlockingIOError:
                pass
        elif kind == "take":
            try:
                taken += kept.take(read_end, size)
            except BlockingIOError:
                assert written == taken or kept.full
        elif kind == "acknowledge":
            size = min(size, taken - acknowledged)
            kept.drop(size)
            acknowledged += size
        else:
            skip = min(size, taken - acknowledged) if kind == "ahead" else 0
            answer = kept.answer(size, skip)
            whole = len(answer)
            assert whole == min(size, taken - acknowledged - skip)
            got = sent(answer, whole // 2 if kind == "cut" else None)
            assert got == pattern(acknowledged + skip, len(got))
            assert len(got) == whole or kind == "cut"
    kept.close()
    os.close(read_end)
    os.close(write_end)


def test_an_answer_on_its_way_outlives_what_is_acknowledged_and_closed(source: tuple[int, int]) -> None:
    read_end, write_end = source
    kept = Kept()
    size = os.write(write_end, pattern(0, 60_000))
    assert kept.take(read_end, size) == size
    first, second = kept.answer(size), kept.answer(size)
    kept.drop(size)
    kept.close()
    assert sent(first) == sent(second) == pattern(0, size)


def test_descriptors_are_given_back(source: tuple[int, int]) -> None:
    read_end, write_end = source
    before = len(os.listdir("/proc/self/fd"))
    kept = Kept()
    os.write(write_end, bytes(50_000))
    kept.take(read_end, 50_000)
    answers = [kept.answer(50_000) for _ in range(3)]
    sent(answers[0])
    sent(answers[1], 1)
    kept.close()
    del answers, kept
    assert len(os.listdir("/proc/self/fd")) == before


def test_when_small_writes_have_taken_every_page_it_is_full_until_something_is_acknowledged(
    source: tuple[int, int],
) -> None:
    read_end, write_end = source
    kept = Kept()
    count = 0
    while not kept.full:
        os.write(write_end, b"x")
        try:
            count += kept.take(read_end, 100)
        except BlockingIOError:
            assert kept.full, "there was a byte"
    assert bytes(kept.answer(1 << 20)) == b"x" * count
    kept.drop(1)
    assert not kept.full
    assert kept.take(read_end, 100) == 1
    kept.close()


def large(loop: Loop, head: int = FIRST) -> tuple[Output, int]:
    """An output that has been found large, with everything of its first `head` bytes acknowledged."""
    read_end, write_end = pipe()
    output = Output(loop, read_end)
    assert os.write(write_end, pattern(0, head)) == head
    while output.end < head:
        pump(loop)
        output.demand()
    output.acknowledge(head)
    return output, write_end


def written_and_read(loop: Loop, output: Output, write_end: int, size: int) -> None:
    assert os.write(write_end, pattern(output.end, size)) == size
    wanted = output.end + size
    while output.end < wanted:
        pump(loop)
        output.demand()


def test_a_pipe_that_fills_its_ring_is_kept_from_then_on_and_ends_like_any_other(loop: Loop) -> None:
    output, write_end = large(loop)
    written_and_read(loop, output, write_end, 50_000)
    answer = output.peek(1 << 20)
    assert isinstance(answer, Answer)
    os.close(write_end)
    while not output.at_eof:
        pump(loop)
        output.demand()
    assert sent(answer) == pattern(FIRST, 50_000)
    output.acknowledge(FIRST + 20_000)
    assert sent(output.peek(1 << 20)) == pattern(FIRST + 20_000, 30_000)  # type: ignore[arg-type]
    with pytest.raises(RpcError, match=f"legal are `{FIRST + 20_000}` to `{FIRST + 50_000}`"):
        output.acknowledge(FIRST + 50_001)
    output.acknowledge(output.end)
    assert output.peek(10) == b""


def test_a_writer_whose_bytes_nobody_acknowledges_is_held_back(loop: Loop) -> None:
    output, write_end = large(loop)
    written = FIRST
    for _ in range(1000):
        try:
            written += os.write(write_end, pattern(written, 50_000))
        except BlockingIOError:
            output.demand()
            pump(loop)
        output.demand()
    assert output.end - output.acknowledged <= KEPT_BYTES
    while written:  # until there is no room for one more
        try:
            os.write(write_end, b"x")
        except BlockingIOError:
            break
    os.close(write_end)
    output.close()


def test_a_terminal_gets_a_larger_ring(loop: Loop) -> None:
    master, slave = os.openpty()
    os.set_blocking(master, False)
    os.set_blocking(slave, False)
    import tty

    tty.setraw(slave)
    output = Output(loop, master)
    written = seen = 0
    while seen < 3 * FIRST:
        try:
            written += os.write(slave, pattern(written, 1000))
        except BlockingIOError:
            pass
        output.demand()
        pump(loop)
        if output.end - seen >= FIRST // 2 or output.end >= FIRST:
            data = bytes(output.peek(1 << 20))
            assert data == pattern(seen, len(data))
            seen += len(data)
            output.acknowledge(seen)
    os.close(slave)
    output.close()


def test_frames_stay_whole_around_an_answer_that_leaves_in_pieces(loop: Loop) -> None:
    """Nothing comes between the pieces, what was queued before comes before, and what was queued later comes later."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)
    connection = Connection(
        loop,
        ours.detach(),
        serial=True,
        on_frame=lambda connection, frame: None,
        on_bad_frame=lambda connection, stream_id, message: None,
        on_reset=lambda connection: None,
    )
    output, write_end = large(loop)
    size = 60_000
    written_and_read(loop, output, write_end, size)
    message = "katafsm.ReadStreamResponse"
    for stream_id in (1, 3, 5):
        answer = {"offset": FIRST, "data": output.peek(1 << 20)}
        connection.send(*envelope.response_parts(stream_id, message, answer))
        connection.send(*envelope.response_parts(stream_id + 100, message, {"offset": stream_id}))
    decoder, frames = ttrpc.Decoder(), []
    theirs.setblocking(False)
    while len(frames) < 6:
        try:
            decoder.feed(theirs.recv(10_000))
        except BlockingIOError:
            pump(loop)
        while (frame := decoder.next()) is not None:
            frames.append(frame)
    assert [frame.stream_id for frame in frames] == [1, 101, 3, 103, 5, 105]
    for frame in frames[::2]:
        value = table.decode(message, bytes(envelope.parse_response(frame.payload).payload))
        assert value == {"offset": FIRST, "data": pattern(FIRST, size)}
    connection.close()
    theirs.close()
    os.close(write_end)
    output.close()
