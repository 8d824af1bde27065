# SPDX-License-Identifier: Apache-2.0
"""The same handlers with the real guest image: it boots, takes the share, and its death is told with its console."""

import signal
from pathlib import Path

import msgspec
import pytest
import trio

from kata_fsm.effects import process, share
from kata_fsm.effects.hypervisor import image, kvm
from kata_fsm.effects.hypervisor.handler import HypervisorLaunch, HypervisorStop
from kata_fsm.effects.hypervisor.qmp import Monitor
from kata_fsm.effects.hypervisor.settings import HypervisorSettings
from kata_fsm.effects.process import Identity
from kata_fsm.effects.protocols import Intent

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(
        not Path(HypervisorSettings().image_directory, image.MANIFEST).exists(), reason="the guest image is not built"
    ),
]
INTENT = Intent("", "", {"sandbox": "box"})


async def test_boot_plug_and_death(place, until):
    settings, monitor = HypervisorSettings(), Monitor(place.paths.qmp_sock)
    launch, prepare = HypervisorLaunch(place.paths, settings, monitor), share.SharePrepare(place.paths, settings)
    result = await launch.perform(INTENT)
    identity = Identity.from_dict(result)
    assert result["kernel"]
    await prepare.perform(INTENT)
    await until(lambda: "kata-agent" in Path(place.paths.console_log).read_text(), 60)
    assert (await share.SharePlug(place.paths, settings, monitor).perform(INTENT))["plugged"]
    async with trio.open_nursery() as nursery:

        async def kill() -> None:
            process.kill(identity, signal.SIGKILL)

        nursery.start_soon(kill)
        evidence = await launch.watch(identity)
    assert evidence["cause"] == "vm_killed"
    assert "kata-agent" in evidence["console"]
    await HypervisorStop(place.paths, settings, monitor).perform(INTENT)
    await share.ShareRelease(place.paths, settings).perform(INTENT)
    await monitor.aclose()


@pytest.mark.parametrize("cpu", [kvm.CPU, "qemu64"])
async def test_the_real_kernel_is_asked_within_the_limit(tmp_path, cpu):
    # Either answer is right, depending on the host; none may take longer, or leave a QEMU, which is known by its kernel.
    settings = HypervisorSettings()
    booted = image.load(settings)
    kernel = tmp_path / "kernel"
    kernel.symlink_to(booted.kernel)
    answer = await kvm.ask(settings, msgspec.structs.replace(booted, kernel=str(kernel)), cpu=cpu, limit_s=4)
    assert answer.seconds < 8
    assert answer.works is (answer.reason == "")
    assert process.find_by_argv(str(kernel)) == []
