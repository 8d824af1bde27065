# SPDX-License-Identifier: Apache-2.0
"""Waiting for a shim as if it were the workload: signals go to it, its exit code is ours."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from types import FrameType
else:
    import _signal  # what `signal` wraps in enums, whose import takes milliseconds

# A stopped or resumed command line is the shell's affair; the rest cannot be caught or belongs to the interpreter.
_NOT_FORWARDED = frozenset(
    {
        _signal.SIGKILL,
        _signal.SIGSTOP,
        _signal.SIGCHLD,
        _signal.SIGPIPE,
        _signal.SIGSEGV,
        _signal.SIGBUS,
        _signal.SIGFPE,
        _signal.SIGILL,
        _signal.SIGTSTP,
        _signal.SIGTTIN,
        _signal.SIGTTOU,
        _signal.SIGCONT,
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

    for number in _signal.valid_signals() - _NOT_FORWARDED:
        try:
            _signal.signal(number, forward)
        except (OSError, ValueError):
            pass  # the C library keeps two for itself


def wait(pid: int, *, tty: bool) -> int:
    """Wait for the shim `pid` to end; with `tty`, our own terminal is raw meanwhile. Answers the exit code."""
    forward_signals(pid)
    if not tty:
        return exit_code_of(os.waitpid(pid, 0)[1])
    from kata_fsm.cli.console import RawTerminal

    with RawTerminal():
        return exit_code_of(os.waitpid(pid, 0)[1])
