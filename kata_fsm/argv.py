# SPDX-License-Identifier: Apache-2.0
"""The command line of a process, as whoever started it gave it. Hot path: `os` only."""

import os


def argv_of(pid: int) -> list[str]:
    """The command line of `pid`, empty for one that is gone or has none."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            data = file.read()
    except OSError:
        return []
    return [os.fsdecode(part) for part in data.rstrip(b"\0").split(b"\0")] if data else []
