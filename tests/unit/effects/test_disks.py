# SPDX-License-Identifier: Apache-2.0
"""Goal: whatever was half done with a disk, doing it again gives the machine each disk once, and lets go of all of it.

QEMU is real, and so are the devices. There is no guest in it that would let go of a device, which is a case of its own.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pytest
import trio

from kata_fsm import errors, limits
from kata_fsm.effects import disks
from kata_fsm.effects.disks import Disks, Plugging, Unplugging
from kata_fsm.effects.hypervisor import disk
from kata_fsm.effects.hypervisor.handler import HypervisorLaunch, HypervisorStop
from kata_fsm.effects.hypervisor.qmp import Monitor
from kata_fsm.effects.hypervisor.settings import HypervisorSettings
from kata_fsm.effects.protocols import Intent, Observed
from kata_fsm.oci.devices import Wanted
from tests.support.loops import Loop, loop

LAUNCH = Intent("hypervisor.launch", "", {"sandbox": "box"})
STOP = Intent("hypervisor.stop", "", {})


@pytest.fixture
def device(place: Any) -> Iterator[Loop]:
    with loop(place.work) as made:
        yield made


@pytest.fixture
async def monitor(place: Any, tiny: Callable[..., HypervisorSettings]) -> AsyncIterator[Monitor]:
    """Of a QEMU that runs."""
    monitor = Monitor(place.paths.qmp_sock)
    await HypervisorLaunch(place.paths, tiny(), monitor).perform(LAUNCH)
    yield monitor
    await HypervisorStop(place.paths, tiny(), monitor).perform(STOP)
    await monitor.aclose()


def wanted(device: Loop, *, readonly: bool = False) -> Wanted:
    return Wanted(device.major, device.minor, readonly)


async def attached(monitor: Monitor) -> list[tuple[str, bool]]:
    """(node, whether it only reads) of every disk that QEMU has."""
    found = await monitor.command("query-block")
    return sorted((each["inserted"]["node-name"], each["inserted"]["ro"]) for each in found if "inserted" in each)


async def fdsets(monitor: Monitor) -> list[Any]:
    return list(await monitor.command("query-fdsets"))


async def test_it_is_plugged_once_however_often_it_is_asked_for(place: Any, monitor: Monitor, device: Loop) -> None:
    made = Disks(place.paths, HypervisorSettings(), monitor)
    both = [wanted(device), wanted(device, readonly=True)]
    first = await made.plug(both)
    assert await Disks(place.paths, HypervisorSettings(), monitor).plug(both) == first
    name = f"{device.major}.{device.minor}"
    assert first == [
        {"device": f"disk3-{name}", "serial": name, "node": device.node},
        {"device": f"disk2-{name}r", "serial": f"{name}r", "node": device.node},
    ]
    assert await attached(monitor) == [(f"blk-{name}", False), (f"blk-{name}r", True)]
    assert os.getpid() not in device.holders()
    assert [each["fds"] for each in await fdsets(monitor)] == [[], []]  # the back ends have copies


async def test_what_somebody_left_half_way_is_finished_or_taken_away(
    place: Any, monitor: Monitor, device: Loop
) -> None:
    asked, settings = wanted(device), HypervisorSettings()
    opened, _ = disks.open_host(asked, place.paths.base)
    await disk._add_backend(monitor, asked.serial, opened, settings)
    await monitor.add_fd(f"blk-{asked.serial}", opened.fd)
    os.close(opened.fd)
    made = Disks(place.paths, settings, monitor)
    assert await made.left([asked])
    await monitor.command("object-add", {"qom-type": "throttle-group", "id": f"leaving-{asked.serial}"})
    assert await made.unplug([asked]) == [asked.serial]
    assert not [each for each in await disk._listed(monitor, "/objects") if each.startswith("leaving")]
    assert not await made.left([asked])
    assert await made.unplug([asked]) == []
    assert device.holders() == []
    opened, _ = disks.open_host(asked, place.paths.base)
    await disk._add_backend(monitor, asked.serial, opened, settings)
    os.close(opened.fd)
    await made.plug([asked])
    assert len(await attached(monitor)) == 1


async def test_a_descriptor_that_its_giver_did_not_take_back_is_closed(
    place: Any, monitor: Monitor, device: Loop
) -> None:
    """QEMU keeps it when its giver hangs up, as the back end has a copy."""
    asked, made = wanted(device), Disks(place.paths, HypervisorSettings(), monitor)
    await made.plug([asked])
    opened, _ = disks.open_host(asked, place.paths.base)
    fdset = await monitor.add_fd(f"blk-{asked.serial}", opened.fd)
    os.close(opened.fd)
    assert fdset in await disk._fdsets(monitor, asked.serial)
    with pytest.raises(errors.TimeoutExceeded):  # there is no guest
        await disk.unplug(monitor, asked.serial, limit_s=0.1)
    assert await disk._forget(monitor, asked.serial)
    assert await disk._fdsets(monitor, asked.serial) == []


async def test_the_last_container_gives_it_back_and_a_guest_that_does_not_is_told(
    place: Any, monitor: Monitor, device: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = wanted(device)
    others = {asked}
    made = Disks(place.paths, HypervisorSettings(), monitor, lambda: frozenset(others))
    (plugged,) = await made.plug([asked])
    assert await made.unplug([asked]) == []
    assert not await made.left([asked])
    others.clear()
    assert await made.left([asked])

    async def unplug(monitor: Monitor, name: str) -> bool:
        return await real(monitor, name, limit_s=0.2)

    real = disk.unplug
    monkeypatch.setattr(disk, "unplug", unplug)
    with pytest.raises(errors.TimeoutExceeded, match=f"the guest did not let `{plugged['device']}` go"):
        await made.unplug([asked])
    with pytest.raises(errors.TimeoutExceeded):  # nor does whoever comes after us take it for one that stays
        await Disks(place.paths, HypervisorSettings(), monitor).plug([asked])
    await monitor.command("quit")
    with trio.fail_after(limits.UNPLUG_S):
        while made._machine_runs():
            await trio.sleep(0.01)
    assert await made.unplug([asked]) == []
    assert not await made.left([asked])
    assert device.holders() == []


async def test_no_bus_is_left(place: Any, monitor: Monitor, device: Loop) -> None:
    made = Disks(place.paths, HypervisorSettings(root_ports=1), monitor)
    with pytest.raises(
        errors.EffectError, match=f"{device.major}:{device.minor}: the machine has no bus left"
    ) as caught:
        await made.plug([wanted(device)])
    assert "pcie_root_port" in str(caught.value.hint)
    assert await attached(monitor) == []


@pytest.mark.parametrize("aio", ["threads", "native", "io_uring"])
async def test_caches_as_configured(place: Any, monitor: Monitor, device: Loop, aio: Any) -> None:
    settings = HypervisorSettings(disk_aio=aio, disk_noflush=True)
    await Disks(place.paths, settings, monitor).plug([wanted(device)])
    (found,) = [each["inserted"] for each in await monitor.command("query-block") if "inserted" in each]
    assert found["cache"] == {"writeback": True, "direct": aio == "native", "no-flush": True}


async def test_a_device_that_the_host_only_reads(place: Any, monitor: Monitor) -> None:
    with loop(place.work, options=("--read-only",)) as device:
        await Disks(place.paths, HypervisorSettings(), monitor).plug([wanted(device)])
        assert [readonly for _, readonly in await attached(monitor)] == [True]
        await monitor.command("quit")


async def test_a_device_that_is_not_there_is_named(place: Any) -> None:
    made = Disks(place.paths, HypervisorSettings(), Monitor("/nowhere"))
    with pytest.raises(errors.EffectError, match="block device 4095:7: the host has no such block device"):
        await made.plug([Wanted(4095, 7, False)])


def test_a_device_without_a_node_of_its_own(place: Any, device: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, whose /dev has few of the host's."""
    monkeypatch.setattr(disks, "_is", lambda path, number: False)
    opened, _ = disks.open_host(wanted(device), str(place.work))
    status = os.fstat(opened.fd)
    os.close(opened.fd)
    assert (stat.S_ISBLK(status.st_mode), status.st_rdev) == (True, os.makedev(device.major, device.minor))
    assert [name for name in os.listdir(place.work) if name.endswith(".disk") and name != device.file.name] == []


def test_the_sectors_are_the_hosts(place: Any) -> None:
    with loop(place.work, options=("--sector-size", "4096")) as device:
        opened, _ = disks.open_host(wanted(device, readonly=True), str(place.work))
        os.close(opened.fd)
    assert (opened.readonly, opened.logical) == (True, 4096)


class Inner:
    """A handler that only says that it was called."""

    def __init__(self, done: bool = True) -> None:
        self.done = done

    async def perform(self, intent: Intent) -> dict[str, Any]:
        return {"inner": True}

    async def probe(self, intent: Intent) -> Observed:
        return Observed(self.done)

    async def undo(self, intent: Intent) -> dict[str, Any]:
        return {}


async def test_the_effects_have_their_disks(place: Any, monitor: Monitor, device: Loop) -> None:
    made = Disks(place.paths, HypervisorSettings(), monitor, lambda: frozenset())
    params = {"disks": [{"major": device.major, "minor": device.minor, "readonly": False, "path": "/dev/xvda"}]}
    plain, with_disks = Intent("", "c", {}), Intent("", "c", params)
    create, unstage = Plugging(Inner(), made), Unplugging(Inner(), made)
    assert await create.perform(plain) == {"inner": True}
    assert await unstage.perform(plain) == {"inner": True}
    assert (await create.perform(with_disks))["disks"][0]["node"] == device.node
    assert (await unstage.probe(plain)).done
    assert (await unstage.probe(with_disks)).done is False
    assert (await Unplugging(Inner(False), made).probe(with_disks)).done is False
    await monitor.command("quit")
    assert (await unstage.perform(with_disks))["inner"]
    assert (await unstage.probe(with_disks)).done


def test_arguments() -> None:
    opened = disk.Opened(5, False, 512, 4096)
    assert disk.free_port(["nic1", "share0", "disk3-7.1"], 4) == 2
    assert disk.free_port(["nic1", "nic2", "disk3-7.1"], 4) is None
    assert disk.free_port(["disk12-7.1"], 13) == 11
    assert disk.find(["nic1", "disk3-7.1r", "disk2-7.1"], "7.1") == "disk2-7.1"
    assert msgspec.to_builtins(disk.device_arguments("7.1", 3, opened))["physical_block_size"] == 4096
