# SPDX-License-Identifier: Apache-2.0
"""What is done inside the sandbox's namespace, each as one call that blocks. The calling thread must have joined it.

Errors of the kernel come out as EffectError, in words.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from kata_fsm import errors
from kata_fsm.effects.bounded import Enter
from kata_fsm.effects.hypervisor.settings import HypervisorSettings
from kata_fsm.effects.network import join as joining
from kata_fsm.effects.network import rates, tap
from kata_fsm.effects.network import scan as scanning
from kata_fsm.effects.network.model import Interface, Network

RESOLVER = "127.0.0.11"
"""Where Docker answers names inside the namespace of a container on a network that a user has made (libnetwork,
sandbox_dns_unix.go)."""

_IFF_UP = 0x1


@contextmanager
def _netlink() -> Iterator[Any]:
    from pyroute2 import IPRoute, netlink

    try:
        with IPRoute() as opened:
            yield opened
    except netlink.exceptions.NetlinkError as error:
        message = f"the kernel refused a change of the network: {os.strerror(error.code)}"
        raise errors.EffectError("netlink", message, evidence={"errno": error.code}) from error


def names_up() -> list[str]:
    """The interfaces that are up, without `lo`. Down ones do not count: see `scan`."""
    with _netlink() as netlink:
        names = {str(link.get_attr("IFLA_IFNAME")) for link in netlink.get_links() if link["flags"] & _IFF_UP}
    return sorted(names - {"lo"})


def uncarried() -> list[str]:
    """What belongs to the namespace's network and is not carried to a guest, in words."""
    with _netlink() as netlink:
        return scanning.uncarried(netlink)


def has_resolver() -> bool:
    """Whether somebody listens at `RESOLVER`. /proc/net/udp has addresses as the machine's own integers, in hexadecimal."""
    (number,) = struct.unpack("=I", socket.inet_aton(RESOLVER))
    with open("/proc/thread-self/net/udp", encoding="ascii") as file:
        return any(f" {number:08X}:" in line for line in file)


def look(uid: str, settings: HypervisorSettings, known: Network) -> Network:
    """What the guest should have: one of `known` keeps its slot, the others get free ones. Changes nothing."""
    with _netlink() as netlink:
        return look_with(netlink, uid, settings, known)


def look_with(netlink: Any, uid: str, settings: HypervisorSettings, known: Network) -> Network:
    """The same with an open `IPRoute`."""
    found = scanning.scan(netlink, own=tap.own(uid))
    network = found.on(_with_slots(found.interfaces, known.interfaces, _queues(settings)))
    require_buses(network, settings)
    return network


def require_buses(network: Network, settings: HypervisorSettings) -> None:
    """Raises EffectError when the machine has not a bus for each NIC: said before it is plugged, not after the boot."""
    buses, wanted = settings.root_ports - 1, max((each.slot for each in network.interfaces), default=0)
    if wanted > buses:
        names = ", ".join(f"`{each.name}`" for each in network.interfaces)
        raise errors.EffectError(
            "scan",
            f"the machine has buses for `{buses}` NICs, the network namespace has {names}",
            hint="raise `hypervisor.qemu.pcie_root_port`",
        )


def join(
    uid: str,
    model: str,
    interfaces: Iterable[Interface],
    settings: HypervisorSettings,
    enter: Enter = lambda name: None,
) -> None:
    """Make the taps of these interfaces and join them; those that are joined already stay so. Raises EffectError."""
    with _netlink() as netlink:
        for interface in interfaces:
            enter(interface.name)
            joining.join(netlink, uid, model, interface)
            rates.hold(netlink, uid, interface, settings)


def joined(uid: str, settings: HypervisorSettings) -> Network | None:
    """What the guest should have, if all of it is joined; None if something is missing. Changes nothing."""
    with _netlink() as netlink:
        network = look_with(netlink, uid, settings, Network())
        taps = {each.slot: each for each in joining.taps(netlink, uid)}
        for interface in network.interfaces:
            found = taps.get(interface.slot)
            if found is None or found.of != interface.index or not joining.is_joined(netlink, found):
                return None
            if not rates.holds(netlink, uid, found, settings):
                return None
    return network


def part(uid: str, *, but: Iterable[int] = ()) -> list[str]:
    """Part every tap of the sandbox, except those of the slots `but`; the names of those that were there."""
    kept = set(but)
    with _netlink() as netlink:
        rates.lift(netlink, uid, but=kept)
        return joining.part_all(netlink, uid, but=kept)


def open_queues(
    uid: str, model: str, interface: Interface, settings: HypervisorSettings
) -> tuple[list[int], list[int]]:
    """Descriptors of the interface's tap, one for each queue pair, and as many of vhost-net or none. Raises EffectError."""
    fds: list[int] = []
    vhost: list[int] = []
    try:
        for _ in range(interface.queues):
            fds.append(_open_queue(model, tap.name(uid, interface.slot), multi=interface.queues > 1))
            opened = tap.open_vhost() if _uses_vhost(settings) else None
            if opened is not None:
                vhost.append(opened)
        if len(vhost) < len(fds):  # all or none: QEMU wants one for each
            while vhost:
                os.close(vhost.pop())
    except Exception:
        for fd in (*fds, *vhost):
            os.close(fd)
        raise
    return fds, vhost


def _open_queue(model: str, name: str, *, multi: bool) -> int:
    return tap.open_macvtap(name) if model == joining.MACVTAP else tap.open_queue(name, multi=multi)


def _uses_vhost(settings: HypervisorSettings) -> bool:
    return settings.vhost_net and settings.accel != "tcg"


def _queues(settings: HypervisorSettings) -> int:
    """Several queues help only where the kernel moves the frames: without vhost-net QEMU's one thread serves all."""
    return min(settings.vcpus, 8) if _uses_vhost(settings) and os.path.exists(tap.VHOST) else 1


def _with_slots(found: tuple[Interface, ...], known: tuple[Interface, ...], queues: int) -> list[Interface]:
    """Each with the slot that it has, or the lowest free one."""
    slots = {(interface.index, interface.mac): interface for interface in known}
    taken = {interface.slot for interface in known}
    result = []
    for interface in found:
        old = slots.get((interface.index, interface.mac))
        if old is None:
            slot = next(number for number in range(1, len(taken) + 2) if number not in taken)
            taken.add(slot)
            result.append(msgspec.structs.replace(interface, slot=slot, queues=queues))
        else:
            result.append(msgspec.structs.replace(interface, slot=old.slot, queues=old.queues))
    return result
