# SPDX-License-Identifier: Apache-2.0
"""Is the agent there, and which is it?"""

from __future__ import annotations

from . import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .agent import Agent

_SERVING = 1
_GRPC_VERSION = "0.0.1"  # what Kata's agents answer


def check(agent: Agent, request: dict[str, Any]) -> dict[str, Any]:
    """Whatever service is asked for: who answers is serving."""
    return {"status": _SERVING}


def version(agent: Agent, request: dict[str, Any]) -> dict[str, Any]:
    """The protocol's version and ours."""
    return {"grpc_version": _GRPC_VERSION, "agent_version": VERSION}
