# SPDX-License-Identifier: Apache-2.0
"""Goal: the table codec and the protobuf library cannot be told apart, message by message, on good bytes and on bad."""

from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kata_wire import messages, table
from kata_wire.errors import WireError
from kata_wire.schema import MESSAGES

TOP = sorted(name for name in MESSAGES if not name.endswith("Entry"))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "string": TEXT,
    "bytes": st.binary(max_size=40),
    **{kind: st.integers(low, high) for kind, (low, high) in table._RANGES.items()},
}
FEW = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))


def of_kind(kind: str, ref: str) -> st.SearchStrategy[Any]:
    return values(ref) if kind == "message" else KINDS[kind]


def values(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """Dicts for one message, with any subset of its fields."""
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for _, field, kind, label, ref in MESSAGES[name]:
        if label == "map":
            entry = {row[1]: row for row in MESSAGES[ref]}
            key, value = entry["key"], entry["value"]
            fields[field] = st.dictionaries(of_kind(key[2], key[4]), of_kind(value[2], value[4]), max_size=3)
        elif label == "repeated":
            fields[field] = st.lists(of_kind(kind, ref), max_size=3)
        else:
            fields[field] = of_kind(kind, ref)
    return st.deferred(lambda: st.fixed_dictionaries({}, optional=fields))


def fill(message: Message, name: str, value: dict[str, Any]) -> None:
    """Put a dict into a library message, the library's way."""
    rows = {row[1]: row for row in MESSAGES[name]}
    for field, item in value.items():
        _, _, kind, label, ref = rows[field]
        target = getattr(message, field)
        if label == "map":
            inner = {row[1]: row for row in MESSAGES[ref]}["value"]
            for key, element in item.items():
                if inner[2] == "message":
                    fill(target[key], inner[4], element)
                else:
                    target[key] = element
        elif label == "repeated":
            for element in item:
                if kind == "message":
                    fill(target.add(), ref, element)
                else:
                    target.append(element)
        elif kind == "message":
            target.SetInParent()
            fill(target, ref, item)
        else:
            setattr(message, field, item)


def from_library(message: Message, name: str) -> dict[str, Any]:
    """A library message as a dict without defaults."""
    rows = {row[1]: row for row in MESSAGES[name]}
    out: dict[str, Any] = {}
    for descriptor, item in message.ListFields():
        _, field, kind, label, ref = rows[descriptor.name]
        if label == "map":
            inner = {row[1]: row for row in MESSAGES[ref]}["value"]
            out[field] = {
                key: from_library(item[key], inner[4]) if inner[2] == "message" else item[key] for key in item
            }
        elif label == "repeated":
            out[field] = [from_library(element, ref) if kind == "message" else element for element in item]
        else:
            out[field] = from_library(item, ref) if kind == "message" else item
    return out


def plain(name: str, value: dict[str, Any]) -> dict[str, Any]:
    """A dict without what the library cannot tell from absent: defaults without presence, empty lists and maps."""
    out: dict[str, Any] = {}
    for _, field, kind, label, ref in MESSAGES[name]:
        if field not in value:
            continue
        item = value[field]
        if label == "map":
            inner = {row[1]: row for row in MESSAGES[ref]}["value"]
            item = {key: plain(inner[4], item[key]) if inner[2] == "message" else item[key] for key in item}
        elif kind == "message":
            item = [plain(ref, element) for element in item] if label == "repeated" else plain(ref, item)
        if item or label == "optional" or (kind == "message" and label == ""):
            out[field] = item
    return out


def test_every_message_is_under_test():
    assert len(TOP) > 100


@pytest.mark.parametrize("name", TOP)
@FEW
@given(data=st.data())
def test_both_codecs_agree_in_both_directions(name, data):
    value = data.draw(values(name))
    library = messages.message_class(name)()
    fill(library, name, value)
    ours = table.encode(name, value)
    assert type(library).FromString(ours) == library
    assert len(ours) == library.ByteSize()
    assert plain(name, table.decode(name, library.SerializeToString())) == plain(name, value)
    parts, size = table.encode_parts(name, value)
    assert b"".join(parts) == ours
    assert size == len(ours)


def check_like_the_library(name: str, data: bytes) -> None:
    try:
        ours = table.decode(name, data)
    except WireError as error:
        if not MESSAGES[name] and "field number 0" in str(error):
            return  # the library looks for this only in messages that have fields; we refuse it everywhere
        ours = None
    try:
        library = messages.message_class(name).FromString(data)
    except DecodeError:
        assert ours is None
        return
    assert ours is not None
    assert plain(name, ours) == from_library(library, name)


@MANY
@given(st.sampled_from(TOP), st.data())
def test_damaged_bytes_are_taken_or_refused_as_the_library_does(name, data):
    raw = bytearray(table.encode(name, data.draw(values(name))))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        how = data.draw(st.sampled_from(["cut", "set", "insert", "delete"]))
        if how == "cut":
            del raw[at:]
        elif how == "insert":
            raw[at:at] = data.draw(st.binary(max_size=12))
        elif at < len(raw):
            if how == "set":
                raw[at] = data.draw(st.integers(0, 255))
            else:
                del raw[at]
    check_like_the_library(name, bytes(raw))


@MANY
@given(st.sampled_from(TOP), st.binary(max_size=60))
def test_random_bytes_are_taken_or_refused_as_the_library_does(name, data):
    check_like_the_library(name, data)


@MANY
@given(st.data())
def test_concatenated_messages_merge_as_the_library_does(data):
    name = data.draw(st.sampled_from(["grpc.CreateContainerRequest", "grpc.StatsContainerResponse", "ttrpc.Response"]))
    check_like_the_library(name, b"".join(table.encode(name, data.draw(values(name))) for _ in range(2)))


@pytest.mark.parametrize(
    "data",
    [
        b"\x08" + b"\xff" * 9 + b"\x01",  # -1 as int32
        b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # more bits than 64
        b"\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00",  # eleven bytes
        b"\x08\xff\xff\xff\xff\x0f",  # 2**32 - 1 in an int32
        b"\x88\x80\x00\x07",  # an over-long tag
        b"\x88\x80\x80\x80\x00\x07",
        b"\x88\x80\x80\x80\x80\x00\x07",
        b"\x88\x80\x80\x80\x80\x01\x07",
        b"\xf8\xff\xff\xff\x0f\x01",  # the largest field number
        b"\xf8\xff\xff\xff\x1f\x01",  # one bit more
        b"\x00\x01",  # field number 0
        b"\x08\x01\x00\x01",
        b"\x0c",  # the end of no group
        b"\x0b\x0c",  # an empty group
        b"\x0b\x14",  # the end of another group
        b"\x0b\x08\x01\x13\x14\x0c",
        b"\x0b" * 50 + b"\x0c" * 50,
        b"\x0b" * 300 + b"\x0c" * 300,
        b"\x0e",
        b"\x0f",
        b"\x0d\0\0\0\0",
        b"\x0d\0\0\0",
        b"\x09\0\0\0\0\0\0\0\0",
        b"\x0a\x80\x80\x80\x80\x10",
    ],
)
def test_odd_bytes_are_taken_or_refused_as_the_library_does(data):
    check_like_the_library("grpc.WaitProcessResponse", data)
    check_like_the_library("grpc.CpuUsage", data)
    check_like_the_library("google.protobuf.Empty", data)


@pytest.mark.parametrize("text", [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"a\0b", b"\xe2\x82"])
def test_text_is_utf8_or_refused(text):
    check_like_the_library("grpc.OOMEvent", b"\x0a" + bytes([len(text)]) + text)


def test_numbers_may_be_packed_or_not():
    packed = table.encode("grpc.CpuUsage", {"percpu_usage": [1, 300]})
    assert packed == b"\x12\x03\x01\xac\x02"
    loose = b"\x10\x01\x10\xac\x02"
    assert table.decode("grpc.CpuUsage", packed) == table.decode("grpc.CpuUsage", loose) == {"percpu_usage": [1, 300]}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("grpc.OOMEvent", {"container": "x"}, "message `grpc.OOMEvent` has no field `container`; it has container_id"),
        ("grpc.OOMEvent", {"container_id": 7}, "`grpc.OOMEvent.container_id`: must be a str, not `int`"),
        ("grpc.OOMEvent", {"container_id": "\ud800"}, "text is not valid Unicode"),
        ("grpc.OOMEvent", {"container_id": b""}, "must be a str, not `bytes`"),
        ("grpc.Metric", {}, "message `grpc.Metric` is not in the schema"),
        ("grpc.OOMEvent", [], "`grpc.OOMEvent` must be a dict, not `list`"),
        ("grpc.WaitProcessResponse", {"status": 2**31}, "`2147483648` does not fit int32"),
        ("grpc.WaitProcessResponse", {"status": False}, "must be an int, not `bool`"),
        ("grpc.WaitProcessResponse", {"status": 1.5}, "must be an int, not `float`"),
        ("grpc.WriteStreamResponse", {"len": -1}, "`-1` does not fit uint32"),
        ("grpc.ReadStreamResponse", {"data": "x"}, "must be bytes, not `str`"),
        ("grpc.CreateSandboxRequest", {"dns": "1.1.1.1"}, "must be a list, not `str`"),
        ("grpc.CreateSandboxRequest", {"sandbox_pidns": 1}, "must be a bool, not `int`"),
        ("grpc.Spec", {"Annotations": []}, "must be a dict, not `list`"),
        ("grpc.UpdateRoutesRequest", {"routes": {"Routes": [{"dest": 1}]}}, "`types.Route.dest`: must be a str"),
    ],
)
def test_a_value_that_does_not_fit_is_named(name, value, message):
    with pytest.raises(WireError) as caught:
        table.encode(name, value)
    assert message in str(caught.value)


def test_none_is_absent_and_zero_with_presence_is_sent():
    assert table.encode("grpc.OOMEvent", {"container_id": None}) == b""
    assert table.encode("grpc.ExecProcessRequest", {"stdin_port": 0}) == b"\x28\x00"
    assert table.decode("grpc.ExecProcessRequest", b"\x28\x00") == {"stdin_port": 0}


def test_sizes_and_counts_are_limited():
    with pytest.raises(WireError, match="`4194305` bytes is over the limit of `4194304`"):
        table.decode("grpc.OOMEvent", bytes(table.MAX_MESSAGE_BYTES + 1))
    for bomb in (b"\x1a\x00", b"\x78\x00", b"\x7b\x7c"):  # empty messages, unknown numbers, unknown groups
        with pytest.raises(WireError, match="too many values"):
            table.decode("grpc.CreateSandboxRequest", bomb * (table.MAX_VALUES + 1))
    with pytest.raises(WireError, match="too many values"):
        table.decode("grpc.CpuUsage", b"\x12" + table.varint(1 << 18) + bytes(1 << 18))


def test_large_bytes_are_neither_copied_in_nor_out():
    data = bytearray(1 << 20)
    parts, _ = table.encode_parts("katafsm.ReadStreamResponse", {"data": data, "offset": 5, "eof": True})
    assert any(part is data for part in parts)
    whole = b"".join(parts)
    view = table.decode("katafsm.ReadStreamResponse", whole, views=True)["data"]
    assert isinstance(view, memoryview)
    assert view.obj is whole
