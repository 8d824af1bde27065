# SPDX-License-Identifier: Apache-2.0
"""Puts a finished directory in the place of an old one, in one step."""

import ctypes
import os
from pathlib import Path

AT_FDCWD = -100
RENAME_EXCHANGE = 2  # renameat2(2): both names exist before and after, and change at once


def replace_directory(new: Path, old: Path) -> None:
    """`new` takes the name `old`; what was there, if anything, is left at `new` for the caller to remove."""
    if not old.exists():
        new.rename(old)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"cannot exchange `{new}` and `{old}`: {os.strerror(error)}")
