# SPDX-License-Identifier: Apache-2.0
"""What a pod looks like to readers who must not fold: the projections kept beside its records.

`c/ROOT/ID` is one container under one `--root`: present from its declaration until its deletion, so its absence is what
makes an id free. `s/STREAM` is one sandbox, kept for ever. Both are JSON; the container's holds its OCI state document as
text, ready to print. They are a function of the folded pod (and can be dropped and rebuilt from it).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, NamedTuple

from kata_fsm.cjson import dumps
from kata_fsm.machines import Pod, container, process, sandbox
from kata_fsm.machines.pod import Unit, init_of

OCI_VERSION = "1.0.2"


@lru_cache(maxsize=256)
def root_digest(root: str) -> str:
    """16 hex characters that stand for a `--root`: the namespace of container ids."""
    return hashlib.sha256(root.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def container_key(root: str, container_id: str) -> bytes:
    """The key of a container's projection."""
    return f"c/{root_digest(root)}/{container_id}".encode()


def stream_key(stream: str) -> bytes:
    """The key of a sandbox's projection."""
    return f"s/{stream}".encode()


def _pid(pod: Pod, container_id: str, status: str) -> int:
    """The shim's pid while the container is alive, else 0 (runtime-spec: required for created and running)."""
    init = pod.unit("process", init_of(container_id))
    if status == "stopped" or init.state in (process.EXITED, process.CLOSED):
        return 0
    pid = init.facts.get("shim", {}).get("pid", 0)
    return int(pid)


def oci_state(pod: Pod, container_id: str, unit: Unit) -> dict[str, Any]:
    """The OCI state document of a container (runtime-spec, runtime.md, "State")."""
    config = unit.facts.get("config", {})
    status = container.OCI_STATUS[unit.state]
    document: dict[str, Any] = {
        "ociVersion": config.get("oci_version", OCI_VERSION),
        "id": container_id,
        "status": status,
        "pid": _pid(pod, container_id, status),
        "bundle": config.get("bundle", ""),
    }
    if config.get("annotations"):
        document["annotations"] = config["annotations"]
    return document


@lru_cache(maxsize=256)
def _indented(text: str) -> str:
    """JSON as it is printed. Most steps leave most containers as they were, and the encoder that indents is slow."""
    import json

    return json.dumps(json.loads(text), indent=2, ensure_ascii=False)


def _container_document(pod: Pod, stream: str, container_id: str, unit: Unit) -> bytes:
    config = unit.facts.get("config", {})
    state = oci_state(pod, container_id, unit)
    init = pod.unit("process", init_of(container_id)).facts
    document = {
        "stream": stream,
        "uid": pod.sandbox.facts.get("uid", ""),
        "sandbox": pod.id,
        "key": container_id,
        "state": unit.state,
        "live": pod.sandbox.state in sandbox.LIVE,
        # Where a further shim of it belongs: `exec` starts one before it asks anybody.
        "home": {
            "netns": pod.network.facts.get("netns"),
            "cgroups": [each["path"] for each in unit.facts.get("cgroups") or []],
        },
        "oci": _indented(dumps(state)),
        "list": {
            "ociVersion": state["ociVersion"],
            "id": container_id,
            "pid": state["pid"],
            "status": state["status"],
            "bundle": state["bundle"],
            "rootfs": config.get("rootfs", ""),
            "created": config.get("created", ""),
            "annotations": config.get("annotations", {}),
            "owner": config.get("owner", ""),
        },
        "exit_code": init.get("exit_code"),
    }
    return dumps(document, compact=True).encode()


def _sandbox_document(pod: Pod, root: str) -> bytes:
    facts = pod.sandbox.facts
    document = {
        "uid": facts.get("uid", ""),
        "sandbox": pod.id,
        "root": root,
        "state": pod.sandbox.state,
        "live": pod.sandbox.state in sandbox.LIVE,
        "cause": facts.get("cause", {}).get("kind"),
    }
    return dumps(document, compact=True).encode()


class _Written(NamedTuple):
    """A container's document, and all that it was made of."""

    unit: Unit
    init: Unit | None
    sandbox: Unit
    network: Unit
    key: bytes
    document: bytes | None


class Projecting:
    """The projections of one stream's pod, step after step: what a step left as it was is not written out again.

    A unit is a value: what is made of the very same ones is the same.
    """

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._containers: dict[str, _Written] = {}
        self._sandbox: tuple[Unit | None, bytes] = (None, b"")

    def of(self, pod: Pod) -> dict[bytes, bytes | None]:
        """Every projection of `pod`; None means that the key must be absent."""
        root = str(pod.sandbox.facts.get("config", {}).get("root", ""))
        if self._sandbox[0] is not pod.sandbox:
            self._sandbox = (pod.sandbox, _sandbox_document(pod, root))
        found: dict[bytes, bytes | None] = {stream_key(self._stream): self._sandbox[1]}
        for container_id, unit in pod.containers.items():
            init = pod.processes.get(init_of(container_id))
            known = self._containers.get(container_id)
            if known is None or not (
                known.unit is unit
                and known.init is init
                and known.sandbox is pod.sandbox
                and known.network is pod.network
            ):
                deleted = unit.state == container.DELETED
                document = None if deleted else _container_document(pod, self._stream, container_id, unit)
                known = _Written(unit, init, pod.sandbox, pod.network, container_key(root, container_id), document)
                self._containers[container_id] = known
            found[known.key] = known.document
        return found


def project(pod: Pod, stream: str) -> dict[bytes, bytes | None]:
    """Every projection of `pod`; None means that the key must be absent."""
    return Projecting(stream).of(pod)
