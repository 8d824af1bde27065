# SPDX-License-Identifier: Apache-2.0
"""The share for real: virtiofsd, the device in a running QEMU, and binds that reach virtiofsd's own namespace."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from kata_fsm import errors
from kata_fsm.effects import mounts, process, share, storage
from kata_fsm.effects.hypervisor import hotplug
from kata_fsm.effects.hypervisor.handler import HypervisorLaunch, HypervisorStop
from kata_fsm.effects.hypervisor.qmp import Monitor
from kata_fsm.effects.hypervisor.settings import HypervisorSettings
from kata_fsm.effects.process import Identity
from kata_fsm.effects.protocols import Intent

NOTHING = Intent("share.prepare", "", {})


def handlers(place, settings=None):
    settings = settings or HypervisorSettings()
    return share.SharePrepare(place.paths, settings), share.ShareRelease(place.paths, settings)


async def test_prepare_probe_release(place):
    before = place.mounts()
    prepare, release = handlers(place)
    assert (await prepare.probe(NOTHING)).done is False
    result = await prepare.perform(NOTHING)
    identity = Identity.from_dict(result)
    assert process.alive(identity)
    assert int(Path(place.paths.virtiofsd_pid).read_text()) == identity.pid
    assert os.stat(result["socket"]).st_mode & 0o777 == 0o600
    assert (await prepare.probe(NOTHING)).result == result
    assert (await release.probe(NOTHING)).done is False
    again = await prepare.perform(NOTHING)  # after a crash before the outcome: one daemon, one set of mounts
    assert not process.alive(identity)
    assert process.alive(Identity.from_dict(again))
    assert len(place.mounts()) == len(before) + 3
    await release.perform(NOTHING)
    await release.perform(NOTHING)
    assert (await release.probe(NOTHING)).done is True
    assert place.mounts() == before


async def test_a_dead_virtiofsd_is_reported_and_released(place):
    prepare, release = handlers(place)
    identity = Identity.from_dict(await prepare.perform(NOTHING))
    async with trio.open_nursery() as nursery:

        async def kill() -> None:
            process.kill(identity, signal.SIGSEGV)

        nursery.start_soon(kill)
        evidence = await prepare.watch(identity)
    assert evidence["cause"] == "virtiofsd_lost"
    assert evidence["message"].startswith("virtiofsd was killed by SIGSEGV")
    assert (await prepare.probe(NOTHING)).done is False
    await release.perform(NOTHING)


async def test_a_virtiofsd_that_cannot_start_leaves_nothing(place):
    prepare, release = handlers(place, HypervisorSettings(virtiofsd="/no/virtiofsd"))
    with pytest.raises(errors.EffectError, match="cannot start `/no/virtiofsd`"):
        await prepare.perform(NOTHING)
    assert (await release.probe(NOTHING)).done is True


def test_limits_are_left_alone_without_the_capability(place):
    settings = HypervisorSettings()
    assert "--rlimit-nofile=0" in share.argv(settings, place.paths, 7, may_raise_limits=False)
    assert "--rlimit-nofile=0" not in share.argv(settings, place.paths, 7, may_raise_limits=True)


def test_cache_and_further_arguments(place):
    settings = HypervisorSettings(virtiofsd_cache="always", virtiofsd_arguments=("--thread-pool-size=4",))
    line = share.argv(settings, place.paths, 7, may_raise_limits=True)
    assert ",cache=always," in line[line.index("-o", line.index("-o") + 1) + 1]
    assert line[-1] == "--thread-pool-size=4"


@pytest.mark.parametrize("sandbox", ["namespace", "chroot"])
async def test_plugged_into_qemu_and_later_binds_reach_virtiofsd(place, tiny, sandbox, until):
    settings = tiny(virtiofsd_sandbox=sandbox)
    prepare, release = handlers(place, settings)
    monitor = Monitor(place.paths.qmp_sock)
    await HypervisorLaunch(place.paths, settings, monitor).perform(Intent("hypervisor.launch", "", {"sandbox": "box"}))
    await prepare.perform(NOTHING)
    plug = share.SharePlug(place.paths, settings, monitor)
    assert (await plug.probe(NOTHING)).done is False
    assert (await plug.perform(NOTHING))["plugged"] is True
    assert (await plug.perform(NOTHING))["plugged"] is False
    assert (await plug.probe(NOTHING)).done is True
    daemons = process.find_by_argv(share.source_option(place.paths))
    # In its namespace sandbox virtiofsd is two processes, with mounts of their own.
    assert len(daemons) == (2 if sandbox == "namespace" else 1)
    server = daemons[-1].pid
    (place.work / "rootfs").mkdir()
    (place.work / "rootfs/hello").write_text("later")
    intent = Intent("container.prepare", "c1", {"container": "c1", "rootfs": f"{place.work}/rootfs", "mounts": []})
    await storage.ContainerPrepare(place.paths).perform(intent)
    inside = Path(f"/proc/{server}/root/c1/rootfs/hello")
    if sandbox == "namespace":
        assert os.stat(f"/proc/{server}/ns/mnt").st_ino != os.stat("/proc/self/ns/mnt").st_ino
    mine = [mount for mount in mounts.table(server) if mount.point.endswith("/c1/rootfs")]
    assert mine, inside
    with pytest.raises(OSError, match="Read-only file system"):
        Path(share.served(place.paths), "c2").mkdir()
    await storage.ContainerDiscard(place.paths).perform(intent)
    assert not [mount for mount in mounts.table(server) if mount.point.endswith("/c1/rootfs")]
    await HypervisorStop(place.paths, settings, monitor).perform(Intent("hypervisor.stop", "", {}))
    await release.perform(NOTHING)
    assert process.find_by_argv(share.source_option(place.paths)) == []
    await monitor.aclose()


async def test_plugging_without_virtiofsd_fails_and_can_be_repeated(place, tiny):
    settings = tiny()
    monitor = Monitor(place.paths.qmp_sock)
    await HypervisorLaunch(place.paths, settings, monitor).perform(Intent("hypervisor.launch", "", {"sandbox": "box"}))
    plug = share.SharePlug(place.paths, settings, monitor)
    for _ in range(2):
        with pytest.raises(errors.EffectError, match=r"QEMU refused `chardev-add`: .*virtiofsd.sock"):
            await plug.perform(NOTHING)
    assert await plug.undo(NOTHING) == {"unplugged": False}
    assert not await hotplug.has_device(monitor, hotplug.SHARE_DEVICE)
    await HypervisorStop(place.paths, settings, monitor).perform(Intent("hypervisor.stop", "", {}))
    await monitor.aclose()


async def test_plugging_a_virtiofsd_that_is_stopped_has_a_limit_and_says_why(place, tiny):
    """QEMU waits for it in its main loop, and answers nobody meanwhile."""
    settings = tiny()
    prepare, release = handlers(place, settings)
    monitor = Monitor(place.paths.qmp_sock)
    await HypervisorLaunch(place.paths, settings, monitor).perform(Intent("hypervisor.launch", "", {"sandbox": "box"}))
    identity = process.Identity.from_dict(await prepare.perform(NOTHING))
    process.kill(identity, signal.SIGSTOP)
    with pytest.raises(errors.TimeoutExceeded) as told:
        await share.SharePlug(place.paths, settings, monitor).perform(NOTHING)
    assert told.value.message.startswith("QEMU did not answer `device_add` within")
    assert told.value.message.endswith(f"virtiofsd (pid {identity.pid}) is stopped")
    assert told.value.phase == "qmp"
    await HypervisorStop(place.paths, settings, monitor).perform(Intent("hypervisor.stop", "", {}))
    await release.perform(NOTHING)
    await monitor.aclose()


CHILD = """
import os, sys, trio
from kata_fsm.effects import mounts, share, storage
from kata_fsm.effects.hypervisor.settings import HypervisorSettings
from kata_fsm.effects.protocols import Intent
from kata_fsm.world import Paths

def names(table):
    return {(mount.point, mount.root, mount.options) for mount in table}

mounts.unshare(mounts.CLONE_NEWNS)
mounts.mount(None, "/", mounts.MS_PRIVATE | 16384)         # nothing comes from the host, nor goes there
mounts.mount(None, "/", mounts.MS_SHARED | 16384)          # what systemd does
other = os.fork()
if other == 0:                                             # somebody who receives what the host mounts
    mounts.unshare(mounts.CLONE_NEWNS)
    mounts.mount(None, "/", mounts.MS_SLAVE | 16384)
    os.kill(os.getpid(), 19)
    os._exit(0)
os.waitpid(other, os.WUNTRACED)
paths, settings, work = Paths("0123456789ab"), HypervisorSettings(), sys.argv[1]
params = {"container": "c1", "rootfs": work + "/rootfs", "mounts": [
    {"index": 0, "source": work + "/rootfs", "readonly": True, "recursive": True, "options": ["rslave"]}]}
before, before_other = names(mounts.table()), names(mounts.table(other))

async def main():
    await share.SharePrepare(paths, settings).perform(Intent("", "", {}))
    await storage.ContainerPrepare(paths).perform(Intent("", "c1", params))
    assert os.path.exists(share.served(paths) + "/c1/m0/hello")
    leaked = [mount.point for mount in mounts.table(other) if mount.point.startswith(paths.base) and "/c1/" in mount.point]
    assert not leaked, leaked
    await storage.ContainerDiscard(paths).perform(Intent("", "c1", params))
    await share.ShareRelease(paths, settings).perform(Intent("", "", {}))

try:
    trio.run(main)
    # Mounts of others may have gone: with a directory that somebody removes goes what is mounted on it anywhere.
    assert names(mounts.table()) <= before
    assert names(mounts.table(other)) <= before_other
finally:
    os.kill(other, 9)
    os.waitpid(other, 0)
print("clean")
"""


def test_nothing_leaks_on_a_host_whose_root_is_shared(place):
    (place.work / "rootfs").mkdir()
    (place.work / "rootfs/hello").write_text("x")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(place.work)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert (done.stdout, done.stderr) == ("clean\n", "")
