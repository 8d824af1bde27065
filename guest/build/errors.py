# SPDX-License-Identifier: Apache-2.0
"""The one error of the image builder."""


class BuildError(Exception):
    """The image cannot be built; `hint` says how to put it right."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
