# SPDX-License-Identifier: Apache-2.0
"""`python -m kata_fsm.cli.launcher [FILE]`: write the installed command.

The command names its interpreter absolutely and needs neither PATH nor any other environment: engines call runtimes with
almost none. `-I -S` skip user site, environment and `site`, whose processing of .pth files costs more than the whole of
`state`; the two directories that hold our code are put on the path by the script itself.
"""

import os
import sys
import sysconfig

from kata_fsm.world import repository_root

SHEBANG_BYTES_MAX = 120
"""Linux reads 256 bytes of a shebang line, older kernels and other readers 128; beyond that /bin/sh starts us."""

_BODY = """import sys
sys.path += {paths!r}
from kata_fsm.cli.main import console_main
console_main()
"""


def interpreter() -> str:
    """The real interpreter, past the virtual environment's symbolic links: one file lookup less at every start."""
    return os.path.realpath(sys.executable)


def search_path() -> list[str]:
    """Where our code and the libraries are: the checkout (or site-packages alone when installed there)."""
    site = sysconfig.get_path("platlib")
    root = repository_root()
    return [site] if root == site else [root, site]


def text(python: str, paths: list[str]) -> str:
    """The script. `python` is the interpreter's absolute path."""
    body = _BODY.format(paths=paths)
    if " " not in python and len(python) + len("#! -IS") <= SHEBANG_BYTES_MAX:
        return f"#!{python} -IS\n{body}"
    # To the shell, the first two lines run the interpreter on this file; to Python, they are one string.
    quoted = python.replace("'", "'\"'\"'")
    return f"#!/bin/sh\n'''exec' '{quoted}' -IS \"$0\" \"$@\"\n' '''\n{body}"


def write(path: str) -> None:
    """Write the command to `path`, atomically and executable, and compile what it will import."""
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text(interpreter(), search_path()))
        os.fchmod(file.fileno(), 0o755)
    os.replace(temporary, path)
    _compile()


def _compile() -> None:
    import compileall

    for package in ("kata_fsm", "journal", "kata_wire"):
        compileall.compile_dir(os.path.join(repository_root(), package), quiet=2)


def main(argv: list[str]) -> int:
    """Write to the given file, or to `kata-fsm` beside the running environment's interpreter."""
    target = argv[0] if argv else os.path.join(sysconfig.get_path("scripts"), "kata-fsm")
    write(os.path.abspath(target))
    print(os.path.abspath(target))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
