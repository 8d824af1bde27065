# SPDX-License-Identifier: Apache-2.0
"""`state ID`: print the OCI state document, which the supervisor left ready to print in the journal.

When the sandbox lives but its supervisor is gone, the document may be stale: a supervisor is started first, which looks
at the world and brings it up to date. `--no-recover` prints what was last known instead.
"""

import sys

from kata_fsm.cli import lookup
from kata_fsm.cli.context import Context
from kata_fsm.errors import KataFsmError, UsageError

USAGE = "usage: kata-fsm state [--no-recover] ID\n"


def run(context: Context, argv: list[str]) -> int:
    """Print the document of one container, without a final newline, as runc and Kata do."""
    ids = []
    may_recover = True
    for word in argv:
        if word == "--no-recover":
            may_recover = False
        elif word in ("-h", "--help"):
            sys.stdout.write(USAGE)
            return 0
        elif word.startswith("-") and len(word) > 1:
            raise UsageError(f"state: flag provided but not defined: `{word}`")
        else:
            ids.append(word)
    if not ids:
        raise UsageError("Missing container ID", hint=USAGE.strip())
    if len(ids) > 1:
        raise UsageError(f"Expecting only one container ID, got {len(ids)}: {ids}")
    found = lookup.require(context, ids[0])
    if may_recover and found.orphaned:
        found = _recovered(context, found)
    sys.stdout.write(found.document)
    return 0


def _recovered(context: Context, found: lookup.Found) -> lookup.Found:
    """What is so now. A recovery that failed because somebody else's ended the sandbox meanwhile has not failed."""
    try:
        lookup.recover(found)
    except KataFsmError:
        again = lookup.require(context, found.id)
        if again.orphaned:
            raise
        return again
    return lookup.require(context, found.id)
