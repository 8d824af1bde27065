# SPDX-License-Identifier: Apache-2.0
"""`version`: three lines, in Kata's shape. (`--version` has runc's.)"""

from __future__ import annotations

import os
import sys

from kata_fsm import OCI_VERSION, __version__
from kata_fsm.cli.context import Context
from kata_fsm.world import repository_root


def run(context: Context, argv: list[str]) -> int:
    """Print name and version, the commit where it can be known, and the runtime specification's version."""
    sys.stdout.write(f"kata-fsm  : {__version__}\n   commit   : {commit()}\n   OCI specs: {OCI_VERSION}\n")
    return 0


def commit() -> str:
    """The checkout's commit, read without git; `unknown` for an installed package."""
    git = os.path.join(repository_root(), ".git")
    if os.path.isfile(git):  # a work tree of a repository that is elsewhere
        git = os.path.join(repository_root(), _first(git).removeprefix("gitdir: "))
    head = _first(f"{git}/HEAD")
    if not head.startswith("ref: "):
        return head or "unknown"
    common = os.path.join(git, _first(f"{git}/commondir"))
    return _first(f"{common}/{head[5:]}") or _packed(common, head[5:]) or "unknown"


def _packed(git: str, name: str) -> str:
    try:
        with open(f"{git}/packed-refs", encoding="utf-8") as file:
            rows = (line.split() for line in file)
            return next((row[0] for row in rows if row[1:] == [name]), "")
    except OSError:
        return ""


def _first(path: str) -> str:
    """A file's first line; empty when it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().strip()
    except OSError:
        return ""
