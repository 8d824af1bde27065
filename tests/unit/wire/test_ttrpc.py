# SPDX-License-Identifier: Apache-2.0
"""Goal: frames survive any chunking, and a bad frame costs only itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_wire import ttrpc
from kata_wire.errors import FrameTooLarge, UnknownFrameType, WireError

FRAMES = [
    ttrpc.Frame(1, ttrpc.REQUEST, 0, b"hello"),
    ttrpc.Frame(3, ttrpc.RESPONSE, ttrpc.FLAG_REMOTE_CLOSED, b""),
    ttrpc.Frame(0xFFFF_FFFF, ttrpc.DATA, 0xFF, bytes(range(256))),
]


def encoded(frame: ttrpc.Frame) -> bytes:
    return ttrpc.encode(frame.stream_id, frame.type, frame.flags, frame.payload)


def drain(decoder: ttrpc.Decoder) -> list[ttrpc.Frame | tuple[type, int]]:
    """Every frame at hand; a refused one as its error's type and stream id."""
    out: list[ttrpc.Frame | tuple[type, int]] = []
    while True:
        try:
            frame = decoder.next()
        except (FrameTooLarge, UnknownFrameType) as error:
            out.append((type(error), error.stream_id))
            continue
        if frame is None:
            return out
        out.append(frame)


def test_the_header_is_the_one_of_ttrpc():
    assert ttrpc.encode(0x01020305, ttrpc.REQUEST, 2, b"abc") == b"\0\0\0\3\1\2\3\5\1\2abc"


@pytest.mark.parametrize("cut", range(sum(len(encoded(frame)) for frame in FRAMES) + 1))
def test_frames_come_out_whole_when_split_at_any_byte(cut):
    data = b"".join(map(encoded, FRAMES))
    decoder = ttrpc.Decoder()
    decoder.feed(data[:cut])
    got = drain(decoder)
    decoder.feed(memoryview(data)[cut:])
    assert got + drain(decoder) == FRAMES
    assert not decoder.partial


frame_like = st.one_of(
    st.builds(ttrpc.Frame, st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3]), st.integers(0, 255), st.binary()),
    st.builds(ttrpc.Frame, st.integers(0, 2**32 - 1), st.just(1), st.just(0), st.binary(min_size=33, max_size=90)),
    st.builds(ttrpc.Frame, st.integers(0, 2**32 - 1), st.sampled_from([0, 4, 200]), st.just(0), st.binary(max_size=9)),
)


@given(st.lists(frame_like, max_size=8), st.lists(st.integers(1, 40), min_size=1, max_size=50))
def test_bad_frames_are_reported_once_and_skipped(frames, sizes):
    data = b"".join(map(encoded, frames))
    expected: list[object] = []
    for frame in frames:
        if len(frame.payload) > 32:
            expected.append((FrameTooLarge, frame.stream_id))
        elif frame.type not in (1, 2, 3):
            expected.append((UnknownFrameType, frame.stream_id))
        else:
            expected.append(frame)
    decoder = ttrpc.Decoder(max_payload=32)
    got: list[object] = []
    at = turn = 0
    while at < len(data):
        step = sizes[turn % len(sizes)]
        decoder.feed(data[at : at + step])
        got += drain(decoder)
        at, turn = at + step, turn + 1
    assert got == expected
    assert not decoder.partial


def test_an_oversized_payload_is_not_kept_and_names_its_stream():
    decoder = ttrpc.Decoder(max_payload=100)
    decoder.feed((1_000_000).to_bytes(4, "big") + (7).to_bytes(4, "big") + b"\1\0")
    with pytest.raises(
        FrameTooLarge, match="frame of `1000000` bytes on stream `7` is over the limit of `100`"
    ) as caught:
        decoder.next()
    assert caught.value.stream_id == 7
    for _ in range(10):
        decoder.feed(bytes(100_000))
        assert decoder.buffered == 0
        assert decoder.partial or _ == 9
    assert decoder.next() is None
    decoder.feed(encoded(FRAMES[0]))
    assert drain(decoder) == [FRAMES[0]]


def test_a_payload_of_exactly_the_limit_passes_and_one_more_does_not():
    at_limit = ttrpc.encode(1, ttrpc.REQUEST, 0, bytes(ttrpc.MAX_PAYLOAD_BYTES))
    decoder = ttrpc.Decoder()
    decoder.feed(at_limit)
    frame = decoder.next()
    assert frame is not None
    assert len(frame.payload) == ttrpc.MAX_PAYLOAD_BYTES
    with pytest.raises(FrameTooLarge, match="over the limit of `4194304`"):
        ttrpc.encode(1, ttrpc.REQUEST, 0, bytes(ttrpc.MAX_PAYLOAD_BYTES + 1))


def test_reset_forgets_a_partial_frame():
    decoder = ttrpc.Decoder()
    decoder.feed(encoded(FRAMES[0])[:-1])
    assert decoder.next() is None
    assert decoder.partial
    decoder.reset()
    decoder.feed(encoded(FRAMES[2]))
    assert drain(decoder) == [FRAMES[2]]


def test_a_long_run_of_small_frames_keeps_no_history():
    decoder = ttrpc.Decoder()
    one = encoded(FRAMES[2])
    block = one * 500 + one[:5]
    decoder.feed(block)
    decoder.feed(one[5:])
    assert len(drain(decoder)) == 501
    assert decoder.buffered == 0


@pytest.mark.parametrize(("stream_id", "kind", "flags"), [(-1, 1, 0), (2**32, 1, 0), (1, 256, 0), (1, 1, -1)])
def test_a_header_that_does_not_fit_is_refused(stream_id, kind, flags):
    with pytest.raises(WireError):
        ttrpc.encode(stream_id, kind, flags, b"")


@given(st.binary(max_size=300))
def test_any_bytes_raise_nothing_but_wire_errors(data):
    decoder = ttrpc.Decoder(max_payload=64)
    decoder.feed(data)
    drain(decoder)
    assert decoder.buffered <= len(data)


def test_a_frame_that_has_begun_can_be_left_to_the_caller():
    decoder = ttrpc.Decoder()
    whole = ttrpc.encode(9, ttrpc.RESPONSE, 0, bytes(range(200)))
    decoder.feed(whole[: ttrpc.HEADER_BYTES - 1])
    assert decoder.next() is None
    assert decoder.begun(64) is None
    decoder.feed(whole[ttrpc.HEADER_BYTES - 1 : 100])
    assert decoder.next() is None
    assert decoder.begun(64) == (ttrpc.Frame(9, ttrpc.RESPONSE, 0, bytes(range(64))), 200)
    assert decoder.release() == whole[ttrpc.HEADER_BYTES : 100]
    assert not decoder.partial
    decoder.feed(ttrpc.encode(11, ttrpc.RESPONSE, 0, b"next"))
    assert decoder.next() == ttrpc.Frame(11, ttrpc.RESPONSE, 0, b"next")
