# SPDX-License-Identifier: Apache-2.0
"""Containers in the shared tree: everything appears in the served view, as writable as asked, and goes without a trace."""

import os
from pathlib import Path

import pytest

from kata_fsm import errors, limits
from kata_fsm.effects import cgroup, mounts, process, share, storage
from kata_fsm.effects.hypervisor.settings import HypervisorSettings
from kata_fsm.effects.placement import Placement
from kata_fsm.effects.protocols import Intent
from kata_fsm.oci.hosting import Limits
from tests.support import hung


@pytest.fixture
async def shared(place):
    """A prepared share, released afterwards."""
    settings = HypervisorSettings()
    await share.SharePrepare(place.paths, settings).perform(Intent("share.prepare", "", {}))
    yield Path(share.served(place.paths))
    await share.ShareRelease(place.paths, settings).perform(Intent("share.release", "", {}))


@pytest.fixture
def intent(place):
    for name in ("rootfs", "volume", "volume/sub", "extra"):
        (place.work / name).mkdir()
    (place.work / "rootfs/etc").write_text("root")
    (place.work / "volume/data").write_text("data")
    (place.work / "extra/deep").write_text("deep")
    (place.work / "one file").write_text("file")
    mount = {"recursive": True, "readonly": False, "options": []}
    params = {
        "container": "c1",
        "rootfs": str(place.work / "rootfs"),
        "mounts": [
            {**mount, "index": 0, "source": str(place.work / "volume")},
            {**mount, "index": 1, "source": str(place.work / "one file"), "readonly": True},
            {**mount, "index": 4, "source": str(place.work / "volume"), "readonly": True, "recursive": False},
        ],
        "cgroups_path": f"/{os.path.basename(place.top)}/c1",
    }
    return Intent("container.prepare", "c1", params)


async def test_prepare_shows_and_discard_removes_everything(place, shared, intent):
    before = place.mounts()
    prepare = storage.ContainerPrepare(place.paths)
    assert (await prepare.probe(intent)).done is False
    result = await prepare.perform(intent)
    assert (shared / "c1/rootfs/etc").read_text() == "root"
    assert (shared / "c1/m0/data").read_text() == "data"
    assert (shared / "c1/m1").read_text() == "file"
    (shared / "c1/m0/new").write_text("by the guest")
    for path in (shared / "c1/m1", shared / "c1/m4/new", shared / "c1/new", shared / "new"):
        with pytest.raises(OSError, match="Read-only file system"):
            path.write_text("x")
    seen = await prepare.probe(intent)
    assert seen.done is True
    assert {**seen.result, "limited": {}, "unheld": []} == result
    assert [entry["created"] for entry in result["cgroups"]] == [True] * len(result["cgroups"])
    assert all(os.path.isdir(entry["path"]) for entry in result["cgroups"])

    discard = storage.ContainerDiscard(place.paths)
    assert (await discard.probe(intent)).done is False
    await storage.ContainerUnstage(place.paths).perform(intent)
    assert list(shared.iterdir()) == []
    assert (await discard.probe(intent)).done is False  # the cgroups
    await discard.perform(intent)
    await discard.perform(intent)
    assert (await discard.probe(intent)).done is True
    assert not any(os.path.exists(os.path.dirname(entry["path"])) for entry in result["cgroups"])
    assert place.mounts() == before
    assert (place.work / "volume/new").read_text() == "by the guest"
    assert (place.work / "one file").read_text() == "file"


async def test_perform_again_after_half_of_it(place, shared, intent):
    prepare = storage.ContainerPrepare(place.paths)
    top = place.paths.container_tree("c1")
    os.makedirs(top + "/rootfs")
    mounts.bind(intent.params["rootfs"], top + "/rootfs")
    assert (await prepare.probe(intent)).done is False
    await prepare.perform(intent)
    assert len(mounts.below(top)) == 4
    await prepare.perform(intent)
    assert len(mounts.below(top)) == 4
    await prepare.undo(intent)
    await prepare.undo(intent)


@pytest.mark.parametrize(("missing", "what"), [("rootfs", "rootfs"), ("one file", "m1")])
async def test_a_missing_source_leaves_nothing(place, shared, intent, missing, what):
    os.rename(place.work / missing, place.work / "gone")
    before = place.mounts()
    wanted = f"^cannot bind `{place.work}/{missing}` on `{place.paths.shared}/c1/{what}`: No such file or directory$"
    with pytest.raises(errors.EffectError, match=wanted):
        await storage.ContainerPrepare(place.paths).perform(intent)
    assert place.mounts() == before
    assert not os.path.exists(place.paths.container_tree("c1"))
    path = intent.params["cgroups_path"]
    assert not any(os.path.exists(each.point + os.path.dirname(path)) for each in cgroup.hierarchies())


async def test_mounts_below_a_source_follow_only_when_asked(place, shared, intent):
    source = place.work / "volume"
    mounts.mount(str(source), str(source), mounts.MS_BIND)
    mounts.mount(None, str(source), mounts.MS_SHARED)
    intent.params["mounts"][2] |= {"options": ["rbind", "rslave"], "recursive": True}
    await storage.ContainerPrepare(place.paths).perform(intent)
    mounts.mount(f"{place.work}/extra", f"{source}/sub", mounts.MS_BIND)
    assert not (shared / "c1/m0/sub/deep").exists()
    assert (shared / "c1/m4/sub/deep").read_text() == "deep"
    # Nothing goes back: a mount made in our tree does not reach the source.
    mounts.unmount(f"{place.paths.shared}/c1/m4/sub")
    assert (source / "sub/deep").exists()
    await storage.ContainerDiscard(place.paths).perform(intent)
    assert (source / "sub/deep").read_text() == "deep"
    mounts.unmount_below(str(source))


async def test_release_takes_containers_along(place, shared, intent):
    await storage.ContainerPrepare(place.paths).perform(intent)
    mounts.bind(f"{place.work}/extra", f"{place.paths.shared}/c1/m0/sub")
    release = share.ShareRelease(place.paths, HypervisorSettings())
    with open(shared / "c1/rootfs/etc"):
        await release.perform(Intent("share.release", "", {}))
    assert not os.path.lexists(place.paths.shared)
    assert (place.work / "extra/deep").exists()
    assert (place.work / "volume/data").exists()
    await storage.ContainerDiscard(place.paths).perform(intent)


async def test_prepare_needs_the_tree(place, intent):
    with pytest.raises(errors.EffectError, match=r"the shared tree .* is not there"):
        await storage.ContainerPrepare(place.paths).perform(intent)


async def test_the_root_file_system_is_a_directory(place, shared, intent):
    intent.params["rootfs"] = str(place.work / "one file")
    with pytest.raises(errors.EffectError, match="is not a directory"):
        await storage.ContainerPrepare(place.paths).perform(intent)


async def test_stragglers_are_moved_out_of_the_cgroup(place, shared, intent):
    result = await storage.ContainerPrepare(place.paths).perform(intent)
    identity = process.spawn(["/bin/sleep", "63"], log_path=f"{place.work}/log")
    directories = [entry["path"] for entry in result["cgroups"]]
    refused = cgroup.attach(directories, identity.pid)
    assert len(refused) < len(directories)
    assert any(identity.pid in cgroup.pids(directory) for directory in directories)
    await storage.ContainerDiscard(place.paths).perform(intent)
    assert process.alive(identity)
    assert not any(os.path.exists(directory) for directory in directories)
    await process.kill_and_wait(identity)


async def test_a_source_whose_server_hangs_is_named_and_given_up(place, shared, intent, monkeypatch, all_back):
    """Nothing is mounted, neither then nor when the server's end lets go of whoever was left behind."""
    monkeypatch.setattr(limits, "HOST_CALL_S", 2.0)
    before = place.mounts()
    (place.work / "hung").mkdir()
    intent.params["mounts"].append({**intent.params["mounts"][0], "index": 5, "source": str(place.work / "hung")})
    prepare = storage.ContainerPrepare(place.paths)
    with hung.mounted(place.work / "hung"):
        with pytest.raises(errors.TimeoutExceeded, match=rf"did not end within 2 s: it hangs at `{place.work}/hung`"):
            await prepare.perform(intent)
        monkeypatch.setattr(limits, "HOST_CALL_S", 30.0)
        await prepare.undo(intent)
        assert (await prepare.probe(intent)).done is False
    await all_back()
    assert place.mounts() == before
    assert list(shared.iterdir()) == []


async def test_an_unstaging_is_done_when_the_pod_is_limited_without_the_container(place, intent):
    wanted = [Limits(shares=512)]
    config = {"id": "c1", "cgroups_path": f"/{os.path.basename(place.top)}/c1"}
    unstage = storage.ContainerUnstage(place.paths, Placement(place.paths.uid, config, lambda: wanted[0]))
    assert (await unstage.probe(intent)).done is False
    await unstage.perform(intent)
    assert (await unstage.probe(intent)).done is True
    wanted[0] = Limits(shares=1024)
    assert (await unstage.probe(intent)).done is False
