# SPDX-License-Identifier: Apache-2.0
"""The command, with a supervisor that is killed at a chosen append: a test's entry point, no part of the product.

`write_command` makes an executable named `kata-fsm` that does what the installed one does; but where `KATA_FSM_TEST_DIE`
is set, a supervisor started by it kills itself with SIGKILL just before or just after an append. Its value is
`FILE:NUMBER:WHEN`: FILE counts the appends of all supervisors that share it, one byte each, NUMBER is the one to die at,
WHEN is `before` or `after`. It dies once: whoever comes after it counts on.

Likewise by `KATA_FSM_TEST_DIE_QMP`, `FILE:COMMAND:WHEN`: before or after QEMU is given that command about a disk, if FILE,
in which this is noted, is not there yet.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from kata_fsm.cli.launcher import interpreter, search_path

VARIABLE = "KATA_FSM_TEST_DIE"
QMP_VARIABLE = "KATA_FSM_TEST_DIE_QMP"
ROOT = Path(__file__).resolve().parents[2]

_BODY = """#!{python} -IS
import sys
sys.path += {paths!r}
from tests.support.dying import install
install()
from kata_fsm.cli.main import console_main
console_main()
"""


def write_command(directory: Path) -> Path:
    """The command's path in `directory`. Its name must be `kata-fsm`: supervisors and shims are started by it again."""
    path = directory / "kata-fsm"
    path.write_text(_BODY.format(python=interpreter(), paths=list(dict.fromkeys([str(ROOT), *search_path()]))))
    path.chmod(0o755)
    return path


def appends(counter: Path) -> int:
    """How many appends were made."""
    return counter.stat().st_size if counter.exists() else 0


def install() -> None:
    """Where the variable is set and this process is a supervisor, make it mortal."""
    if "supervisor" not in sys.argv[1:2]:
        return
    if QMP_VARIABLE in os.environ:
        _die_at_a_command(*os.environ[QMP_VARIABLE].rsplit(":", 2))
    told = os.environ.get(VARIABLE)
    if told is None:
        return
    file, number, when = told.rsplit(":", 2)
    from journal import Journal

    append = Journal.append
    counter = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def mortal(journal: Journal, *args: Any, **options: Any) -> Any:
        os.write(counter, b".")
        mine = os.fstat(counter).st_size == int(number)
        if mine and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        stored = append(journal, *args, **options)
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)
        return stored

    Journal.append = mortal  # type: ignore[method-assign]


def _die_at_a_command(file: str, wanted: str, when: str) -> None:
    from kata_fsm.effects.hypervisor.qmp import Monitor

    command = Monitor.command

    async def mortal(monitor: Monitor, name: str, *args: Any, **options: Any) -> Any:
        about_disk = any(word in str(args) for word in ("'blk-", "'disk"))
        if name != wanted or not about_disk or os.path.exists(file):
            return await command(monitor, name, *args, **options)
        if when == "after":
            await command(monitor, name, *args, **options)
        Path(file).touch()
        return os.kill(os.getpid(), signal.SIGKILL)

    Monitor.command = mortal  # type: ignore[method-assign]
