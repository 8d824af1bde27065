# SPDX-License-Identifier: Apache-2.0
"""Joining an interface to its tap, both ways, without changing the interface.

`tcfilter`: each of the two gets an ingress qdisc with one filter that matches everything and redirects it to the other's
egress (virtcontainers/network_linux.go, setupTCFiltering). The filter is `u32` with an empty match, as in Kata, which more
kernels have than `matchall`. A redirect at ingress comes before bridges, firewalls and the namespace's own protocols, so
nothing in the namespace answers in the guest's place.

What is found again without memory: a tap by its name, the interface that it belongs to by its alias, our filter by where it
redirects to. An interface that has an ingress qdisc already is refused, since it is somebody else's and can only be there
once; so one that is found beside our tap is ours, unless it holds filters that are not.

`macvtap`: the tap is a macvtap on top of the interface, in passthru mode, which hands it every frame. Kata uses bridge mode
and therefore gives the interface another MAC address and takes its addresses away (xConnectVMNetwork); in passthru mode
both keep the same MAC address, the interface hears nothing while the macvtap is there, and nothing has to be put back.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import Any

from kata_fsm import errors
from kata_fsm.effects.network import tap
from kata_fsm.effects.network.model import Interface

INGRESS = 0xFFFF0000
MACVTAP = "macvtap"
ALIAS = "kata-fsm sandbox {uid}, joined to {index} {name}"
_ETH_P_ALL = 0x0003
_QDISCS_AT_INGRESS = ("ingress", "clsact")


class Tap:
    """A tap of ours as it is found: its slot, its number, and number and name of the interface it belongs to."""

    def __init__(self, slot: int, link: Any) -> None:
        self.slot = slot
        self.index = int(link["index"])
        self.name = str(link.get_attr("IFLA_IFNAME"))
        number, _, self.of_name = str(link.get_attr("IFLA_IFALIAS") or "").partition("joined to ")[2].partition(" ")
        info = link.get_attr("IFLA_LINKINFO")
        self.is_macvtap = info is not None and info.get_attr("IFLA_INFO_KIND") == MACVTAP
        lower = link.get_attr("IFLA_LINK") if self.is_macvtap else None
        self.of = int(lower) if lower else int(number) if number.isdecimal() else 0

    def names(self, netlink: Any) -> bool:
        """Whether the interface it belongs to is still the one of that name."""
        return bool(netlink.link_lookup(ifname=self.of_name) == [self.of])


def taps(netlink: Any, uid: str) -> list[Tap]:
    """All of a sandbox's taps in the namespace."""
    found = []
    for link in netlink.get_links():
        slot = tap.slot_of(uid, str(link.get_attr("IFLA_IFNAME")))
        if slot is not None:
            found.append(Tap(slot, link))
    return found


def is_joined(netlink: Any, found: Tap) -> bool:
    """Whether frames go both ways between a tap and its interface."""
    return found.is_macvtap or (redirects(netlink, found.of, found.index) and redirects(netlink, found.index, found.of))


def join(netlink: Any, uid: str, model: str, interface: Interface) -> None:
    """Make the tap of `interface.slot` and join the two; what is there already is fine. Raises EffectError."""
    existing = next((each for each in taps(netlink, uid) if each.slot == interface.slot), None)
    if existing is not None and existing.of != interface.index:
        part(netlink, existing)
        existing = None
    if existing is None:
        existing = (_make_macvtap if model == MACVTAP else _make)(netlink, uid, interface)
    if not existing.is_macvtap:
        _redirect_both(netlink, interface, existing)
    netlink.link("set", index=existing.index, mtu=interface.mtu, state="up")


def _redirect_both(netlink: Any, interface: Interface, existing: Tap) -> None:
    for here, there in ((interface.index, existing.index), (existing.index, interface.index)):
        redirect(netlink, here, there)


def redirect(netlink: Any, here: int, there: int) -> None:
    """What comes in at one device leaves by the other, all of it."""
    if not _has_ingress(netlink, here):
        netlink.tc("add", "ingress", index=here, handle=INGRESS)
    if not redirects(netlink, here, there):
        action = {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": there}
        # A key without bits matches everything; the class is what pyroute2 insists on, and an ingress qdisc has none.
        match = {"keys": ["0x0/0x0+0"], "target": 1, "action": [action]}
        netlink.tc("add-filter", "u32", index=here, parent=INGRESS, protocol=_ETH_P_ALL, **match)


def part(netlink: Any, found: Tap) -> None:
    """Undo `join`, whole or half done: first what was added to the interface, the tap last."""
    from pyroute2.netlink.exceptions import NetlinkError

    if found.of and not found.is_macvtap and _exists(netlink, found.of):
        _part_interface(netlink, found)
    try:
        netlink.link("del", index=found.index)
    except NetlinkError as error:
        if error.code != errno.ENODEV:  # a macvtap goes with its interface, and that is somebody else's
            raise


def part_all(netlink: Any, uid: str, *, but: Iterable[int] = ()) -> list[str]:
    """Part every tap of the sandbox except those of the slots `but`. Answers the names of those that were there."""
    gone = [each for each in taps(netlink, uid) if each.slot not in set(but)]
    for each in gone:
        part(netlink, each)
    return [each.name for each in gone]


def _make_macvtap(netlink: Any, uid: str, interface: Interface) -> Tap:
    from pyroute2.netlink.exceptions import NetlinkError

    name = tap.name(uid, interface.slot)
    queues = {"num_tx_queues": interface.queues, "num_rx_queues": interface.queues}
    try:
        netlink.link("add", ifname=name, kind=MACVTAP, link=interface.index, macvtap_mode="passthru", **queues)
    except NetlinkError as error:
        raise errors.EffectError(
            "join",
            f"interface `{interface.name}` (a `{interface.kind}`) takes no macvtap: {os.strerror(error.code)}",
            evidence={"interface": interface.name, "errno": error.code},
            hint="set `runtime.internetworking_model` to `tcfilter`",
        ) from error
    alias = ALIAS.format(uid=uid, index=interface.index, name=interface.name)
    (index,) = netlink.link_lookup(ifname=name)
    netlink.link("set", index=index, ifalias=alias)
    silence(name)
    return _find(netlink, uid, interface.slot)


def _find(netlink: Any, uid: str, slot: int) -> Tap:
    return next(each for each in taps(netlink, uid) if each.slot == slot)


def _make(netlink: Any, uid: str, interface: Interface) -> Tap:
    require_free(netlink, interface)
    name = tap.name(uid, interface.slot)
    fd = tap.open_queue(name, multi=interface.queues > 1)
    try:
        (index,) = netlink.link_lookup(ifname=name)
        alias = ALIAS.format(uid=uid, index=interface.index, name=interface.name)
        netlink.link("set", index=index, ifalias=alias)
        silence(name)
        tap.keep(fd)
    finally:
        os.close(fd)
    return _find(netlink, uid, interface.slot)


def silence(name: str) -> None:
    """Keep the namespace's IPv6 from speaking into the guest's wire: our device is no host of its own."""
    try:
        with open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w", encoding="ascii") as file:
            file.write("1")
    except OSError:
        pass  # no IPv6, or a read-only /proc: then the guest hears a few packets that are not meant for it


def require_free(netlink: Any, interface: Interface) -> None:
    """Raises EffectError for an interface whose ingress is somebody else's."""
    if _has_ingress(netlink, interface.index):
        raise errors.EffectError(
            "join",
            f"interface `{interface.name}` has an ingress qdisc already, which is not ours to replace",
            evidence={"interface": interface.name},
            hint="remove it (`tc qdisc del dev ... ingress`), or set `runtime.internetworking_model` to `macvtap`, without "
            "a limit of its rate",
        )


def _exists(netlink: Any, index: int) -> bool:
    return any(link["index"] == index for link in netlink.get_links())


def _has_ingress(netlink: Any, index: int) -> bool:
    return any(
        qdisc["index"] == index and qdisc.get_attr("TCA_KIND") in _QDISCS_AT_INGRESS for qdisc in netlink.get_qdiscs()
    )


def _part_interface(netlink: Any, found: Tap) -> None:
    if not _has_ingress(netlink, found.of):
        return
    filters = netlink.get_filters(index=found.of, parent=INGRESS)
    ours = {_priority(each) for each in filters if _redirect_of(each) == found.index}
    if not ours and (filters or not found.names(netlink)):
        return  # the number is another interface's by now
    if all(_priority(each) in ours for each in filters):
        netlink.tc("del", "ingress", index=found.of, handle=INGRESS)
        return
    for priority in ours:  # somebody has added filters of his own: they stay, and so does the qdisc
        netlink.tc("del-filter", "u32", index=found.of, parent=INGRESS, protocol=_ETH_P_ALL, prio=priority, target=1)


def _priority(message: Any) -> int:
    return int(message["info"]) >> 16


def redirects(netlink: Any, here: int, there: int) -> bool:
    """Whether what comes in at one device leaves by the other."""
    if not _has_ingress(netlink, here):
        return False
    return any(_redirect_of(each) == there for each in netlink.get_filters(index=here, parent=INGRESS))


def _redirect_of(message: Any) -> int | None:
    """The interface that a filter redirects to; None for a filter that does not."""
    options = message.get_attr("TCA_OPTIONS")
    actions = options.get_attr("TCA_U32_ACT") if hasattr(options, "get_attr") else None
    first = actions.get_attr("TCA_ACT_PRIO_1") if actions is not None else None
    if first is None or first.get_attr("TCA_ACT_KIND") != "mirred":
        return None
    parameters = first.get_attr("TCA_ACT_OPTIONS").get_attr("TCA_MIRRED_PARMS")
    return int(parameters["ifindex"]) if parameters is not None else None
