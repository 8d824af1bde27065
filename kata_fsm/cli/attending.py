# SPDX-License-Identifier: Apache-2.0
"""Waiting for a supervisor's answer while a shim is being brought about: whichever of the two fails first is told.

Small, because `exec` imports it and not all of what creating a container takes.
"""

from __future__ import annotations

import os
import select

from kata_fsm.control import Connection, raise_error
from kata_fsm.errors import SupervisorGone, WorldError
from kata_fsm.limits import VERB_REPLY_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LAST_WORDS_S = 3.0


class ShimDied(WorldError):
    """The shim ended while its process was being brought about."""


def await_reply(connection: Connection, shim_pid: int) -> dict[str, Any]:
    """The next message, unless the shim ends first: then the supervisor gets a moment to say why."""
    pidfd = os.pidfd_open(shim_pid)
    try:
        poller = select.poll()
        poller.register(connection.fileno(), select.POLLIN)
        poller.register(pidfd, select.POLLIN)
        ready = {fd for fd, _ in poller.poll(int(VERB_REPLY_S * 1000))}
    finally:
        os.close(pidfd)
    if connection.fileno() in ready or not ready:
        return connection.receive()
    connection.settimeout(_LAST_WORDS_S)
    try:
        raise_error(connection.receive())
    except SupervisorGone:
        pass
    # Even if all else went well: the pid that the caller would get names nobody.
    raise ShimDied(f"the shim {_how_ended(shim_pid)} before it could be of use")


def _how_ended(pid: int) -> str:
    """It stays to be reaped by whoever started it."""
    end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert end is not None, "asked to wait"
    return (
        f"ended with code {end.si_status}" if end.si_code == os.CLD_EXITED else f"was killed by signal {end.si_status}"
    )
