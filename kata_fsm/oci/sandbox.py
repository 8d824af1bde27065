# SPDX-License-Identifier: Apache-2.0
"""Does a bundle describe a sandbox of its own, or a container in one that exists? Pure.

Each container manager says so in annotations of its own. Without any, the container is alone in its sandbox.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from kata_fsm.errors import SpecError

SANDBOX = "sandbox"
CONTAINER = "container"
SINGLE = "single"

# (type key, values that mean sandbox, value that means container, sandbox id key)
_MANAGERS: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    ("io.kubernetes.cri.container-type", ("sandbox",), "container", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", ("sandbox",), "container", "io.kubernetes.cri-o.SandboxID"),
    ("io.kubernetes.docker.type", ("podsandbox", "sandbox"), "container", "io.kubernetes.sandbox.id"),
    ("io.katacontainers.pkg.oci.container_type", ("pod_sandbox",), "pod_container", "io.kubernetes.cri.sandbox-id"),
)


class Place(msgspec.Struct, frozen=True):
    """`kind` is SANDBOX, CONTAINER or SINGLE; `sandbox` is the id of the sandbox that the container belongs to."""

    kind: str
    sandbox: str

    @property
    def is_new(self) -> bool:
        """Whether a sandbox has to be made."""
        return self.kind != CONTAINER


def place_of(container_id: str, annotations: Mapping[str, str]) -> Place:
    """Where `container_id` belongs. Raises `SpecError` for an unknown type or a container without its sandbox's id.

    podman names the infra container's id in a member's `io.kubernetes.cri-o.SandboxID`, and gives the infra container no
    annotations at all: it comes out as SINGLE, and its members join it.
    """
    for type_key, sandbox_words, container_word, id_key in _MANAGERS:
        word = annotations.get(type_key)
        if word is None:
            continue
        if word in sandbox_words:
            return Place(SANDBOX, container_id)
        if word != container_word:
            raise SpecError(f"config.json: `annotations[{type_key}]`: Unknown container type {word}")
        sandbox = annotations.get(id_key)
        if not sandbox:
            raise SpecError(f"config.json: `annotations[{id_key}]`: Could not find sandbox ID")
        return Place(CONTAINER, sandbox)
    return Place(SINGLE, container_id)
