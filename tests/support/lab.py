# SPDX-License-Identifier: Apache-2.0
"""Private network namespaces for tests: made, wired, dumped, taken away."""

from __future__ import annotations

import difflib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kata_fsm.effects import netns
from tests.support import names
from tests.support.kata import wait_until


class Namespace:
    """One namespace below /run/netns. IPv6 addresses in it are usable at once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = f"/run/netns/{name}"
        run("ip", "netns", "add", name)
        self("sh", "-c", "for f in /proc/sys/net/ipv6/conf/*/accept_dad; do echo 0 > $f; done")
        self.ip("link", "set", "lo", "up")

    def __call__(self, *argv: str, check: bool = True) -> str:
        """The output of a command inside."""
        return run("nsenter", f"--net={self.path}", *argv, check=check)

    def ip(self, *argv: str) -> str:
        return run("ip", "-n", self.name, *argv)

    def tc(self, *argv: str) -> str:
        return run("tc", "-n", self.name, *argv)

    def json(self, *argv: str) -> Any:
        return json.loads(run("ip", "-n", self.name, "-d", "-j", *argv) or "[]")

    def mac(self, device: str) -> str:
        return str(self.json("link", "show", device)[0]["address"])

    def links(self) -> list[str]:
        return [each["ifname"] for each in self.json("link")]

    def address(self, device: str, *addresses: str) -> None:
        """Give a device addresses and bring it up."""
        for each in addresses:
            self.ip("addr", "add", each, "dev", device)
        self.ip("link", "set", "dev", device, "up")

    def settle(self, *devices: str) -> None:
        """Wait until the kernel has given each its link-local address, which it does when both ends are up, and is done with
        it: that of an address that is still tentative has routes to come."""

        def settled(device: str) -> bool:
            shown = self.ip("-6", "addr", "show", "dev", device)
            return "fe80:" in shown and "tentative" not in shown

        for device in devices:
            wait_until(lambda device=device: settled(device), f"`{device}` is up")

    def inside(self, work: Any) -> Any:
        """What `work` answers in a thread inside: a socket made there stays there."""
        return netns.inside(self.path, work)

    def dump(self) -> dict[str, Any]:
        """Everything that a runtime could have changed and forgotten: links, qdiscs, filters, addresses, routes."""
        links = [_still(each) for each in self.json("link")]
        return {
            "links": links,
            "addresses": [_still(each) for each in self.json("addr")],
            "routes": [
                self.json("-4", "route", "show", "table", "all"),
                self.json("-6", "route", "show", "table", "all"),
            ],
            "rules": self.json("rule"),
            "neighbours": self.json("neigh", "show", "nud", "permanent"),
            "qdiscs": self.tc("qdisc", "show"),
            "filters": {each["ifname"]: self._filters(each["ifname"]) for each in links},
        }

    def _filters(self, device: str) -> str:
        return run("tc", "-n", self.name, "filter", "show", "dev", device, "ingress", check=False)

    def close(self) -> None:
        if os.path.exists(self.path):
            run("ip", "netns", "del", self.name)


def _still(link: dict[str, Any]) -> dict[str, Any]:
    """A link without what changes by itself. That a tap has no carrier is noticed by the kernel within a second."""
    info = link.get("linkinfo", {})
    if info.get("info_kind") == "tun":
        link.pop("operstate", None)
        link["flags"] = [flag for flag in link.get("flags", []) if flag != "NO-CARRIER"]
    for each in (link, info.get("info_data", {}), info.get("info_slave_data", {})):
        for name in [name for name in each if name.startswith("stats") or name.endswith("timer")]:
            del each[name]
    return link


def changes(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What differs between two dumps."""
    texts = [json.dumps(each, indent=1, sort_keys=True).splitlines() for each in (before, after)]
    return "\n".join(difflib.unified_diff(*texts, "before", "after", n=8, lineterm=""))


def run(*argv: str, check: bool = True) -> str:
    """A command's output."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return done.stdout


class Lab:
    """Namespaces of one test, whose names begin alike."""

    def __init__(self) -> None:
        self.prefix = names.word()
        self.made: list[Namespace] = []

    def namespace(self, name: str) -> Namespace:
        made = Namespace(f"{self.prefix}-{name}")
        self.made.append(made)
        return made

    def wire(self, one: Namespace, device: str, other: Namespace, far: str, mtu: int = 1500) -> None:
        """A veth pair between two namespaces, both ends down."""
        run(
            *("ip", "-n", one.name, "link", "add", device, "mtu", str(mtu), "type", "veth"),
            *("peer", "name", far, "mtu", str(mtu), "netns", other.name),
        )

    def close(self) -> None:
        for each in self.made:
            each.close()


@contextmanager
def opened() -> Iterator[Lab]:
    """A lab, taken away in the end."""
    lab = Lab()
    try:
        yield lab
    finally:
        lab.close()
