# SPDX-License-Identifier: Apache-2.0
"""An OCI configuration (the dict of config.json) to and from the agent's messages.

The agent's form knows less than config.json: it has no hooks added after OCI 1.0, no `unified`, no umask, no default
errno of seccomp, and it cannot tell a number that is absent from 0. So the host also sends the JSON text in `raw_json`,
and the agent reads the message only when a stock host left that out.

Names are mapped by one table for both directions. On the way back, empty values are left out, except those that OCI
requires or in which 0 has a meaning of its own. This module runs in the guest: it imports nothing but ours until the
host asks for a protobuf message.
"""

from kata_wire import table
from kata_wire.errors import WireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kata_wire.pb.oci_pb2 import LinuxResources, Process, Spec

# How one field is carried.
_DROP = "drop"  # left out on the way back when empty, zero or false
_KEEP = "keep"  # always there on the way back, with its default: OCI requires it, or 0 is a value
_PRESENT = "present"  # the message has presence: 0 comes back when 0 was sent
_ANY = "any"  # a device number; OCI leaves it out for any, the agent takes -1
_OBJECT = "object"
_LIST = "list"  # of objects

# table name -> (proto field, JSON key, how, table of the inner object, default for _KEEP)
_Row = tuple[str, str, str, str, object]
_TABLES: dict[str, tuple[_Row, ...]] = {
    "Spec": (
        ("Version", "ociVersion", _KEEP, "", ""),
        ("Process", "process", _OBJECT, "Process", None),
        ("Root", "root", _OBJECT, "Root", None),
        ("Hostname", "hostname", _DROP, "", ""),
        ("Mounts", "mounts", _LIST, "Mount", None),
        ("Hooks", "hooks", _OBJECT, "Hooks", None),
        ("Annotations", "annotations", _DROP, "", {}),
        ("Linux", "linux", _OBJECT, "Linux", None),
    ),
    "Process": (
        ("Terminal", "terminal", _DROP, "", False),
        ("ConsoleSize", "consoleSize", _OBJECT, "Box", None),
        ("User", "user", _OBJECT, "User", None),
        ("Args", "args", _DROP, "", []),
        ("Env", "env", _DROP, "", []),
        ("Cwd", "cwd", _KEEP, "", ""),
        ("Capabilities", "capabilities", _OBJECT, "Capabilities", None),
        ("Rlimits", "rlimits", _LIST, "Rlimit", None),
        ("NoNewPrivileges", "noNewPrivileges", _DROP, "", False),
        ("ApparmorProfile", "apparmorProfile", _DROP, "", ""),
        ("OOMScoreAdj", "oomScoreAdj", _DROP, "", 0),
        ("SelinuxLabel", "selinuxLabel", _DROP, "", ""),
    ),
    "Box": (("Height", "height", _KEEP, "", 0), ("Width", "width", _KEEP, "", 0)),
    "User": (
        ("UID", "uid", _KEEP, "", 0),
        ("GID", "gid", _KEEP, "", 0),
        ("AdditionalGids", "additionalGids", _DROP, "", []),
        ("Username", "username", _DROP, "", ""),
    ),
    "Capabilities": (
        ("Bounding", "bounding", _DROP, "", []),
        ("Effective", "effective", _DROP, "", []),
        ("Inheritable", "inheritable", _DROP, "", []),
        ("Permitted", "permitted", _DROP, "", []),
        ("Ambient", "ambient", _DROP, "", []),
    ),
    "Rlimit": (("Type", "type", _KEEP, "", ""), ("Hard", "hard", _KEEP, "", 0), ("Soft", "soft", _KEEP, "", 0)),
    "Root": (("Path", "path", _KEEP, "", ""), ("Readonly", "readonly", _DROP, "", False)),
    "Mount": (
        ("destination", "destination", _KEEP, "", ""),
        ("source", "source", _DROP, "", ""),
        ("type", "type", _DROP, "", ""),
        ("options", "options", _DROP, "", []),
    ),
    "Hooks": (
        ("Prestart", "prestart", _LIST, "Hook", None),
        ("Poststart", "poststart", _LIST, "Hook", None),
        ("Poststop", "poststop", _LIST, "Hook", None),
    ),
    "Hook": (
        ("Path", "path", _KEEP, "", ""),
        ("Args", "args", _DROP, "", []),
        ("Env", "env", _DROP, "", []),
        ("Timeout", "timeout", _DROP, "", 0),
    ),
    "Linux": (
        ("UIDMappings", "uidMappings", _LIST, "IDMapping", None),
        ("GIDMappings", "gidMappings", _LIST, "IDMapping", None),
        ("Sysctl", "sysctl", _DROP, "", {}),
        ("Resources", "resources", _OBJECT, "Resources", None),
        ("CgroupsPath", "cgroupsPath", _DROP, "", ""),
        ("Namespaces", "namespaces", _LIST, "Namespace", None),
        ("Devices", "devices", _LIST, "Device", None),
        ("Seccomp", "seccomp", _OBJECT, "Seccomp", None),
        ("RootfsPropagation", "rootfsPropagation", _DROP, "", ""),
        ("MaskedPaths", "maskedPaths", _DROP, "", []),
        ("ReadonlyPaths", "readonlyPaths", _DROP, "", []),
        ("MountLabel", "mountLabel", _DROP, "", ""),
        ("IntelRdt", "intelRdt", _OBJECT, "IntelRdt", None),
    ),
    "IDMapping": (
        ("HostID", "hostID", _KEEP, "", 0),
        ("ContainerID", "containerID", _KEEP, "", 0),
        ("Size", "size", _KEEP, "", 0),
    ),
    "Namespace": (("Type", "type", _KEEP, "", ""), ("Path", "path", _DROP, "", "")),
    "Device": (
        ("Path", "path", _KEEP, "", ""),
        ("Type", "type", _KEEP, "", ""),
        ("Major", "major", _KEEP, "", 0),
        ("Minor", "minor", _KEEP, "", 0),
        ("FileMode", "fileMode", _DROP, "", 0),
        ("UID", "uid", _DROP, "", 0),
        ("GID", "gid", _DROP, "", 0),
    ),
    "Resources": (
        ("Devices", "devices", _LIST, "DeviceCgroup", None),
        ("Memory", "memory", _OBJECT, "Memory", None),
        ("CPU", "cpu", _OBJECT, "CPU", None),
        ("Pids", "pids", _OBJECT, "Pids", None),
        ("BlockIO", "blockIO", _OBJECT, "BlockIO", None),
        ("HugepageLimits", "hugepageLimits", _LIST, "HugepageLimit", None),
        ("Network", "network", _OBJECT, "Network", None),
    ),
    "DeviceCgroup": (
        ("Allow", "allow", _KEEP, "", False),
        ("Type", "type", _DROP, "", ""),
        ("Major", "major", _ANY, "", 0),
        ("Minor", "minor", _ANY, "", 0),
        ("Access", "access", _DROP, "", ""),
    ),
    "Memory": (
        ("Limit", "limit", _DROP, "", 0),
        ("Reservation", "reservation", _DROP, "", 0),
        ("Swap", "swap", _DROP, "", 0),
        ("Kernel", "kernel", _DROP, "", 0),
        ("KernelTCP", "kernelTCP", _DROP, "", 0),
        ("Swappiness", "swappiness", _DROP, "", 0),
        ("DisableOOMKiller", "disableOOMKiller", _DROP, "", False),
    ),
    "CPU": (
        ("Shares", "shares", _DROP, "", 0),
        ("Quota", "quota", _DROP, "", 0),
        ("Period", "period", _DROP, "", 0),
        ("RealtimeRuntime", "realtimeRuntime", _DROP, "", 0),
        ("RealtimePeriod", "realtimePeriod", _DROP, "", 0),
        ("Cpus", "cpus", _DROP, "", ""),
        ("Mems", "mems", _DROP, "", ""),
    ),
    "Pids": (("Limit", "limit", _KEEP, "", 0),),
    "BlockIO": (
        ("Weight", "weight", _DROP, "", 0),
        ("LeafWeight", "leafWeight", _DROP, "", 0),
        ("WeightDevice", "weightDevice", _LIST, "WeightDevice", None),
        ("ThrottleReadBpsDevice", "throttleReadBpsDevice", _LIST, "ThrottleDevice", None),
        ("ThrottleWriteBpsDevice", "throttleWriteBpsDevice", _LIST, "ThrottleDevice", None),
        ("ThrottleReadIOPSDevice", "throttleReadIOPSDevice", _LIST, "ThrottleDevice", None),
        ("ThrottleWriteIOPSDevice", "throttleWriteIOPSDevice", _LIST, "ThrottleDevice", None),
    ),
    "WeightDevice": (
        ("Major", "major", _KEEP, "", 0),
        ("Minor", "minor", _KEEP, "", 0),
        ("Weight", "weight", _DROP, "", 0),
        ("LeafWeight", "leafWeight", _DROP, "", 0),
    ),
    "ThrottleDevice": (
        ("Major", "major", _KEEP, "", 0),
        ("Minor", "minor", _KEEP, "", 0),
        ("Rate", "rate", _KEEP, "", 0),
    ),
    "HugepageLimit": (("Pagesize", "pageSize", _KEEP, "", ""), ("Limit", "limit", _KEEP, "", 0)),
    "Network": (
        ("ClassID", "classID", _DROP, "", 0),
        ("Priorities", "priorities", _LIST, "InterfacePriority", None),
    ),
    "InterfacePriority": (("Name", "name", _KEEP, "", ""), ("Priority", "priority", _KEEP, "", 0)),
    "Seccomp": (
        ("DefaultAction", "defaultAction", _KEEP, "", ""),
        ("Architectures", "architectures", _DROP, "", []),
        ("Flags", "flags", _DROP, "", []),
        ("Syscalls", "syscalls", _LIST, "Syscall", None),
    ),
    "Syscall": (
        ("Names", "names", _KEEP, "", []),
        ("Action", "action", _KEEP, "", ""),
        ("errnoret", "errnoRet", _PRESENT, "", 0),
        ("Args", "args", _LIST, "SeccompArg", None),
    ),
    "SeccompArg": (
        ("Index", "index", _KEEP, "", 0),
        ("Value", "value", _KEEP, "", 0),
        ("ValueTwo", "valueTwo", _DROP, "", 0),
        ("Op", "op", _KEEP, "", ""),
    ),
    "IntelRdt": (("L3CacheSchema", "l3CacheSchema", _DROP, "", ""),),
}


def message_to_spec(message: "dict[str, Any]") -> "dict[str, Any]":
    """The OCI configuration in a decoded `grpc.Spec`. `raw_json` is not looked at."""
    return _to_oci("Spec", message)


def message_to_process(message: "dict[str, Any]") -> "dict[str, Any]":
    """The OCI `process` in a decoded `grpc.Process`. `raw_json` is not looked at."""
    return _to_oci("Process", message)


def message_to_resources(message: "dict[str, Any]") -> "dict[str, Any]":
    """The OCI `linux.resources` in a decoded `grpc.LinuxResources`. `raw_json` is not looked at."""
    return _to_oci("Resources", message)


def spec_to_message(oci_config: "dict[str, Any]", *, raw: bool = True) -> "Spec":
    """The protobuf message of an OCI configuration, with its JSON in `raw_json` unless told not to.

    Raises WireError, naming the field, when a value does not fit its message.
    """
    from kata_wire.pb.oci_pb2 import Spec

    return Spec.FromString(_encoded("grpc.Spec", "Spec", oci_config, raw))


def process_to_message(process: "dict[str, Any]", *, raw: bool = True) -> "Process":
    """The protobuf message of an OCI `process`, as spec_to_message."""
    from kata_wire.pb.oci_pb2 import Process

    return Process.FromString(_encoded("grpc.Process", "Process", process, raw))


def resources_to_message(resources: "dict[str, Any]", *, raw: bool = True) -> "LinuxResources":
    """The protobuf message of an OCI `linux.resources`, as spec_to_message."""
    from kata_wire.pb.oci_pb2 import LinuxResources

    return LinuxResources.FromString(_encoded("grpc.LinuxResources", "Resources", resources, raw))


def _encoded(message: str, name: str, oci: "dict[str, Any]", raw: bool) -> bytes:
    value = _from_oci(name, oci)
    if raw:
        import json

        value["raw_json"] = json.dumps(oci, separators=(",", ":")).encode()
    return table.encode(message, value)


def _from_oci(name: str, oci: "Any") -> "dict[str, Any]":
    if not isinstance(oci, dict):
        raise WireError(f"`{name.lower()}` must be an object, not `{type(oci).__name__}`")
    message: dict[str, Any] = {}
    for field, key, how, inner, _ in _TABLES[name]:
        item = oci.get(key)
        if item is None:
            if how is _ANY:
                message[field] = -1
        elif how is _OBJECT:
            message[field] = _from_oci(inner, item)
        elif how is _LIST:
            if not isinstance(item, list):
                raise WireError(f"`{key}` must be a list, not `{type(item).__name__}`")
            message[field] = [_from_oci(inner, element) for element in item]
        else:
            message[field] = item
    return message


def _to_oci(name: str, message: "dict[str, Any]") -> "dict[str, Any]":
    oci: dict[str, Any] = {}
    for field, key, how, inner, default in _TABLES[name]:
        item = message.get(field)
        if how is _OBJECT:
            if item is not None:
                oci[key] = _to_oci(inner, item)
        elif how is _LIST:
            if item:
                oci[key] = [_to_oci(inner, element) for element in item]
        elif how is _PRESENT:
            if item is not None:
                oci[key] = item
        elif how is _ANY:
            if item != -1:
                oci[key] = item or 0
        elif item:
            oci[key] = item
        elif how is _KEEP:
            oci[key] = [] if default == [] else default
    return oci
