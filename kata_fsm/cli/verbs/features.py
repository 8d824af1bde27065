# SPDX-License-Identifier: Apache-2.0
"""`features`: what this runtime supports, in the shape of the runtime specification's features document."""

from __future__ import annotations

import sys

from kata_fsm.cjson import dumps_indented
from kata_fsm.cli.arguments import Parser
from kata_fsm.cli.context import Context
from kata_fsm.oci.features import features


def run(context: Context, argv: list[str]) -> int:
    """Print the document."""
    Parser("features", "print what this runtime supports").parse_args(argv)
    sys.stdout.write(dumps_indented(features()) + "\n")
    return 0
