# SPDX-License-Identifier: Apache-2.0
"""JSON through the C scanner and the C encoder alone; the `json` package would also import `re` and `enum`."""

from __future__ import annotations

import _json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BLANK = " \t\r\n"


def _constant(name: str) -> float:
    raise ValueError(f"`{name}` is not JSON")


class _Context:
    """What the scanner wants to know of its decoder (CPython `Modules/_json.c`, `scanner_new`)."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_constant)
    memo: dict[str, str] = {}  # noqa: RUF012 - the scanner keeps its own; the attribute must exist


def _unencodable(value: object) -> object:
    raise ValueError(f"a value of type `{type(value).__name__}` has no form in JSON")


_scan = _json.make_scanner(_Context)  # type: ignore[arg-type]
_chunks = _json.make_encoder(None, _unencodable, _json.encode_basestring_ascii, None, ":", ",", False, False, False)


def loads(text: bytes | str) -> Any:
    """The value of a JSON text. Raises ValueError."""
    try:
        string = text if isinstance(text, str) else str(text, "utf-8")
        start = len(string) - len(string.lstrip(_BLANK))
        value, end = _scan(string, start)
    except StopIteration:
        raise ValueError("not JSON: a value is missing") from None
    except SystemError:  # the scanner could not find `json.decoder` to raise its error from
        raise ValueError("not JSON") from None
    except RecursionError:
        raise ValueError("JSON is nested too deep") from None
    if string[end:].strip(_BLANK):
        raise ValueError(f"not JSON: there is more behind the value, at character `{end}`")
    return value


def dumps(value: Any) -> bytes:
    """A value of dicts, lists, strings, numbers, booleans and None as JSON, in ASCII. Raises ValueError."""
    return "".join(_chunks(value, 0)).encode("ascii")
