# SPDX-License-Identifier: Apache-2.0
"""Calls about whole containers."""

from __future__ import annotations

import os

from kata_wire.envelope import ALREADY_EXISTS

from . import bundle, jsonc
from .containers import Container, valid_id
from .errors import RpcError, invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from .agent import Agent
    from .loop import Wait

    Message = dict[str, Any]
    Steps = Generator[Wait, bool, Message]


def create_container(agent: Agent, request: Message) -> Steps:
    """Repeating it with the same configuration is fine; with another one it is ALREADY_EXISTS."""
    container_id = valid_id(request.get("container_id"))
    present = agent.containers.get(container_id)
    while present is not None and present.state in ("creating", "removing"):
        yield present.changed.wait()
        present = agent.containers.get(container_id)
    if present is not None:
        if present.request == request:
            return {}
        raise RpcError(ALREADY_EXISTS, f"container `{container_id}` exists with another configuration")
    spec = raw_or_message(request.get("OCI"), "OCI", "message_to_spec")
    container = Container(agent, container_id, request)
    agent.admit(container)
    try:
        shared = bool(request.get("sandbox_pidns"))
        container.mounts = yield from _mount(agent, request.get("storages") or [])
        if request.get("devices"):
            from . import devices

            yield from devices.give(agent, spec, request["devices"])
        namespace = agent.shared_pid_namespace(container, bundle.pid_target(spec)) if shared else None
        yield from container.create(spec, namespace)
    except Exception:
        yield from _unmount(agent, container.mounts)
        if container.state == "creating":
            del agent.containers[container_id]
            container.become("failed")
        raise
    return {}


def start_container(agent: Agent, request: Message) -> Steps:
    """Starting a running container again is fine."""
    yield from agent.container(request.get("container_id", "")).start()
    return {}


def remove_container(agent: Agent, request: Message) -> Steps:
    """Removing an unknown container is fine: it is gone."""
    container_id = request.get("container_id", "")
    container = agent.containers.get(container_id)
    while container is not None and container.state in ("creating", "removing"):
        yield container.changed.wait()
        container = agent.containers.get(container_id)
    if container is not None:
        yield from container.remove(float(request.get("timeout", 0)) or None)
        yield from _unmount(agent, container.mounts)
        agent.containers.pop(container_id, None)
        container.changed.notify()
    return {}


def pause_container(agent: Agent, request: Message) -> Steps:
    """Freeze every process."""
    yield from agent.container(request.get("container_id", "")).freeze(True)
    return {}


def resume_container(agent: Agent, request: Message) -> Steps:
    """Thaw them."""
    yield from agent.container(request.get("container_id", "")).freeze(False)
    return {}


def update_container(agent: Agent, request: Message) -> Steps:
    """Change resource limits."""
    container = agent.container(request.get("container_id", ""))
    resources = raw_or_message(request.get("resources"), "resources", "message_to_resources")
    yield from container.update(resources)
    return {}


def raw_or_message(message: Message | None, name: str, convert: str) -> Message:
    """The OCI object in `raw_json`, or, from a host that does not know that field, the message converted."""
    if message is None:
        raise invalid(f"`{name}` is missing from the request")
    raw = message.get("raw_json")
    if not raw:
        from kata_wire import spec

        converter: Callable[[Message], Message] = getattr(spec, convert)
        return converter(message)
    try:
        value = jsonc.loads(raw)
    except ValueError as error:
        raise invalid(f"`{name}.raw_json`: {error}") from None
    if not isinstance(value, dict):
        raise invalid(f"`{name}.raw_json` is no JSON object")
    return value


def _mount(agent: Agent, storages: list[Message]) -> Generator[Wait, bool, list[str]]:
    if not storages:
        return []
    from .mounts import mount_storages

    return (yield from mount_storages(agent, storages))


def _unmount(agent: Agent, mount_points: list[str]) -> Generator[Wait, bool, None]:
    if mount_points:
        from .mounts import unmount_all

        yield from unmount_all(agent, mount_points)
        for path in mount_points:
            try:
                os.rmdir(path)
            except OSError:
                pass  # not ours, or shared with another
        mount_points.clear()
