# SPDX-License-Identifier: Apache-2.0
"""Waiting for a shim as if it were the workload: signals go to it, its exit code is ours."""

from __future__ import annotations

import os
import signal
from types import FrameType

from kata_fsm.cli.console import RawTerminal

# A stopped or resumed command line is the shell's affair; the rest cannot be caught or belongs to the interpreter.
_NOT_FORWARDED = frozenset(
    {
        signal.SIGKILL,
        signal.SIGSTOP,
        signal.SIGCHLD,
        signal.SIGPIPE,
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGCONT,
    }
)


def exit_code_of(status: int) -> int:
    """A wait status as a shell would say it: 128 + n for signal n."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def forward_signals(pid: int) -> None:
    """From now on every signal that we get goes to `pid` as well, and has no other effect on us."""

    def forward(number: int, frame: FrameType | None) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass  # it has just ended: the wait is about to return

    for number in signal.valid_signals() - _NOT_FORWARDED:
        try:
            signal.signal(number, forward)
        except (OSError, ValueError):
            pass  # the C library keeps two for itself


def wait(pid: int, *, tty: bool) -> int:
    """Wait for the shim `pid` to end; with `tty`, our own terminal is raw meanwhile. Answers the exit code."""
    forward_signals(pid)
    if not tty:
        return exit_code_of(os.waitpid(pid, 0)[1])
    with RawTerminal():
        return exit_code_of(os.waitpid(pid, 0)[1])
