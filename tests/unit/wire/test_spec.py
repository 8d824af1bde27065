# SPDX-License-Identifier: Apache-2.0
"""Goal: an OCI configuration comes through the agent's messages as far as they can carry it, and whole as raw JSON."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kata_wire import spec, table
from kata_wire.errors import WireError
from kata_wire.schema import MESSAGES

CONFIG: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {
        "terminal": True,
        "consoleSize": {"height": 25, "width": 80},
        "user": {"uid": 0, "gid": 0, "additionalGids": [10, 0]},
        "args": ["sh", "-c", "true"],
        "env": ["PATH=/bin", "EMPTY="],
        "cwd": "/",
        "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "ambient": ["CAP_KILL"]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 2**64 - 1, "soft": 0}],
        "noNewPrivileges": True,
        "oomScoreAdj": -500,
    },
    "root": {"path": "rootfs", "readonly": True},
    "hostname": "box",
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]}],
    "hooks": {"prestart": [{"path": "/h", "args": ["h"], "env": ["A=b"], "timeout": 3}]},
    "annotations": {"a": "b", "empty": ""},
    "linux": {
        "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}],
        "sysctl": {"net.ipv4.ip_forward": "1"},
        "resources": {
            "devices": [
                {"allow": False, "access": "rwm"},
                {"allow": True, "type": "c", "major": 1, "access": "r"},
                {"allow": True, "type": "c", "major": 0, "minor": 0, "access": "r"},
            ],
            "memory": {"limit": 1 << 28, "swap": -1, "disableOOMKiller": True},
            "cpu": {"shares": 512, "quota": -1, "period": 100000, "cpus": "0-1"},
            "pids": {"limit": 0},
            "blockIO": {"weight": 10, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 600}]},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "network": {"classID": 1, "priorities": [{"name": "eth0", "priority": 0}]},
        },
        "cgroupsPath": "/a/b",
        "namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/x"}],
        "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438}],
        "seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
                {
                    "names": ["clone"],
                    "action": "SCMP_ACT_ERRNO",
                    "errnoRet": 0,
                    "args": [{"index": 0, "value": 0, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"}],
                },
            ],
        },
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
        "intelRdt": {"l3CacheSchema": "L3:0=f"},
    },
}
BEYOND = {
    "process": {"args": ["x"], "cwd": "/", "user": {"uid": 1, "gid": 1, "umask": 63}},
    "hooks": {"createRuntime": [{"path": "/h"}]},
    "linux": {"resources": {"unified": {"memory.high": "1"}}, "timeOffsets": {"boottime": {"secs": 1}}},
}


def through(config: dict[str, Any]) -> dict[str, Any]:
    """To the library's message, over the wire, and back by the guest's codec."""
    data = spec.spec_to_message(config, raw=False).SerializeToString()
    return spec.message_to_spec(table.decode("grpc.Spec", data))


def test_a_configuration_comes_back_as_it_was():
    assert through(CONFIG) == CONFIG


def test_raw_json_carries_the_whole_text_of_what_the_message_cannot_hold():
    message = spec.spec_to_message(BEYOND)
    assert json.loads(message.raw_json) == BEYOND
    assert message.Process.raw_json == b""
    assert message.Process.User.UID == 1
    assert json.loads(spec.process_to_message(BEYOND["process"]).raw_json) == BEYOND["process"]
    assert json.loads(spec.resources_to_message(BEYOND["linux"]["resources"]).raw_json) == {
        "unified": {"memory.high": "1"}
    }


def test_process_and_resources_travel_alone():
    process = table.decode("grpc.Process", spec.process_to_message(CONFIG["process"]).SerializeToString())
    assert spec.message_to_process(process) == CONFIG["process"]
    resources = CONFIG["linux"]["resources"]
    decoded = table.decode("grpc.LinuxResources", spec.resources_to_message(resources).SerializeToString())
    assert spec.message_to_resources(decoded) == resources


def test_what_oci_requires_is_there_after_a_message_without_it():
    got = spec.message_to_spec({"Process": {"User": {}}, "Root": {}, "Mounts": [{}]})
    assert got == {
        "ociVersion": "",
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": ""},
        "root": {"path": ""},
        "mounts": [{"destination": ""}],
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"process": []}, "`process` must be an object, not `list`"),
        ({"mounts": {}}, "`mounts` must be a list, not `dict`"),
        ({"mounts": ["/x"]}, "`mount` must be an object, not `str`"),
        ({"hostname": 5}, "`grpc.Spec.Hostname`: must be a str, not `int`"),
        ({"process": {"oomScoreAdj": 1 << 70}}, "does not fit int64"),
    ],
)
def test_a_field_that_does_not_fit_is_named(config, message):
    with pytest.raises(WireError) as caught:
        spec.spec_to_message(config)
    assert message in str(caught.value)


def test_the_table_of_names_covers_every_field_of_the_messages():
    seen = set()

    def walk(name: str, message: str) -> None:
        seen.add(message)
        fields = {row[1]: row for row in MESSAGES[message] if row[1] not in ("raw_json", "Solaris", "Windows")}
        assert {row[0] for row in spec._TABLES[name]} == set(fields)
        for field, _, how, inner, _ in spec._TABLES[name]:
            assert (fields[field][2] == "message" and fields[field][3] != "map") == (how in ("object", "list"))
            assert (fields[field][3] == "optional") == (how == "present")
            if inner:
                walk(inner, fields[field][4])

    walk("Spec", "grpc.Spec")
    assert "grpc.LinuxSeccompArg" in seen


def objects(name: str, message: str) -> st.SearchStrategy[dict[str, Any]]:
    """OCI objects as the message can carry them: required fields there, the others not empty."""
    rows = {row[1]: row for row in MESSAGES[message]}
    required: dict[str, st.SearchStrategy[Any]] = {}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    for field, key, how, inner, _ in spec._TABLES[name]:
        _, _, kind, label, ref = rows[field]
        item: st.SearchStrategy[Any]
        if kind == "message" and label != "map":
            item = objects(inner, ref)
        elif kind == "message":
            item = st.dictionaries(text, text, min_size=1, max_size=2)
        elif kind in ("string", "bool"):
            item = text if kind == "string" else st.booleans()
        else:
            item = st.integers(*table._RANGES[kind])
        if how == "list" or label == "repeated":
            item = st.lists(item, min_size=0 if how == "keep" else 1, max_size=2)
        if how == "keep":
            required[key] = item
        else:
            empty = how == "drop"
            without = (lambda value: value != -1) if how == "any" else bool if empty else (lambda value: True)
            optional[key] = item.filter(without)
    return st.fixed_dictionaries(required, optional=optional)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(objects("Spec", "grpc.Spec"))
def test_any_configuration_within_the_message_comes_back(config):
    assert through(config) == config


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_any_decodable_bytes_become_a_configuration(data):
    try:
        decoded = table.decode("grpc.Spec", data)
    except WireError:
        return
    again = spec.spec_to_message(spec.message_to_spec(decoded))
    assert json.loads(again.raw_json)
