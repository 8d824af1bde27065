# SPDX-License-Identifier: Apache-2.0
"""`network`: the network of a running pod, as `kata-runtime kata-network` has it.

network add-iface ID FILE|-       give the guest an interface of the namespace: {"Name": "eth1"}
network del-iface ID FILE|-       take one away, by "HwAddr" or "Name"
network list-ifaces ID            the guest's interfaces
network update-routes ID FILE|-   set the guest's routes, all of them: [{"Dest", "Gateway", "Device", ...}]
network list-routes ID            the guest's routes
network rescan ID                 give the guest whatever the namespace holds now

FILE holds JSON; `-` reads stdin. Each prints the interfaces, or the routes, that there are then.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from kata_fsm.cli import client, lookup
from kata_fsm.cli.arguments import Parser
from kata_fsm.cli.context import Context
from kata_fsm.errors import UsageError
from kata_fsm.limits import SPEC_BYTES_MAX
from kata_fsm.oci.network import interface_in, interface_out, route_out, routes_in

ACTIONS = {
    "add-iface": "give the guest an interface of the namespace",
    "del-iface": "take one away",
    "list-ifaces": "print the guest's interfaces",
    "update-routes": "set the guest's routes",
    "list-routes": "print the guest's routes",
    "rescan": "give the guest whatever the namespace holds now",
}
_WITH_FILE = ("add-iface", "del-iface", "update-routes")


def run(context: Context, argv: list[str]) -> int:
    """Ask the sandbox's supervisor."""
    if argv[:1] in (["--help"], ["-h"], []):
        sys.stdout.write((__doc__ or "") + "\n")
        return 0
    action = argv[0]
    if action not in ACTIONS:
        raise UsageError(f"network: there is no `{action}`", hint=f"legal are {', '.join(ACTIONS)}")
    parser = Parser(f"network {action}", ACTIONS[action])
    parser.container()
    if action in _WITH_FILE:
        parser.add_argument("file", metavar="FILE", help="JSON; `-` reads stdin")
    options = parser.parse_args(argv[1:])
    asked = _asked(action, _read(options.file) if action in _WITH_FILE else "")
    found = lookup.require(context, options.id)
    reply = client.ask(context, found, "network_change" if "change" in asked else "network_list", **asked)
    _print(reply)
    return 0


def _asked(action: str, text: str) -> dict[str, Any]:
    match action:
        case "add-iface":
            return {"change": {"add": interface_in(text)}}
        case "del-iface":
            return {"change": {"remove": interface_in(text)}}
        case "update-routes":
            return {"change": {"routes": routes_in(text)}}
        case "rescan":
            return {"change": {"rescan": True}}
    return {"what": "routes" if action == "list-routes" else "interfaces"}


def _read(path: str) -> str:
    try:
        with open(os.dup(0) if path == "-" else path, "rb") as file:
            data = file.read(SPEC_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"network: `{path}` cannot be read: {error.strerror}") from error
    if len(data) > SPEC_BYTES_MAX:
        raise UsageError(f"network: `{path}` is larger than {SPEC_BYTES_MAX} bytes")
    return data.decode("utf-8", "replace")


def _print(reply: dict[str, Any]) -> None:
    import json

    if "routes" in reply:
        listed = [route_out(each) for each in reply["routes"]]
    else:
        listed = [interface_out(each) for each in reply.get("interfaces", [])]
    sys.stdout.write(json.dumps(listed, indent=1) + "\n")
