# SPDX-License-Identifier: Apache-2.0
"""`check`: could a sandbox be created here and now? Exit code 0 only if so. As root it also runs a guest on KVM."""

from __future__ import annotations

import sys

from kata_fsm.cli.arguments import Parser
from kata_fsm.cli.context import Context
from kata_fsm.errors import UsageError

_RELEASES = ("check-version-only", "only-list-releases", "include-all-releases")


def parser() -> Parser:
    """The command line. Kata's options about releases are known, and refused: nothing here asks the network."""
    made = Parser("check", "could a sandbox be created here and now? Exit code 0 only if so; no network access")
    made.add_argument("--verbose", "-v", action="store_true", help="every item, not only those that need attention")
    made.add_argument("--json", action="store_true", help="as JSON")
    made.add_argument("--no-network-checks", "-n", action="store_true", help="accepted: there are none")
    made.add_argument("--strict", "-s", action="store_true", help="warnings count as failures")
    for name in _RELEASES:
        made.add_argument(f"--{name}", action="store_true", help="refused: the network is not asked")
    return made


def run(context: Context, argv: list[str]) -> int:
    """Look, and say what was found."""
    given = parser().parse_args(argv)
    for name in _RELEASES:
        if getattr(given, name.replace("-", "_")):
            raise UsageError(f"check: --{name}: nothing here asks the network", hint="see the project's releases")
    from kata_fsm.check.item import able
    from kata_fsm.check.past import as_json
    from kata_fsm.check.whole import examine
    from kata_fsm.replay.escape import harmless

    items = examine(context.config)
    can = able(items) and not (given.strict and any(item.verdict == "warning" for item in items))
    if given.json:
        sys.stdout.write(as_json(items, can=can) + "\n")
        return 0 if can else 1
    for item in items:
        if given.verbose or item.stands_in_the_way or (item.verdict == "warning" and given.strict):
            sys.stdout.write("".join(harmless(line) + "\n" for line in item.lines()))
    warnings = sum(item.verdict == "warning" for item in items)
    noted = f" ({warnings} warnings: see --verbose)" if warnings and not given.verbose else ""
    if can:
        sys.stdout.write(f"System can currently create kata-fsm sandboxes{noted}\n")
    else:
        sys.stdout.write(f"ERROR: System cannot currently create kata-fsm sandboxes{noted}\n")
    return 0 if can else 1
