# SPDX-License-Identifier: Apache-2.0
"""The sandbox as a whole: its name, its storages, its end."""

from __future__ import annotations

import os

from . import cgroups, files
from .errors import from_os_error, internal, invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from .agent import Agent
    from .loop import Wait

    Message = dict[str, Any]
    Steps = Generator[Wait, bool, Message]

_HOSTNAME_BYTES_MAX = 64  # the kernel's limit
_DESTROY_TIMEOUT_S = 10.0
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914  # linux/sockios.h
_IFF_UP = 0x1


def create_sandbox(agent: Agent, request: Message) -> Steps:
    """May be repeated: what is mounted already stays."""
    hostname = request.get("hostname", "")
    if len(hostname.encode()) > _HOSTNAME_BYTES_MAX:
        raise invalid(f"`hostname` has `{len(hostname.encode())}` bytes, legal are `{_HOSTNAME_BYTES_MAX}`")
    if hostname:
        _set_hostname(hostname)
    raise_loopback()
    for module in request.get("kernel_modules") or []:
        yield from _load_module(agent, module)
    if request.get("storages"):
        from .mounts import mount_storages

        agent.sandbox_mounts += yield from mount_storages(agent, request["storages"])
    if request.get("dns"):
        lines = [line if " " in line else f"nameserver {line}" for line in request["dns"]]
        try:
            files.write(agent.settings.resolv_conf, "".join(f"{line}\n" for line in lines), 0o644)
        except OSError as error:
            raise from_os_error(error, f"cannot write `{agent.settings.resolv_conf}`") from None
    agent.sandbox_id = request.get("sandbox_id", "")
    return {}


def destroy_sandbox(agent: Agent, request: Message) -> Steps:
    """Ends every container and writes back what is dirty.

    The mounts go with the machine, which is the host's to stop and which it stops next: unmounting them would add two
    programs, 0.1 s under emulation, to every end of a sandbox, and write back nothing more.
    """
    from .rpc_container import remove_container

    for container_id in list(agent.containers):
        yield from remove_container(agent, {"container_id": container_id, "timeout": int(_DESTROY_TIMEOUT_S)})
    cgroups.kill_all(agent.settings.cgroup_root + cgroups.PARENT)
    os.sync()
    agent.sandbox_id = ""
    return {}


def raise_loopback() -> None:
    """`lo` is down in a fresh machine, and everyone expects it up."""
    from _socket import AF_INET, SOCK_DGRAM, socket
    from fcntl import ioctl
    from struct import pack, unpack_from

    probe = socket(AF_INET, SOCK_DGRAM, 0)
    try:
        answer = ioctl(probe.fileno(), _SIOCGIFFLAGS, pack("16sH14x", b"lo", 0))
        flags = unpack_from("H", answer, 16)[0]
        if not flags & _IFF_UP:
            ioctl(probe.fileno(), _SIOCSIFFLAGS, pack("16sH14x", b"lo", flags | _IFF_UP))
    except OSError:
        pass  # a kernel without network
    finally:
        probe.close()


def _set_hostname(hostname: str) -> None:
    from _socket import sethostname

    try:
        sethostname(hostname)
    except OSError as error:
        raise from_os_error(error, f"cannot set the hostname to `{hostname}`") from None


def _load_module(agent: Agent, module: Message) -> Generator[Wait, bool, None]:
    name = module.get("name", "")
    child = agent.children.spawn([agent.settings.busybox, "modprobe", name, *(module.get("parameters") or [])])
    end = yield from child.wait()
    if end.status:
        raise internal(f"`modprobe {name}` ended with status `{end.status}`")
