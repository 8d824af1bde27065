# SPDX-License-Identifier: Apache-2.0
"""Parts that need no running agent: JSON, the configuration's last changes, ids, the kernel's files."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.agent import bundle, cgroups, files, jsonc, ports, ps
from guest.agent.containers import needs_no_pivot
from guest.agent.errors import RpcError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_json_is_what_the_library_makes_of_it(value: Any) -> None:
    assert json.loads(jsonc.dumps(value)) == value
    assert jsonc.loads(json.dumps(value, indent=1).encode()) == value


@given(st.one_of(st.binary(max_size=30), st.text(alphabet='{}[],:"\\0123456789.eE+-truefalsn ', max_size=30)))
def test_what_is_no_json_raises_value_error_as_in_the_library(text: bytes | str) -> None:
    try:
        expected = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    except (ValueError, pytest.fail.Exception):
        with pytest.raises(ValueError, match=r"."):
            jsonc.loads(text)
    else:
        if (isinstance(text, bytes) and text[:2] in (b"\xff\xfe", b"\xfe\xff")) or text[1:2] == b"\0":
            return  # the library guesses UTF-16; we take UTF-8 alone
        assert jsonc.loads(text) == expected


def spec(**linux: Any) -> dict[str, Any]:
    return {"ociVersion": "1.2.0", "hostname": "h", "process": {"args": ["x"]}, "root": {"path": "/r"}, "linux": linux}


def test_the_machine_is_the_sandbox() -> None:
    asked = [
        {"type": "network", "path": "/run/netns/x"},
        {"type": "ipc", "path": "/proc/1/ns/ipc"},
        {"type": "uts"},
        {"type": "pid"},
        {"type": "mount"},
        {"type": "cgroup", "path": "/gone"},
    ]
    given_spec = spec(namespaces=asked, cgroupsPath="/host/path", intelRdt={"l3CacheSchema": "x"})
    bundle.adapt(given_spec, "c", None)
    assert given_spec["linux"] == {
        "namespaces": [{"type": "uts"}, {"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}],
        "cgroupsPath": "/kata/c",
    }
    assert given_spec["hostname"] == "h"
    assert "1.0" in given_spec["ociVersion"]


def test_without_a_uts_namespace_the_name_is_the_machine_s() -> None:
    shared = spec(namespaces=[{"type": "uts", "path": "/proc/1/ns/uts"}])
    shared["domainname"] = "d"
    assert bundle.adapt(shared, "c", None) == {"kernel.hostname": "h", "kernel.domainname": "d"}
    assert "hostname" not in shared
    assert "domainname" not in shared


def test_a_pid_namespace_is_its_own_begun_or_joined() -> None:
    for path, expected in (
        (None, {"type": "pid"}),
        ("", {"type": "pid"}),
        ("/proc/9/ns/pid", {"type": "pid", "path": "/proc/9/ns/pid"}),
    ):
        own = spec(namespaces=[{"type": "pid"}])
        bundle.adapt(own, "c", path)
        assert own["linux"]["namespaces"] == [expected]
    none = spec(namespaces=[])
    bundle.adapt(none, "c", "/proc/9/ns/pid")
    assert none["linux"]["namespaces"] == [{"type": "pid", "path": "/proc/9/ns/pid"}]


def test_settings_go_where_their_namespace_is() -> None:
    settings = {"net.ipv4.ip_forward": "1", "kernel.shmmax": "5", "kernel.hostname": "x", "fs.mqueue.msg_max": "9"}
    own = spec(namespaces=[{"type": "ipc"}, {"type": "uts"}], sysctl=dict(settings))
    assert bundle.adapt(own, "c", None) == {"net.ipv4.ip_forward": "1"}
    assert set(own["linux"]["sysctl"]) == {"kernel.shmmax", "kernel.hostname", "fs.mqueue.msg_max"}
    shared = spec(namespaces=[], sysctl=dict(settings))
    assert bundle.adapt(shared, "c", None) == settings  # a setting goes over the field of the same meaning


def test_a_setting_s_name_cannot_leave_its_directory(tmp_path: Path) -> None:
    (tmp_path / "sys/net").mkdir(parents=True)
    (tmp_path / "sys/net/a").touch()
    bundle.apply_settings({"net.a": "1"}, str(tmp_path))
    assert (tmp_path / "sys/net/a").read_text() == "1"
    with pytest.raises(RpcError, match="has the name"):
        bundle.apply_settings({"net/../../x": "1"}, str(tmp_path))


def test_labels_this_guest_does_not_know_are_left_out() -> None:
    process = {"args": ["x"], "apparmorProfile": "no-such-profile-here", "selinuxLabel": "system_u:x"}
    bundle.adapt_process(process)
    assert "apparmorProfile" not in process


def test_the_owner_of_the_pipes_is_who_the_process_is_outside() -> None:
    mapped = spec(uidMappings=[{"containerID": 0, "hostID": 100000, "size": 10}], gidMappings=[])
    assert bundle.owner(mapped, {"user": {"uid": 3, "gid": 4}}) == (100003, 4)
    assert bundle.owner(mapped, {"user": {"uid": 11}}) == (11, 0)
    assert bundle.owner({}, {}) == (0, 0)


def test_the_initramfs_is_its_own_parent(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    table = tmp_path / "self/mountinfo"
    table.write_text("1 1 0:2 / / rw - rootfs rootfs rw\n20 1 0:5 / /proc rw - proc proc rw\n")
    assert needs_no_pivot(str(tmp_path))
    table.write_text("1 1 0:2 / / rw - rootfs rootfs rw\n25 1 0:2 / / rw - rootfs rootfs rw\n")
    assert not needs_no_pivot(str(tmp_path))


def test_flat_keyed_files() -> None:
    assert cgroups.keyed("a 1\nb x\n\nc 3") == {"a": 1, "c": 3}
    assert (cgroups.number("max\n"), cgroups.number("7\n"), cgroups.number("")) == (0, 7, 0)


def test_the_last_parameter_counts() -> None:
    line = "quiet agent.transport=serial x agent.transport=vsock agent.transport"
    assert ports.parameter(line, "agent.transport", "serial") == "vsock"
    assert ports.parameter("", "agent.transport", "serial") == "serial"


def test_a_port_is_found_by_its_name(tmp_path: Path) -> None:
    assert ports.find_serial(str(tmp_path), "agent.0") is None
    for node, name in (("vport1p1", "other"), ("vport1p2", "agent.0")):
        directory = tmp_path / "class/virtio-ports" / node
        directory.mkdir(parents=True)
        (directory / "name").write_text(name + "\n")
    assert ports.find_serial(str(tmp_path), "agent.0") == "vport1p2"


def test_a_tree_is_removed_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/keep").touch()
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/link").symlink_to(tmp_path / "outside")
    files.remove_tree(str(tmp_path / "tree"))
    files.remove_tree(str(tmp_path / "tree"))
    assert (tmp_path / "outside/keep").exists()
    assert not (tmp_path / "tree").exists()


def test_ps_options() -> None:
    assert ps.run(["-e", "-f"], [], "/proc")[0] == 0
    assert ps.run(["aux"], [], "/proc")[1].split()[0] == "USER"
    assert ps.run(["-opid=X,args"], [], "/proc")[1].split() == ["X", "COMMAND"]
    assert ps.run(["--forest"], [], "/proc")[0] == 1
