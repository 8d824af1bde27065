# SPDX-License-Identifier: Apache-2.0
"""Protobuf messages as plain JSON-able data: field names as in the schema, numbers as numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.message import Message


def _value(value: Any) -> Any:
    if hasattr(value, "ListFields"):
        return plain(value)
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def plain(message: Message) -> dict[str, Any]:
    """All set fields of `message`; maps become objects, repeated fields lists."""
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        if hasattr(value, "items"):
            found[field.name] = {str(key): _value(each) for key, each in value.items()}
        elif field.is_repeated:
            found[field.name] = [_value(each) for each in value]
        else:
            found[field.name] = _value(value)
    return found
