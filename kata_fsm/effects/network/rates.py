# SPDX-License-Identifier: Apache-2.0
"""A limit on the rate at which frames go into a guest's NIC, and out of it: Kata's `rx_` and `tx_rate_limiter_max_rate`.

A token bucket (tc-tbf(8)) holds them back on their way out of a device, and drops what would wait too long. Into the guest
that is its tap; out of it the interface, or a macvtap itself. What a macvtap gets leaves no device before, so it takes a
detour over an `ifb`, a device that hands back what it lets pass (Kata limits the other direction so). A limit is the same
for every NIC of a sandbox; each has its own bucket.

Found again without memory: a bucket of ours on an interface by its handle, the ifb by its name and, like a tap, its alias.
A bucket on a tap or macvtap goes with it. An interface with a root qdisc that somebody has put there is refused.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from kata_fsm import errors, limits
from kata_fsm.effects.hypervisor.settings import HypervisorSettings
from kata_fsm.effects.network import join as joining
from kata_fsm.effects.network import tap
from kata_fsm.effects.network.model import Interface

HANDLE = 0x4B460000
_SLOTS = "ghijklmnopqrstuvwxyzGHIJKLMNOPQRSTUVWXYZ"
"""What an ifb's name ends with, by its slot: no digit, so that it is no tap's name."""


def detour_name(uid: str, slot: int) -> str:
    """The ifb of one slot."""
    return tap.own(uid) + _SLOTS[slot]


def hold(netlink: Any, uid: str, interface: Interface, settings: HypervisorSettings) -> None:
    """Limit what passes between `interface`, which is joined, and its guest; what holds already is fine.

    Raises EffectError for an interface whose qdiscs are somebody else's.
    """
    if not (settings.rx_bits_per_s or settings.tx_bits_per_s):
        return
    found = next(each for each in joining.taps(netlink, uid) if each.slot == interface.slot)
    inward, outward = _places(netlink, uid, found)
    if settings.tx_bits_per_s:
        _limit(netlink, outward, settings.tx_bits_per_s, interface.name)
    if settings.rx_bits_per_s:
        inward = inward or _make_detour(netlink, uid, interface)
        _limit(netlink, inward, settings.rx_bits_per_s, interface.name)
        if found.is_macvtap:
            joining.redirect(netlink, interface.index, inward)


def holds(netlink: Any, uid: str, found: joining.Tap, settings: HypervisorSettings) -> bool:
    """Whether the limits are in force between a tap and its interface."""
    if not (settings.rx_bits_per_s or settings.tx_bits_per_s):
        return True
    inward, outward = _places(netlink, uid, found)
    if settings.tx_bits_per_s and _bucket(netlink, outward) != HANDLE:
        return False
    if not settings.rx_bits_per_s:
        return True
    if not inward or _bucket(netlink, inward) != HANDLE:
        return False
    return not found.is_macvtap or joining.redirects(netlink, found.of, inward)


def lift(netlink: Any, uid: str, *, but: Container[int] = ()) -> None:
    """Take away all that is not on a tap of the sandbox, except for the slots `but`."""
    for found in joining.taps(netlink, uid):
        if found.slot not in but and found.of and not found.is_macvtap and _bucket(netlink, found.of) == HANDLE:
            netlink.tc("del", index=found.of, handle=HANDLE, root=True)
    for detour in _detours(netlink, uid):
        if detour.slot not in but:
            joining.part(netlink, detour)


def _places(netlink: Any, uid: str, found: joining.Tap) -> tuple[int, int]:
    """The devices that frames leave on their way into the guest (0: it has still to be made), and out of it."""
    if not found.is_macvtap:
        return found.index, found.of
    same = (each.index for each in _detours(netlink, uid) if each.slot == found.slot and each.of == found.of)
    return next(same, 0), found.index


def _detours(netlink: Any, uid: str) -> list[joining.Tap]:
    slots = {detour_name(uid, slot): slot for slot in range(len(_SLOTS))}
    named = ((slots.get(str(link.get_attr("IFLA_IFNAME"))), link) for link in netlink.get_links())
    return [joining.Tap(slot, link) for slot, link in named if slot is not None]


def _make_detour(netlink: Any, uid: str, interface: Interface) -> int:
    for stale in _detours(netlink, uid):
        if stale.slot == interface.slot:  # of an interface that was there before
            joining.part(netlink, stale)
    joining.require_free(netlink, interface)
    name = detour_name(uid, interface.slot)
    netlink.link("add", ifname=name, kind="ifb")
    (index,) = netlink.link_lookup(ifname=name)
    alias = joining.ALIAS.format(uid=uid, index=interface.index, name=interface.name)
    netlink.link("set", index=index, ifalias=alias, mtu=interface.mtu)
    joining.silence(name)
    netlink.link("set", index=index, state="up")
    return int(index)


def _bucket(netlink: Any, index: int) -> int:
    """The handle of the root qdisc of a device, 0 for one that is there by itself."""
    for qdisc in netlink.get_qdiscs():
        if qdisc["index"] == index and qdisc["parent"] == _ROOT:
            return int(qdisc["handle"])
    return 0


_ROOT = 0xFFFFFFFF


def _limit(netlink: Any, index: int, bits_per_s: int, name: str) -> None:
    there = _bucket(netlink, index)
    if there == HANDLE:
        return
    if there:
        raise errors.EffectError(
            "join",
            f"interface `{name}` has a root qdisc already, which is not ours to replace",
            evidence={"interface": name, "handle": there},
            hint="remove it (`tc qdisc del dev ... root`), or leave the rate to it",
        )
    rate = bits_per_s // 8
    burst = max(int(rate * limits.RATE_BURST_S), limits.RATE_BURST_BYTES_MIN)
    waiting = burst + max(int(rate * limits.RATE_WAIT_S), limits.RATE_WAIT_BYTES_MIN)
    netlink.tc("add", "tbf", index=index, handle=HANDLE, rate=rate, burst=burst, limit=waiting)
