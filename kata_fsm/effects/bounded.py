# SPDX-License-Identifier: Apache-2.0
"""Work on the host that a file system may hold up for ever (a dead NFS or FUSE server), with a limit.

It runs in a thread, which is left behind when the limit has passed: nothing can take it out of the kernel. Should it come
back after all, it stops at its next `enter`, and takes back what it did.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import trio

from kata_fsm import errors, limits

T = TypeVar("T")

Enter = Callable[[str], None]
"""Called by the work with the path that it turns to, so that a message can name where it hangs."""


class Bounded:
    """One piece of work. `phase` and `what` ("unmounting ...") are what its failure tells."""

    def __init__(self, phase: str, what: str) -> None:
        self._phase = phase
        self._what = what
        self._place = ""
        self._lock = threading.Lock()
        self._given_up = False
        self._over = False

    def enter(self, place: str) -> None:
        """The work turns to `place`. Raises EffectError when nobody waits for it any more."""
        self._place = place
        if self._given_up:
            raise errors.EffectError(self._phase, f"{self._what} was given up")

    async def run(self, work: Callable[[], T], *, late: Callable[[], object] | None = None) -> T:
        """What `work` answers or raises. `late` is called in its thread if it ends after it was given up.

        Raises TimeoutExceeded after `limits.HOST_CALL_S` seconds.
        """
        limit_s, alone = limits.HOST_CALL_S, trio.CapacityLimiter(1)
        try:
            with trio.move_on_after(limit_s):
                return await trio.to_thread.run_sync(self._in_thread, work, late, abandon_on_cancel=True, limiter=alone)
        finally:
            with self._lock:
                self._given_up = not self._over
        where = f": it hangs at `{self._place}`" if self._place else ""
        evidence: dict[str, object] = {"place": self._place, "limit_s": limit_s}
        raise errors.TimeoutExceeded(
            self._phase, f"{self._what} did not end within {limit_s:g} s{where}", evidence=evidence
        )

    def _in_thread(self, work: Callable[[], T], late: Callable[[], object] | None) -> T:
        try:
            return work()
        finally:
            with self._lock:
                self._over = True
                given_up = self._given_up
            if given_up and late is not None:
                late()
