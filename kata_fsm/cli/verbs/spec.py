# SPDX-License-Identifier: Apache-2.0
"""`spec`: write a config.json that runs here as it is, given a root file system in `rootfs`."""

from __future__ import annotations

import os

from kata_fsm.cjson import dumps_indented
from kata_fsm.cli.arguments import Parser
from kata_fsm.cli.context import Context
from kata_fsm.errors import UsageError
from kata_fsm.oci.example import example


def run(context: Context, argv: list[str]) -> int:
    """Write it into the bundle; one that exists is not touched."""
    parser = Parser("spec", "write a config.json to start from")
    parser.add_argument("--bundle", "-b", default=".", metavar="DIR", help="the bundle directory (default: here)")
    options = parser.parse_args(argv)
    if not os.path.isdir(options.bundle):
        raise UsageError(f"Invalid bundle path '{options.bundle}', it should be a directory")
    path = os.path.join(options.bundle, "config.json")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    except FileExistsError:
        raise UsageError(f"File {path} exists. Remove it first") from None
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(dumps_indented(example(), "\t") + "\n")
    return 0
