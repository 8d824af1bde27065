# SPDX-License-Identifier: Apache-2.0
"""The audit event, field by field. This file is the documentation of the export.

An event is one JSON object on one line. Its `schema` is `kata-fsm.audit/1`; within that version fields are only added,
and none changes its meaning. Every event stands for exactly one record of the journal, which `seq` and `digest` name: the
digest is the SHA-256 of the record as stored, so whoever keeps an exported line can prove later that the journal still
holds that record, and `prev` ties it to the record before. Not every record is an event: intents, and transitions that
follow from others, are left out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

SCHEMA = "kata-fsm.audit/1"

Outcome = Literal["allowed", "failed", "pending", "observed"]

ACTIONS: dict[str, str] = {
    "create": "a container was asked for; with the first one of a pod, its sandbox",
    "start": "the process of a created container was to be started",
    "exec": "a further process was to be run in a container",
    "kill": "a signal was to be sent",
    "pause": "a container was to be paused",
    "resume": "a paused container was to be resumed",
    "change_network": "a pod's network was to be changed",
    "update": "a container's resources were to be changed",
    "delete": "a container was to be deleted",
    "attach": "a shim took over the stdio of a process",
    "stop": "the sandbox was to be ended",
    "abandon": "the caller of an exec went away before the process was started",
    "sandbox_ready": "the virtual machine is up and takes containers",
    "process_ended": "a process ended, by itself or with what it stood on",
    "vm_died": "the virtual machine monitor ended without having been asked to",
    "share_died": "the daemon that serves the containers' files ended",
    "agent_lost": "the agent in the guest ended or stopped answering",
    "host_rebooted": "the host had been started anew under the sandbox",
    "signal_forwarded": "a signal sent to a shim's pid was passed on to its process",
    "signal_lost": "a signal sent to a shim's pid could not be passed on",
    "sandbox_ended": "the sandbox is over and everything it held was released",
}
"""Every value of `action`. The first twelve are requests (`category` = `request`), the others are changes."""


class AuditEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event. Absent knowledge is `null`, never a guess."""

    schema: Annotated[str, Meta(description="name and version of this shape")] = SCHEMA
    time: Annotated[str, Meta(description="when the record was written: RFC 3339, UTC, milliseconds")]
    seq: Annotated[int, Meta(description="number of the record in the journal")]
    stream: Annotated[str, Meta(description="the sandbox's stream: SANDBOX@UID")]
    sandbox: Annotated[str, Meta(description="the sandbox's id")]
    uid: Annotated[str, Meta(description="what tells apart sandboxes that had the same id at different times")]
    container: Annotated[str | None, Meta(description="the container concerned; null for the sandbox as a whole")]
    process: Annotated[str | None, Meta(description="the process concerned: `init`, or `eN` for one added by exec")]
    category: Annotated[Literal["request", "change"], Meta(description="somebody asked, or something happened")]
    action: Annotated[str, Meta(description="one of the documented actions")]
    actor: Annotated[
        dict[str, Any] | None,
        Meta(
            description="who asked: uid, loginuid, pid, comm, argv (redacted); null where nobody did or it is unknown"
        ),
    ]
    outcome: Annotated[
        Outcome,
        Meta(
            description="of a request: allowed (done), failed, or pending (the journal has no end of it yet); "
            "of a change: observed, or failed when it is the bad end of something"
        ),
    ]
    cause: Annotated[
        dict[str, Any] | None,
        Meta(description="why it failed or ended: kind (typed) and message; evidence is in the journal"),
    ]
    exit_code: Annotated[
        int | None,
        Meta(
            description="of process_ended, and of an exec whose process has ended; 128+N for signal N, 255 if unknown"
        ),
    ]
    details: Annotated[dict[str, Any], Meta(description="what the request named besides: args, signal, force, ...")]
    boot_id: Annotated[str, Meta(description="the host's boot during which the record was written")]
    digest: Annotated[str, Meta(description="SHA-256 of the record as stored, hex")]
    prev: Annotated[str, Meta(description="the digest of the record before this one in the journal, hex")]


FIELDS = AuditEvent.__struct_fields__


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of an event, with the list of actions."""
    schema: dict[str, Any] = msgspec.json.schema(AuditEvent)
    event = schema["$defs"]["AuditEvent"]
    event["properties"]["action"]["enum"] = list(ACTIONS)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": SCHEMA, **schema}
