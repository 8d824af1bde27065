# SPDX-License-Identifier: Apache-2.0
"""An audit event as a sentence."""

from __future__ import annotations

from kata_fsm.audit.schema import AuditEvent
from kata_fsm.replay.escape import harmless
from kata_fsm.replay.words import UNSET_LOGINUID, short_name, short_value

_ASKED: dict[str, str] = {
    "create": "created",
    "start": "started",
    "exec": "executed",
    "kill": "sent signal",
    "pause": "paused",
    "resume": "resumed",
    "update": "changed the resources of",
    "change_network": "changed the network of",
    "delete": "deleted",
    "attach": "took over the stdio of",
    "stop": "ended",
    "abandon": "gave up an exec in",
}
_HAPPENED: dict[str, str] = {
    "sandbox_ready": "is ready",
    "process_ended": "ended",
    "vm_died": "lost its virtual machine",
    "share_died": "lost its file share",
    "agent_lost": "lost the agent in its guest",
    "host_rebooted": "was caught by a new start of the host",
    "signal_forwarded": "was passed a signal",
    "signal_lost": "could not be passed a signal",
    "sandbox_ended": "ended",
}


def sentence(event: AuditEvent) -> str:
    """One line, harmless to a terminal."""
    when = f"{event.time[:10]} {event.time[11:19]}Z"
    told = _asked(event) if event.category == "request" else _happened(event)
    return harmless(f"{when}  {told}")


def _asked(event: AuditEvent) -> str:
    action = _ASKED.get(event.action, event.action)
    argument = ""
    if event.action == "kill":
        argument = f" {event.details.get('signal')} to"
    elif event.action == "exec":
        argument = f" {short_value(' '.join(map(str, event.details.get('args', []))))} in"
    force = " by force" if event.details.get("force") else ""
    return f"{_who(event)} {action}{argument} {_where(event)}{force}: {_outcome(event)}"


def _happened(event: AuditEvent) -> str:
    signal = f" {event.details['signal']}" if "signal" in event.details else ""
    why = f": {_cause(event)}" if event.cause else ""
    code = "" if event.exit_code is None else f" with code {event.exit_code}"
    return f"{_where(event)} {_HAPPENED.get(event.action, event.action)}{signal}{code}{why}"


def _who(event: AuditEvent) -> str:
    actor = event.actor
    if not actor:
        return "kata-fsm"
    login = actor.get("loginuid")
    logged_in = "" if login in (None, -1, UNSET_LOGINUID) else f" (loginuid {login})"
    return f"uid {actor.get('uid', '?')}{logged_in} via {actor.get('comm', '?')} pid {actor.get('pid', '?')}"


def _where(event: AuditEvent) -> str:
    process = f"process {event.process} of " if event.process and event.action != "exec" else ""
    sandbox = f"sandbox {short_name(event.sandbox)}"
    if event.container is None:
        return process + sandbox
    return f"{process}container {short_name(event.container)} of {sandbox}"


def _outcome(event: AuditEvent) -> str:
    told = f"{event.outcome}, {_cause(event)}" if event.cause else event.outcome
    return told if event.exit_code is None else f"{told}, exit {event.exit_code}"


def _cause(event: AuditEvent) -> str:
    cause = event.cause or {}
    if cause.get("kind") == "unknown" and cause.get("message"):
        return str(cause["message"])
    return " ".join(
        part for part in (str(cause.get("kind", "")), f"({cause['message']})" if cause.get("message") else "") if part
    )
