# SPDX-License-Identifier: Apache-2.0
"""Protobuf messages as dicts, driven by the tables of `schema.py`.

Importing the protobuf library costs too much in an emulated guest, so the agent uses this codec; its tests hold it to
the library, message by message. A message is a dict from proto field name to value: int (also for enums), bool, str,
bytes, dict for a message or map, list for a repeated field. Absent fields are absent from the dict: read scalars with
`.get(name, 0)`.

It follows the library where bytes are odd but legal: unknown fields and fields of the wrong wire type are skipped,
the last scalar wins, repeated occurrences of one message merge, repeated numbers may be packed or not, over-long
varints are cut to the field's width. Everything else raises WireError, and nothing else does.
"""

from kata_wire.errors import WireError
from kata_wire.schema import MESSAGES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

Buffer = bytes | bytearray | memoryview


class Elsewhere:
    """A value of a `bytes` field that is not in memory. `encode_parts` takes it as it is; its writer moves it."""

    __slots__ = ()

    def __len__(self) -> int:
        """Bytes that are left of it."""
        raise NotImplementedError

    def move(self, fd: int) -> int:
        """Write what `fd` takes now, at least one byte; how many. Raises OSError, BlockingIOError for none."""
        raise NotImplementedError


MAX_MESSAGE_BYTES = 4 << 20  # no ttrpc frame is larger
MAX_VALUES = 1 << 17  # fields and elements in one message: some 30 MB of dicts at worst, in a guest of 256 MB
MAX_GROUP_DEPTH = 100  # the library's recursion limit; only unknown groups nest, our messages do not

_VARINT, _I64, _LEN, _GROUP, _END_GROUP, _I32 = range(6)
_U64 = (1 << 64) - 1
_RANGES = {
    "int32": (-(1 << 31), (1 << 31) - 1),
    "enum": (-(1 << 31), (1 << 31) - 1),
    "uint32": (0, (1 << 32) - 1),
    "int64": (-(1 << 63), (1 << 63) - 1),
    "uint64": (0, _U64),
}
_INTEGERS = frozenset(_RANGES)
_DEFAULTS: "dict[str, Any]" = {"bool": False, "string": "", "bytes": b"", **dict.fromkeys(_RANGES, 0)}


class _Field:
    """One row of a schema table, ready for use."""

    __slots__ = ("key", "key_packed", "kind", "label", "name", "ref", "wire")

    def __init__(self, number: int, name: str, kind: str, label: str, ref: str) -> None:
        self.name = name
        self.kind = kind
        self.label = label  # "" (no presence), "optional", "repeated", "map"
        self.ref = ref
        self.wire = _LEN if kind in ("string", "bytes", "message") else _VARINT
        self.key = varint(number << 3 | self.wire)
        self.key_packed = varint(number << 3 | _LEN)


_by_number: "dict[str, dict[int, _Field]]" = {}
_by_name: "dict[str, dict[str, _Field]]" = {}


def _load(message: str) -> None:
    try:
        rows = MESSAGES[message]
    except KeyError:
        raise WireError(f"message `{message}` is not in the schema") from None
    numbers: dict[int, _Field] = {}
    for number, name, kind, label, ref in rows:
        numbers[number] = _Field(number, name, kind, label, ref)
    _by_name[message] = {field.name: field for field in numbers.values()}
    _by_number[message] = numbers


# ---------------------------------------------------------------- encoding


def encode(message: str, value: "dict[str, Any]") -> bytes:
    """The bytes of `value` as message `message` (full name, such as `grpc.CreateContainerRequest`).

    Fields at their default are left out unless they have presence; None counts as absent. Raises WireError for a
    field the message does not have and for a value of the wrong type or out of range."""
    return b"".join(encode_parts(message, value)[0])


def encode_parts(message: str, value: "dict[str, Any]") -> "tuple[list[Buffer], int]":
    """As `encode`, but in pieces with their total length, so that a large `bytes` value is not copied."""
    if message not in _by_name:
        _load(message)
    if not isinstance(value, dict):
        raise WireError(f"`{message}` must be a dict, not `{type(value).__name__}`")
    fields = _by_name[message]
    parts: list[Buffer] = []
    size = 0
    for name, item in value.items():
        field = fields.get(name)
        if field is None:
            raise WireError(f"message `{message}` has no field `{name}`; it has {', '.join(fields) or 'none'}")
        if item is None:
            continue
        try:
            size += _put_field(parts, field, item)
        except WireError as error:
            raise WireError(f"`{message}.{name}`: {error}") from None
    return parts, size


def _put_field(parts: "list[Buffer]", field: _Field, item: "Any") -> int:
    if field.label == "repeated":
        if not isinstance(item, (list, tuple)):
            raise WireError(f"must be a list, not `{type(item).__name__}`")
        if field.wire == _VARINT:
            return _put_packed(parts, field, item)
        return sum(_put_value(parts, field, element) for element in item)
    if field.label == "map":
        if not isinstance(item, dict):
            raise WireError(f"must be a dict, not `{type(item).__name__}`")
        return sum(_put_value(parts, field, {"key": key, "value": item[key]}) for key in item)
    if field.label == "" and field.kind != "message" and item == _DEFAULTS[field.kind]:
        if field.wire == _VARINT:
            _scalar_bytes(field.kind, item)  # not written, but checked: False and 0.0 are no int
        return 0
    return _put_value(parts, field, item)


def _put_packed(parts: "list[Buffer]", field: _Field, items: "list[Any] | tuple[Any, ...]") -> int:
    if not items:
        return 0
    body = b"".join([_scalar_bytes(field.kind, item) for item in items])
    head = field.key_packed + varint(len(body))
    parts += (head, body)
    return len(head) + len(body)


def _put_value(parts: "list[Buffer]", field: _Field, item: "Any") -> int:
    kind = field.kind
    if kind == "message":
        inner, length = encode_parts(field.ref, item)
        head = field.key + varint(length)
        parts.append(head)
        parts += inner
        return len(head) + length
    body: Buffer
    if kind == "string":
        if not isinstance(item, str):
            raise WireError(f"must be a str, not `{type(item).__name__}`")
        try:
            body = item.encode()
        except UnicodeEncodeError:
            raise WireError("text is not valid Unicode") from None
    elif kind == "bytes":
        if isinstance(item, Elsewhere):
            head = field.key + varint(len(item))
            parts += (head, item)  # type: ignore[arg-type]  # comes out only where it went in
            return len(head) + len(item)
        if not isinstance(item, (bytes, bytearray, memoryview)):
            raise WireError(f"must be bytes, not `{type(item).__name__}`")
        body = item if not isinstance(item, memoryview) or (item.contiguous and item.itemsize == 1) else item.tobytes()
    else:
        whole = field.key + _scalar_bytes(kind, item)
        parts.append(whole)
        return len(whole)
    head = field.key + varint(len(body))
    parts += (head, body)
    return len(head) + len(body)


def _scalar_bytes(kind: str, item: "Any") -> bytes:
    if kind == "bool":
        if not isinstance(item, bool):
            raise WireError(f"must be a bool, not `{type(item).__name__}`")
        return b"\x01" if item else b"\x00"
    if not isinstance(item, int) or isinstance(item, bool):
        raise WireError(f"must be an int, not `{type(item).__name__}`")
    low, high = _RANGES[kind]
    if not low <= item <= high:
        raise WireError(f"`{item}` does not fit {kind}")
    return varint(item & _U64)


def varint(value: int) -> bytes:
    """A number below 2**64 as protobuf writes it."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


# ---------------------------------------------------------------- decoding


def decode(
    message: str, data: Buffer, *, views: bool = False, max_bytes: int = MAX_MESSAGE_BYTES, max_values: int = MAX_VALUES
) -> "dict[str, Any]":
    """The dict of message `message` in `data`. Raises WireError, and nothing else, whatever the bytes.

    With `views`, `bytes` fields are memoryviews into `data` instead of copies.
    """
    if len(data) > max_bytes:
        raise WireError(f"message `{message}` of `{len(data)}` bytes is over the limit of `{max_bytes}`")
    reader = _Reader(data, views, max_values)
    value: dict[str, Any] = {}
    try:
        reader.message(message, 0, len(data), value)
    except WireError as error:
        raise WireError(f"message `{message}` is malformed: {error}") from None
    return value


class _Reader:
    """Walks one buffer. Positions are absolute; `end` is where the message at hand stops."""

    __slots__ = ("data", "left", "view", "views")

    def __init__(self, data: Buffer, views: bool, max_values: int) -> None:
        self.data = data
        self.view = memoryview(data)
        self.views = views
        self.left = max_values

    def message(self, name: str, pos: int, end: int, value: "dict[str, Any]") -> None:
        """Read the fields between `pos` and `end` into `value`."""
        if name not in _by_number:
            _load(name)
        fields = _by_number[name]
        data = self.data
        while pos < end:
            tag = data[pos]
            if tag < 0x80:
                pos += 1
            else:
                tag, pos = self._tag(pos, end)
            wire = tag & 7
            number = tag >> 3
            if number == 0:
                raise WireError(f"field number 0 at byte `{pos}`")
            self._count()
            field = fields.get(number)
            if field is not None:
                if wire == field.wire:
                    if wire == _LEN:
                        pos, stop = self._span(pos, end)
                        self._delimited(field, pos, stop, value)
                        pos = stop
                    else:
                        raw, pos = self._varint(pos, end)
                        self._set(field, value, _number(field.kind, raw))
                    continue
                if wire == _LEN and field.label == "repeated":
                    pos, stop = self._span(pos, end)
                    self._packed(field, pos, stop, value)
                    pos = stop
                    continue
            pos = self._skip(number, wire, pos, end)

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise WireError("too many values")

    def _set(self, field: _Field, value: "dict[str, Any]", item: "Any") -> None:
        if field.label == "repeated":
            value.setdefault(field.name, []).append(item)
        else:
            value[field.name] = item

    def _delimited(self, field: _Field, pos: int, stop: int, value: "dict[str, Any]") -> None:
        kind = field.kind
        if kind == "string":
            try:
                self._set(field, value, str(self.view[pos:stop], "utf-8"))
            except UnicodeDecodeError:
                raise WireError(f"field `{field.name}` is not valid UTF-8") from None
        elif kind == "bytes":
            self._set(field, value, self.view[pos:stop] if self.views else bytes(self.view[pos:stop]))
        elif field.label == "map":
            entry: dict[str, Any] = {}
            self.message(field.ref, pos, stop, entry)
            key, default = _entry_defaults(field.ref)
            value.setdefault(field.name, {})[entry.get("key", key)] = entry.get("value", default)
        elif field.label == "repeated":
            element: dict[str, Any] = {}
            self.message(field.ref, pos, stop, element)
            value.setdefault(field.name, []).append(element)
        else:
            self.message(field.ref, pos, stop, value.setdefault(field.name, {}))

    def _packed(self, field: _Field, pos: int, stop: int, value: "dict[str, Any]") -> None:
        items = value.setdefault(field.name, [])
        while pos < stop:
            self._count()
            raw, pos = self._varint(pos, stop)
            items.append(_number(field.kind, raw))

    def _varint(self, pos: int, end: int) -> tuple[int, int]:
        data = self.data
        result = shift = 0
        while pos < end:
            byte = data[pos]
            pos += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return result & _U64, pos
            shift += 7
            if shift == 70:
                raise WireError(f"number before byte `{pos}` has more than ten bytes")
        raise WireError("ends inside a number")

    def _tag(self, pos: int, end: int) -> tuple[int, int]:
        first = pos
        tag, pos = self._varint(pos, end)
        if pos - first > 5 or tag > 0xFFFF_FFFF:
            raise WireError(f"tag at byte `{first}` is too large")
        return tag, pos

    def _span(self, pos: int, end: int) -> tuple[int, int]:
        """Where a length-delimited value starts and stops."""
        length, pos = self._varint(pos, end)
        if length > end - pos:
            raise WireError(f"a value of `{length}` bytes at byte `{pos}` has `{end - pos}` bytes")
        return pos, pos + length

    def _skip(self, number: int, wire: int, pos: int, end: int) -> int:
        """Past one unknown value, groups included."""
        groups: list[int] = []
        while True:
            if wire == _VARINT:
                _, pos = self._varint(pos, end)
            elif wire == _LEN:
                _, pos = self._span(pos, end)
            elif wire in (_I64, _I32):
                pos += 8 if wire == _I64 else 4
                if pos > end:
                    raise WireError("ends inside a fixed-size value")
            elif wire == _GROUP:
                groups.append(number)
                if len(groups) > MAX_GROUP_DEPTH:
                    raise WireError("groups nest too deep")
            elif wire == _END_GROUP and groups and groups[-1] == number:
                groups.pop()
            else:
                raise WireError(f"wire type `{wire}` of field `{number}` has no place here")
            if not groups:
                return pos
            if pos >= end:
                raise WireError("ends inside a group")
            self._count()
            tag, pos = self._tag(pos, end)
            number, wire = tag >> 3, tag & 7
            if number == 0:
                raise WireError(f"field number 0 at byte `{pos}`")


def _number(kind: str, raw: int) -> int:
    """A varint cut to the width of its field, as the library does."""
    if kind == "uint64":
        return raw
    if kind == "uint32":
        return raw & 0xFFFF_FFFF
    if kind == "bool":
        return raw != 0
    if kind == "int64":
        return raw - (1 << 64) if raw >> 63 else raw
    raw &= 0xFFFF_FFFF
    return raw - (1 << 32) if raw >> 31 else raw


def _entry_defaults(entry: str) -> "tuple[Any, Any]":
    fields = _by_name[entry]
    kind = fields["value"].kind
    return _DEFAULTS[fields["key"].kind], {} if kind == "message" else _DEFAULTS[kind]
