# SPDX-License-Identifier: Apache-2.0
"""A request as it came, and what may be read from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from kata_fsm.errors import CallerError

if TYPE_CHECKING:
    from kata_fsm.supervisor.channel import Channel
    from kata_fsm.supervisor.server import Server

Reply = dict[str, Any]
Request = dict[str, Any]
Verb = Callable[["Server", "Channel", Request], Awaitable[Reply]]


def told_seq(request: Request) -> Reply:
    """{"seq"} of the record that holds the request's command, if it has been made durable: the verb logs it."""
    actor = request.get("actor")
    seq = actor.get("seq") if isinstance(actor, dict) else None
    return {"seq": seq} if isinstance(seq, int) else {}


def text_in(request: Request, name: str) -> str:
    """The text called `name`, which must be there and not empty. Raises `CallerError`."""
    value = request.get(name)
    if not isinstance(value, str) or not value:
        raise CallerError(f"the request has no `{name}`")
    return value


def object_in(request: Request, name: str) -> dict[str, Any]:
    """The JSON object called `name`, which must be there. Raises `CallerError`."""
    value = request.get(name)
    if not isinstance(value, dict):
        raise CallerError(f"the request has no `{name}`")
    return value
