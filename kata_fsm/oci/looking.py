# SPDX-License-Identifier: Apache-2.0
"""A look at something on the host whose file system may never answer, from a process that has no event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from kata_fsm import limits
from kata_fsm.errors import WorldError

T = TypeVar("T")


def answered(path: str, look: Callable[[], T]) -> T:
    """What `look` answers or raises. The thread of one that never does is left behind, and ends with the process.

    Raises `WorldError` after `limits.HOST_CALL_S` seconds.
    """
    found: list[T] = []
    failed: list[Exception] = []

    def work() -> None:
        try:
            found.append(look())
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(limits.HOST_CALL_S)
    if failed:
        raise failed[0]
    if not found:
        message = f"`{path}` did not answer within {limits.HOST_CALL_S:g} s: the server of its file system hangs"
        raise WorldError(message, hint="`mount` names the server; end or restart it, or take the path out")
    return found[0]
