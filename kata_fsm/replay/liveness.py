# SPDX-License-Identifier: Apache-2.0
"""Why a journal ends in the middle: is its writer still there?

A sandbox's supervisor holds a `flock` on its `supervisor.lock`. Trying that lock would take it for a moment, and make a
supervisor that starts just then fail, so the kernel's table of locks is read instead.
"""

from __future__ import annotations

import os

from kata_fsm.world import WORLD, Paths

LOCKS = "/proc/locks"
_LOOKS = 3


def supervisor_pid(uid: str, locks: str = LOCKS) -> int | None:
    """The pid that holds the sandbox's supervisor lock, or None if nobody does. Raises `OSError` if that cannot be told."""
    try:
        stat = os.stat(Paths(uid).supervisor_lock)
    except FileNotFoundError:
        return None
    wanted = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}:{stat.st_ino}"
    for _ in range(
        _LOOKS
    ):  # the kernel makes the table a page at a time: what stands behind a lock that goes may be skipped
        with open(locks, encoding="ascii") as file:
            for line in file:
                fields = (
                    line.split()
                )  # `1: FLOCK  ADVISORY  WRITE 512 00:1b:33 0 EOF`; waiters have `->` as second word
                if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == wanted:
                    return int(fields[4])
    return None


def how_it_stands(uid: str, boot_id: str, *, copied: bool) -> str:
    """One sentence for a sandbox whose records leave it alive; `boot_id` is that of its last record."""
    if copied:
        return "the records end here: the sandbox was alive when this journal was copied, or its end was never recorded"
    if boot_id != WORLD.boot_id():
        return "the records end here, and the host was started anew since: nobody has recorded the end yet"
    try:
        pid = supervisor_pid(uid)
    except OSError as error:
        return f"the records end here; whether its supervisor lives cannot be told: {error.strerror}"
    if pid is None:
        return "the records end in the middle: its supervisor is gone, and nobody has taken over yet"
    named = f", pid {pid}," if pid > 0 else ""  # -1: the lock belongs to an open file, not to a process
    return f"the story goes on: its supervisor{named} is at work"
