# SPDX-License-Identifier: Apache-2.0
"""What a call can fail with: a gRPC status code (the constants of kata_wire.envelope) and one line of text."""

from kata_wire.envelope import FAILED_PRECONDITION, INTERNAL, INVALID_ARGUMENT, NOT_FOUND


class RpcError(Exception):
    """Ends a call with a status. The message is one line for the host's user: lower case, values in backquotes."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def invalid(message: str) -> RpcError:
    """The request itself is wrong."""
    return RpcError(INVALID_ARGUMENT, message)


def not_found(message: str) -> RpcError:
    """No such container, process or device."""
    return RpcError(NOT_FOUND, message)


def precondition(message: str) -> RpcError:
    """Right in itself, but not in this state."""
    return RpcError(FAILED_PRECONDITION, message)


def internal(message: str) -> RpcError:
    """The guest failed."""
    return RpcError(INTERNAL, message)


def from_os_error(error: OSError, what: str) -> RpcError:
    """An OSError as a status that keeps its meaning."""
    code = NOT_FOUND if isinstance(error, FileNotFoundError) else INTERNAL
    return RpcError(code, f"{what}: {error.strerror or error}")
