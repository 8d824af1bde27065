# SPDX-License-Identifier: Apache-2.0
"""One call around one message: ttrpc's Request and Response inside a frame, built from tables.

The functions that build return pieces for one `os.writev`, so that a large `bytes` field is not copied on its way
out. Join them with `b"".join` where that does not matter. This module runs in the guest: it imports nothing but ours.
"""

from kata_wire import table, ttrpc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# The gRPC status codes that an agent answers with.
OK = 0
CANCELLED = 1
UNKNOWN = 2
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
ALREADY_EXISTS = 6
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
ABORTED = 10
OUT_OF_RANGE = 11
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14

MAX_ERROR_CHARS = 4096  # an error is a line, not a log


class Request:
    """A call as it came. `payload` is a view of the encoded message; `timeout_ns` is 0 when there is no limit."""

    __slots__ = ("method", "payload", "service", "timeout_ns")

    def __init__(self, service: str, method: str, payload: "ttrpc.Buffer", timeout_ns: int) -> None:
        self.service = service
        self.method = method
        self.payload = payload
        self.timeout_ns = timeout_ns


class Response:
    """A reply as it came. `code` is OK or a gRPC status code, `error` its text, `payload` a view of the encoded
    message."""

    __slots__ = ("code", "error", "payload")

    def __init__(self, code: int, error: str, payload: "ttrpc.Buffer") -> None:
        self.code = code
        self.error = error
        self.payload = payload


def parse_request(payload: "ttrpc.Buffer") -> Request:
    """The Request in a frame's payload. Raises WireError."""
    found = table.decode("ttrpc.Request", payload, views=True)
    return Request(
        found.get("service", ""), found.get("method", ""), found.get("payload", b""), found.get("timeout_nano", 0)
    )


def parse_response(payload: "ttrpc.Buffer") -> Response:
    """The Response in a frame's payload. Raises WireError."""
    found = table.decode("ttrpc.Response", payload, views=True)
    status = found.get("status", {})
    return Response(status.get("code", OK), status.get("message", ""), found.get("payload", b""))


def request_parts(
    stream_id: int, service: str, method: str, message: str, value: "dict[str, Any]", timeout_ns: int = 0
) -> "list[ttrpc.Buffer]":
    """The frame of a call of `service`/`method` with `value` as its `message`."""
    head: dict[str, Any] = {"service": service, "method": method, "timeout_nano": timeout_ns}
    return _frame(stream_id, ttrpc.REQUEST, table.encode("ttrpc.Request", head), b"\x1a", message, value)


def response_parts(stream_id: int, message: str, value: "dict[str, Any]") -> "list[ttrpc.Buffer]":
    """The frame of a successful reply."""
    return _frame(stream_id, ttrpc.RESPONSE, b"", b"\x12", message, value)


def error_parts(stream_id: int, code: int, text: str) -> "list[ttrpc.Buffer]":
    """The frame of a failed reply with a gRPC status code. The text is cut and made valid Unicode: this never fails."""
    clean = text[:MAX_ERROR_CHARS].encode("utf-8", "replace").decode()
    body = table.encode("ttrpc.Response", {"status": {"code": code, "message": clean}})
    return [ttrpc.header(stream_id, ttrpc.RESPONSE, 0, len(body)), body]


def _frame(
    stream_id: int, kind: int, head: bytes, key: bytes, message: str, value: "dict[str, Any]"
) -> "list[ttrpc.Buffer]":
    """`key` is the tag of the envelope's payload field (3 in Request, 2 in Response), which may come last."""
    parts, size = table.encode_parts(message, value)
    tag = key + table.varint(size)
    length = len(head) + len(tag) + size
    return [ttrpc.header(stream_id, kind, 0, length), head, tag, *parts]
