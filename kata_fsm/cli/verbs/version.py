# SPDX-License-Identifier: Apache-2.0
"""`version`: three lines, in Kata's shape. (`--version` is the one that go-runc parses.)"""

from __future__ import annotations

import os
import sys

from kata_fsm import __version__
from kata_fsm.cli.context import Context
from kata_fsm.cli.main import OCI_VERSION
from kata_fsm.world import repository_root


def run(context: Context, argv: list[str]) -> int:
    """Print name and version, the commit where it can be known, and the runtime specification's version."""
    sys.stdout.write(f"kata-fsm  : {__version__}\n   commit   : {commit()}\n   OCI specs: {OCI_VERSION}\n")
    return 0


def commit() -> str:
    """The checkout's commit, read without git; `unknown` for an installed package."""
    git = os.path.join(repository_root(), ".git")
    try:
        with open(f"{git}/HEAD", encoding="ascii") as file:
            head = file.read().strip()
        if not head.startswith("ref: "):
            return head
        with open(f"{git}/{head[5:]}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "unknown"
