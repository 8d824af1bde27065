# SPDX-License-Identifier: Apache-2.0
"""Reading a journal that may be damaged: in a process of its own, so that what a bad page does to LMDB ends that one only.

LMDB trusts every page it follows, and a damaged one can end a process by a signal. `journal verify` looks before it lets
LMDB; the other verbs of people (`replay`, `journal list`, `audit`) would pay for that with a walk through the whole file at
every call. So they read in a child, and whoever called hears in one line what has happened.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from kata_fsm.errors import DamagedData

_OF_DAMAGE = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE})
_PR_SET_PDEATHSIG = 1  # prctl(2)
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


def guarded(work: Callable[[], int]) -> int:
    """Run `work` in a child and answer its exit code. Raises DamagedData when a signal ended it that damage leads to."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    # What comes before it can be forwarded waits until it can.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _end_with(parent)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            code = work()
            sys.stdout.flush()
        except SystemExit as done:  # argparse, after it has printed its help
            sys.stdout.flush()
            code = done.code if isinstance(done.code, int) else 0
        except (OSError, ValueError):
            code = code or 1
        finally:
            os._exit(code)

    def forward(number: int, _: object) -> None:
        try:
            os.kill(child, number)
        except ProcessLookupError:
            pass  # it has ended, and we are about to tell how

    for number in _FORWARDED:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    if -code in _OF_DAMAGE:
        name = signal.Signals(-code).name
        raise DamagedData(
            f"the journal is damaged: reading it was ended by {name}",
            hint="`kata-fsm journal verify` says what is wrong, `kata-fsm journal salvage` reads what is left",
        )
    return 128 - code


def _end_with(parent: int) -> None:
    """Be killed when the parent is: it is the one that somebody started, and may kill in a way that cannot be forwarded."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)
