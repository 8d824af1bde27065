# SPDX-License-Identifier: Apache-2.0
"""Doing in a child what may end the process: whoever is killed by a damaged file must not be the test run."""

from __future__ import annotations

import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence

LIMIT_S = 60.0


def in_child(work: Callable[[], str], limit_s: float = LIMIT_S) -> str:
    """What `work` returns, run in a forked child; `killed by SIGBUS`, `hung` or `failed: ...` for one that did not."""
    return each_in_child(lambda _: work(), [None], limit_s)[0]


def each_in_child(work: Callable[[object], str], items: Sequence[object], limit_s: float = LIMIT_S) -> list[str]:
    """What `work` says of each item, in one child as long as that lives; a new one goes on after an item that killed it.

    `limit_s` is for one item. No journal may be open in this process: LMDB does not survive a fork.
    """
    results: list[str] = []
    while len(results) < len(items):
        results += _some(work, items[len(results) :], limit_s)
    return results


def _some(work: Callable[[object], str], items: Sequence[object], limit_s: float) -> list[str]:
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            for item in items:
                os.write(writing, _said(work, item).encode() + b"\n")
        finally:
            os._exit(0)
    os.close(writing)
    told, hung = b"", False
    while True:
        if not select.select([reading], [], [], limit_s)[0]:
            os.kill(child, signal.SIGKILL)
            hung = True
            break
        more = os.read(reading, 65536)
        if not more:
            break
        told += more
    os.close(reading)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    results = told.decode().split("\n")[:-1]
    if len(results) < len(items):
        results.append("hung" if hung else f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}")
    return results


def _said(work: Callable[[object], str], item: object) -> str:
    try:
        return work(item).replace("\n", " ")
    except BaseException:
        return "failed: " + traceback.format_exc().strip().replace("\n", " | ")[-1000:]
