# SPDX-License-Identifier: Apache-2.0
"""JSON through CPython's C accelerator alone.

The `json` package costs 11 ms to import (it pulls in `re` and `enum`), which is more than the whole of `state`; the C
scanner and encoder behind it cost a third of one. Used by the hot verbs, the shim and the control socket. Output is one
line, keys in insertion order, non-ASCII escaped.
"""

import _json

# The scanner reads these attributes off whatever it is given; a plain namespace serves.


class _Options:
    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(word: str) -> float:
        raise ValueError(f"`{word}` is not JSON")


_scan = _json.make_scanner(_Options)  # type: ignore[arg-type]
_WHITESPACE = " \t\n\r"


def loads(text: str | bytes) -> object:
    """The value that `text` holds. Raises `ValueError` for anything that is not one whole JSON value."""
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    start = len(text) - len(text.lstrip(_WHITESPACE))
    try:
        value, end = _scan(text, start)
    except StopIteration as stop:
        raise ValueError(f"not JSON at character {stop.value}") from None
    except SystemError:
        # CPython 3.11's scanner takes its exception class from `json.decoder` and forgets to raise when that is not
        # imported. Only now is it worth importing: it says what is wrong and where.
        import json

        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if text[end:].strip(_WHITESPACE):
        raise ValueError(f"text after the JSON value, at character {end}")
    return value


def loads_object(text: str | bytes) -> dict[str, object]:
    """Like `loads`, for a JSON object and nothing else."""
    value = loads(text)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _refuse(value: object) -> object:
    raise TypeError(f"{type(value).__name__} is not JSON")


def quote(text: str) -> str:
    """`text` as a JSON string, quotes included."""
    return str(_json.encode_basestring_ascii(text))


# Made once, without a memory of what they are inside of: a circle is too deep all the same.
_encode = _json.make_encoder(None, _refuse, _json.encode_basestring_ascii, None, ": ", ", ", False, False, False)
_encode_compact = _json.make_encoder(None, _refuse, _json.encode_basestring_ascii, None, ":", ",", False, False, False)


def dumps(value: object, *, compact: bool = False) -> str:
    """`value` as one line of JSON; with `compact`, no space is in it but in strings. Raises `TypeError` or `ValueError`
    for what JSON cannot hold."""
    try:
        return "".join((_encode_compact if compact else _encode)(value, 0))
    except RecursionError:
        raise ValueError("nested too deeply for JSON") from None


def _indented(value: object, pad: str, unit: str) -> str:
    inner = pad + unit
    if isinstance(value, dict) and value:
        rows = [f"{inner}{quote(str(key))}: {_indented(item, inner, unit)}" for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + pad + "}"
    if isinstance(value, list | tuple) and value:
        return "[\n" + ",\n".join(inner + _indented(item, inner, unit) for item in value) + "\n" + pad + "]"
    return dumps(value)


def dumps_indented(value: object, unit: str = "  ") -> str:
    """`value` as JSON over several lines, indented by `unit`, without a final newline."""
    return _indented(value, "", unit)
