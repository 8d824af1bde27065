# SPDX-License-Identifier: Apache-2.0
"""The one error that bytes from a peer, or a value that cannot be sent, may raise."""


class WireError(Exception):
    """Bytes that are not what they claim to be, or a value that its message cannot hold."""


class FrameError(WireError):
    """A frame that was skipped. The connection is intact, and `stream_id` can be answered with an error."""

    def __init__(self, message: str, stream_id: int) -> None:
        super().__init__(message)
        self.stream_id = stream_id


class FrameTooLarge(FrameError):
    """The header announces a payload over the limit."""


class UnknownFrameType(FrameError):
    """The header names a type that ttrpc does not have."""
