# SPDX-License-Identifier: Apache-2.0
"""OCI words for machine states, and the documents that `state` and `list` print. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kata_fsm import OCI_VERSION
from kata_fsm.cjson import dumps_indented
from kata_fsm.machines.container import OCI_STATUS


def oci_status(container_state: str) -> str:
    """The OCI status of a container machine's state; `absent` and `deleted` have none and raise `KeyError`."""
    return OCI_STATUS[container_state]


def state_document(
    *, container_id: str, status: str, pid: int, bundle: str, annotations: Mapping[str, str] | None = None
) -> str:
    """The OCI state, ready to print: two blanks of indent, no final newline. `pid` is 0 once the process has ended."""
    document: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "id": container_id,
        "status": status,
        "pid": 0 if status == "stopped" else pid,
        "bundle": bundle,
        "annotations": dict(annotations or {}),
    }
    return dumps_indented(document)


def list_row(
    *,
    container_id: str,
    status: str,
    pid: int,
    bundle: str,
    rootfs: str,
    created: str,
    uid: int,
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """One member of `list --format json`. `created` is RFC 3339 with nanoseconds; `owner` is `#uid`, as in Kata."""
    return {
        "ociVersion": OCI_VERSION,
        "id": container_id,
        "pid": 0 if status == "stopped" else pid,
        "status": status,
        "bundle": bundle,
        "rootfs": rootfs,
        "created": created,
        "annotations": dict(annotations or {}),
        "owner": f"#{uid}",
    }
