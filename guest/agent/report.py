# SPDX-License-Identifier: Apache-2.0
"""What the agent has to say to the guest's console, which the host keeps the tail of."""

import os
import time

_CONSOLE_FD = 2
_LINE_BYTES_MAX = 1000


def say(text: str) -> None:
    """One line on the console, with the seconds since the boot before it, as the kernel writes them. A console that cannot
    take it is no reason to fail."""
    seconds = time.clock_gettime(time.CLOCK_MONOTONIC)
    line = f"[{seconds:12.6f}] kata-agent: {text}\n".encode(errors="replace")[:_LINE_BYTES_MAX]
    try:
        os.write(_CONSOLE_FD, line)
    except OSError:
        pass


def say_error(where: str, error: BaseException) -> None:
    """An error nobody expected, with the places it passed through; without `traceback`, which costs several imports."""
    places: list[str] = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}:{code.co_name}")
        trace = trace.tb_next
    say(f"{where}: {type(error).__name__}: {error} at {' > '.join(places[-6:])}")
