# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: ours comes and goes, a given one is only looked at."""

import os
import subprocess

import pytest

from kata_fsm import errors
from kata_fsm.effects import mounts, netns
from kata_fsm.effects.hypervisor.settings import HypervisorSettings
from kata_fsm.effects.network import handlers
from kata_fsm.effects.protocols import Intent

SETTINGS = HypervisorSettings()
ATTACH = Intent("network.attach", "", {"netns": ""})


def inside(path: str, *command: str) -> str:
    return subprocess.run(["nsenter", f"--net={path}", *command], check=True, capture_output=True, text=True).stdout


async def test_ours_is_made_with_loopback_up_and_removed(place):
    here = os.readlink("/proc/thread-self/ns/net")
    attach, detach = handlers.NetworkAttach(place.paths, SETTINGS), handlers.NetworkDetach(place.paths, SETTINGS)
    assert (await attach.probe(ATTACH)).done is False
    result = await attach.perform(ATTACH)
    assert result == {"netns": place.paths.netns, "created": True, "model": "none", "unserved": []}
    assert "00000000000000000000000000000001 01 80 10 80       lo" in inside(
        result["netns"], "cat", "/proc/net/if_inet6"
    )
    assert os.readlink("/proc/thread-self/ns/net") == here
    seen = await attach.probe(ATTACH)
    assert (seen.done, seen.result) == (True, result)
    assert (await detach.probe(ATTACH)).done is False
    await attach.perform(ATTACH)  # again, after a crash before the outcome
    assert len(mounts.at(place.paths.netns)) == 1
    assert await detach.perform(ATTACH) == {"removed": True}
    assert await detach.perform(ATTACH) == {"removed": False}
    assert (await detach.probe(ATTACH)).done is True


async def test_a_given_one_is_checked_and_left_alone(place):
    given = f"{place.work}/given"
    netns.make(given)
    inside(given, "ip", "tuntap", "add", "dev", "t0", "mode", "tap")
    inside(given, "ip", "link", "set", "t0", "up")
    intent = Intent("network.attach", "", {"netns": given})
    result = await handlers.NetworkAttach(place.paths, SETTINGS).perform(intent)
    assert result["created"] is False
    assert result["unserved"] == ["t0"]
    assert result["warning"] == f"the network model is `none`: the guest will not have `t0` of `{given}`"
    assert await handlers.NetworkDetach(place.paths, SETTINGS).perform(intent) == {"removed": False}
    assert netns.is_network_namespace(given)
    assert netns.remove(given)


async def test_what_is_no_namespace_is_refused(place):
    (place.work / "file").touch()
    for path, reason in (
        (f"{place.work}/none", "cannot be used: No such file or directory"),
        (f"{place.work}/file", "is not a network namespace"),
        ("/proc/self/ns/mnt", "is not a network namespace"),
    ):
        with pytest.raises(errors.EffectError, match=reason):
            await handlers.NetworkAttach(place.paths, SETTINGS).perform(Intent("network.attach", "", {"netns": path}))
