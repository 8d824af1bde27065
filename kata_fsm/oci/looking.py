# SPDX-License-Identifier: Apache-2.0
"""A look at something on the host whose file system may never answer, from a process that has no event loop.

A supervisor has one, and much else to do meanwhile: see `kata_fsm.effects.bounded`, which names the path where work on many
hangs, and has undone what comes back late. A look does nothing that would have to be undone.

Hot path: C modules only, so no `threading`.
"""

from __future__ import annotations

import _thread

from kata_fsm import limits
from kata_fsm.errors import WorldError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")


def answered(path: str, look: Callable[[], T]) -> T:
    """What `look` answers or raises. The thread of one that never does is left behind, and ends with the process.

    Raises `WorldError` after `limits.HOST_CALL_S` seconds.
    """
    found: list[T] = []
    failed: list[Exception] = []
    over = _thread.allocate_lock()
    over.acquire()

    def work() -> None:
        try:
            found.append(look())
        except Exception as error:
            failed.append(error)
        finally:
            over.release()

    _thread.start_new_thread(work, ())
    if not over.acquire(timeout=limits.HOST_CALL_S):
        message = f"`{path}` did not answer within {limits.HOST_CALL_S:g} s: the server of its file system hangs"
        raise WorldError(message, hint="`mount` names the server; end or restart it, or take the path out")
    if failed:
        raise failed[0]
    return found[0]
