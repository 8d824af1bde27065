# SPDX-License-Identifier: Apache-2.0
"""Cgroup paths and ownership, on whatever hierarchies this host has."""

import os
import threading

import pytest

from kata_fsm import errors, limits
from kata_fsm.effects import cgroup, mounts


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("", "/kata-fsm/0123456789ab/c1"),
        ("/docker/abc", "/docker/abc"),
        ("relative/x", "/kata-fsm/relative/x"),
        ("//a/./b/", "/a/b"),
        ("system.slice:docker:abc", "/system.slice/docker-abc.scope"),
        (":docker:abc", "/system.slice/docker-abc.scope"),
        ("machine-a-b.slice:libpod:x", "/machine.slice/machine-a.slice/machine-a-b.slice/libpod-x.scope"),
        ("user.slice::x", "/user.slice/x.scope"),
        ("-.slice:p:x", "/p-x.scope"),
    ],
)
def test_what_a_cgroups_path_means(given, path):
    assert cgroup.resolve(given, "c1", "0123456789ab") == path


@pytest.mark.parametrize("given", ["/../x", "/a/../../b", "/", "bad:docker:abc"])
def test_paths_that_are_refused(given):
    with pytest.raises(errors.EffectError, match="cgroups path"):
        cgroup.resolve(given, "c1", "0123456789ab")


def test_hierarchies_of_a_hybrid_host():
    text = (
        "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
        "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
        "42 31 0:29 / /elsewhere rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    )
    found = cgroup.hierarchies(list(mounts.parse_mountinfo(text)))
    assert [(each.name, each.point, each.unified) for each in found] == [
        ("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct", False),
        ("name=systemd", "/sys/fs/cgroup/systemd", False),
        ("unified", "/sys/fs/cgroup/unified", True),
    ]


async def test_only_what_we_made_is_removed(place):
    parent = f"/{os.path.basename(place.top)}"
    foreign = [each.point + parent for each in cgroup.hierarchies()]
    for directory in foreign:
        os.mkdir(directory)
    first = cgroup.create(parent + "/a", "uid1")
    again = cgroup.create(parent + "/a", "uid1")
    assert again == first
    assert all(entry["created"] for entry in first["cgroups"])
    other = cgroup.create(parent + "/a", "uid2")
    assert not any(entry["created"] for entry in other["cgroups"])
    assert (await cgroup.remove(parent + "/a", "uid2"))["removed"] == []
    removed = await cgroup.remove(parent + "/a", "uid1")
    assert removed == {"removed": [entry["path"] for entry in first["cgroups"]], "foreign": []}
    assert (await cgroup.remove(parent + "/a", "uid1")) == {"removed": [], "foreign": []}
    for directory in foreign:
        os.rmdir(directory)  # still there: it is not ours


async def test_a_shared_parent_goes_with_its_last_child(place):
    parent = f"/{os.path.basename(place.top)}"
    for name in ("a", "b"):
        cgroup.create(f"{parent}/{name}", name)
    points = [each.point for each in cgroup.hierarchies()]
    await cgroup.remove(parent + "/a", "a")
    assert all(os.path.isdir(point + parent) for point in points)
    await cgroup.remove(parent + "/b", "b")
    assert not any(os.path.exists(point + parent) for point in points)


@pytest.mark.parametrize(
    ("given", "scope"),
    [
        ("a-b.slice:kf:box", ("a-b.slice", "kf-box.scope")),
        (":kf:box", ("system.slice", "kf-box.scope")),
        ("a.slice::box", ("a.slice", "box.scope")),
        ("a.slice::b.slice", None),
        ("/a/b:c:d", None),
        ("", None),
    ],
)
def test_the_scope_that_systemd_is_asked_for(given: str, scope: tuple[str, str] | None) -> None:
    assert cgroup.scope_of(given) == scope
    if scope:
        assert cgroup.resolve(given, "box", "u").endswith("/" + "/".join([scope[0], scope[1]]))


async def test_a_cgroup_that_does_not_answer_is_named_and_what_is_made_late_is_removed(place, monkeypatch, all_back):
    go_on, real, path = threading.Event(), os.mkdir, f"/kata-fsm-test-{os.getpid()}/late"

    def slow(directory, *how):
        go_on.wait()
        real(directory, *how)

    monkeypatch.setattr(limits, "HOST_CALL_S", 0.3)
    monkeypatch.setattr(cgroup.os, "mkdir", slow)
    with pytest.raises(errors.TimeoutExceeded, match=rf"making cgroup `{path}` did not end within 0.3 s") as told:
        await cgroup.created(path, place.paths.uid)
    assert told.value.phase == "cgroup"
    go_on.set()
    await all_back()
    assert not cgroup.find(path, place.paths.uid)
    assert not cgroup.find(os.path.dirname(path), place.paths.uid)


async def test_a_cgroup_that_cannot_be_removed_for_a_kernel_that_hangs_is_named(place, monkeypatch):
    path, go_on = f"/kata-fsm-test-{os.getpid()}/stays", threading.Event()
    await cgroup.created(path, place.paths.uid)
    with monkeypatch.context() as hanging:
        hanging.setattr(limits, "HOST_CALL_S", 0.3)
        hanging.setattr(cgroup, "_rmdirs", lambda directory: go_on.wait())
        with pytest.raises(errors.TimeoutExceeded, match=rf"removing cgroup `.*{path}` did not end within 0.3 s"):
            await cgroup.remove(path, place.paths.uid)
        go_on.set()
    assert not (await cgroup.remove(path, place.paths.uid))["foreign"]
    assert not cgroup.find(path, place.paths.uid)
