# SPDX-License-Identifier: Apache-2.0
"""The guest's view of a specification."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kata_fsm import limits
from kata_fsm.errors import SpecError, WorldError
from kata_fsm.oci import check, guest
from kata_fsm.oci.example import example
from kata_fsm.oci.guest import GUEST_SHM, SHARE, Adapted, Source, adapt
from kata_fsm.oci.sandbox import CONTAINER, SINGLE
from kata_fsm.oci.spec import Loaded, Spec
from tests.support import hung

HOST = {
    "/data": Source("dir", 1 << 30),
    "/etc/hosts": Source("file"),
    "/pods/shm": Source("dir", 67108864),
    "/dev/null": Source("device"),
    "/dev/sda": Source("device"),
    "/sys/fs": Source("dir"),
    "/run/x.sock": Source("socket"),
    "/bundle/here": Source("dir"),
}


def adapted(document: dict[str, Any], kind: str = SINGLE) -> Adapted:
    loaded = Loaded(msgspec.convert(document, Spec), document, "/bundle", "/bundle/rootfs")
    return adapt(loaded, key="key", kind=kind, look=lambda path: HOST.get(path, Source("missing")))


def with_mounts(*mounts: dict[str, Any]) -> dict[str, Any]:
    document = example()
    document["mounts"] += mounts
    return document


def bind(destination: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": source, "options": list(options)}


def guest_mount(found: Adapted, destination: str) -> dict[str, Any]:
    (mount,) = [mount for mount in found.guest_spec["mounts"] if mount["destination"] == destination]
    return dict(mount)


def test_the_document_given_is_not_changed() -> None:
    document = with_mounts(bind("/data", "/data"))
    before = copy.deepcopy(document)
    adapted(document)
    assert document == before


def test_root_namespaces_and_cgroup() -> None:
    document = example()
    document["linux"]["namespaces"][0]["path"] = "/proc/77/ns/pid"
    document["linux"]["cgroupsPath"] = "/libpod/x"
    document["hooks"] = {"prestart": []}
    found = adapted(document, CONTAINER)
    spec = found.guest_spec
    assert spec["root"] == {"path": f"{SHARE}/key/rootfs", "readonly": True}
    assert spec["linux"]["namespaces"] == [{"type": name} for name in ("pid", "ipc", "uts", "mount", "cgroup")]
    assert spec["linux"]["cgroupsPath"] == "/kata-fsm/key"
    assert "hooks" not in spec
    assert found.cgroups_path == "/libpod/x"
    assert found.sandbox_pidns
    assert spec["process"] == document["process"]


def test_kernel_file_systems_stay_in_the_guest() -> None:
    found = adapted(example())
    assert found.guest_spec["mounts"] == example()["mounts"]
    assert (found.binds, found.warnings, found.sandbox_pidns) == ([], [], False)


def test_binds_go_through_the_share() -> None:
    found = adapted(
        with_mounts(
            bind("/data", "/data", "rbind", "rw", "rslave"),
            bind("/etc/hosts", "/etc/hosts", "bind", "ro"),
            {"destination": "/here", "source": "here", "options": ["rbind", "ro", "rw"]},
        )
    )
    assert [(each.index, each.source, each.kind, each.readonly, each.recursive) for each in found.binds] == [
        (0, "/data", "dir", False, True),
        (1, "/etc/hosts", "file", True, False),
        (2, "/bundle/here", "dir", False, True),
    ]
    assert found.binds[0].options == ["rbind", "rw", "rslave"]
    assert guest_mount(found, "/data") == bind("/data", f"{SHARE}/key/m0", "rbind", "rw")
    assert guest_mount(found, "/etc/hosts") == bind("/etc/hosts", f"{SHARE}/key/m1", "bind", "ro")
    assert guest_mount(found, "/here")["source"] == f"{SHARE}/key/m2"


@pytest.mark.parametrize("kind", ["bind", "rbind"])
def test_a_bind_that_only_its_type_tells_of_is_one_for_the_guest(kind: str) -> None:
    """The guest's crun would take it for a file system of that name."""
    found = adapted(with_mounts({"destination": "/data", "source": "/data", "type": kind, "options": ["ro"]}))
    assert guest_mount(found, "/data") == bind("/data", f"{SHARE}/key/m0", kind, "ro")
    assert found.binds[0].recursive == (kind == "rbind")


def test_of_two_mounts_on_one_place_the_last_counts() -> None:
    found = adapted(with_mounts(bind("/dev/shm/", "/pods/shm", "rbind")))
    assert guest_mount(found, "/dev/shm") == bind("/dev/shm", GUEST_SHM, "rbind")
    assert found.shm_size == 67108864
    assert found.binds == []


def test_what_every_kernel_has_is_the_guests_own() -> None:
    found = adapted(with_mounts(bind("/proc/kcore", "/dev/null"), bind("/hostsys", "/sys/fs")))
    assert guest_mount(found, "/proc/kcore")["source"] == "/dev/null"
    assert guest_mount(found, "/hostsys")["source"] == "/sys/fs"
    assert ["`/sys/fs` will be the guest's own" in warning for warning in found.warnings] == [True]


def test_a_socket_is_bound_with_a_warning() -> None:
    found = adapted(with_mounts(bind("/x.sock", "/run/x.sock")))
    assert found.binds[0].kind == "file"
    assert "nobody in the guest can connect" in found.warnings[0]


@pytest.mark.parametrize(
    ("source", "words"),
    [("/none", "`mounts[7].source`: `/none` does not exist"), ("/dev/sda", "host device `/dev/sda` cannot be given")],
)
def test_impossible_sources_are_refused(source: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        adapted(with_mounts(bind("/x", source)))
    assert words in str(caught.value)


def test_resources_that_the_guest_cannot_apply_are_named() -> None:
    document = example()
    document["linux"]["resources"] = {
        "cpu": {"shares": 0, "quota": 5000, "cpus": "0-1"},
        "memory": {"limit": 1 << 26, "disableOOMKiller": False, "swap": None},
        "blockIO": {"weight": 500, "weightDevice": [{"major": 8, "minor": 0, "weight": 5}]},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
        "pids": {"limit": 100},
    }
    document["process"]["apparmorProfile"] = "docker-default"
    found = adapted(document)
    assert found.guest_spec["linux"]["resources"] == {
        "cpu": {"quota": 5000},
        "memory": {"limit": 1 << 26},
        "pids": {"limit": 100},
    }
    assert "apparmorProfile" not in found.guest_spec["process"]
    named = [warning.split("`")[1] for warning in found.warnings]
    assert sorted(named) == [
        "linux.resources.blockIO.weightDevice",
        "linux.resources.hugepageLimits",
        "process.apparmorProfile",
    ]


def test_network_namespace() -> None:
    document = example()
    assert adapted(document).netns is None
    document["linux"]["namespaces"][1]["path"] = "/run/netns/x"
    assert adapted(document).netns == "/run/netns/x"
    assert adapted(document, CONTAINER).netns is None
    del document["linux"]["namespaces"][1]
    with pytest.raises(SpecError, match="Host networking requested"):
        adapted(document)


def test_a_source_that_never_answers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HOST_CALL_S", 0.2)
    source = tmp_path / "dead"
    source.mkdir()
    with hung.mounted(source):
        for look in (guest.look_at_host, check._check_rootfs):
            with pytest.raises(WorldError, match=f"`{source}` did not answer within 0.2 s") as told:
                look(str(source))
            assert "server" in (told.value.hint or "")
    assert guest.look_at_host(str(source)).kind == "dir"
