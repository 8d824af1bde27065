# SPDX-License-Identifier: Apache-2.0
"""KVM: the question ends within its limit, the answer is remembered, and a no is explained."""

import subprocess
from pathlib import Path

import msgspec
import pytest
import trio

from kata_fsm import limits
from kata_fsm.effects import process
from kata_fsm.effects.hypervisor import image, kvm


@pytest.fixture
def slow_qemu(place) -> str:
    """Stands for a QEMU whose guest never comes up."""
    script = place.work / "qemu"
    script.write_text('#!/bin/sh\nexec /usr/bin/tail -f /dev/null --pid $$ "$0"\n')
    script.chmod(0o755)
    return str(script)


async def test_the_probe_ends_within_its_limit(place, tiny, slow_qemu, monkeypatch):
    monkeypatch.setattr(kvm, "DEVICE", "/dev/null")
    settings = tiny(qemu=slow_qemu, accel="auto")
    answer = await kvm.ask(settings, image.load(settings), limit_s=0.3)
    assert not answer.works
    assert answer.reason == "the guest did not come up within 0.3 s"
    assert answer.seconds < limits.KVM_PROBE_S, "its own limit, not the usual one"


async def test_a_cancelled_probe_leaves_no_qemu(place, tiny, slow_qemu, monkeypatch):
    monkeypatch.setattr(kvm, "DEVICE", "/dev/null")
    settings = tiny(qemu=slow_qemu, accel="auto")
    with trio.move_on_after(0.2):
        await kvm.ask(settings, image.load(settings))
    assert process.find_by_argv(slow_qemu) == []


async def test_a_probe_whose_asker_is_killed_ends_by_itself(place, tiny, slow_qemu, monkeypatch, until):
    """It was started by a process that is not there to end it: nothing of it is left, in memory or on the disk."""
    monkeypatch.setattr(kvm, "_TIMEOUT_AFTER_S", 0.2)
    settings = tiny(qemu=slow_qemu, accel="auto")
    argv = kvm.probe_argv(settings, image.load(settings), "/dev/null", kvm.CPU, 0.1)
    holder = subprocess.Popen(["/bin/sh", "-c", '"$@" & echo; kill -9 $$', "sh", *argv], stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout.readline() == b"\n"
    await until(lambda: process.find_by_argv(slow_qemu) == [])


async def test_this_hosts_answer_is_asked_once(place, tiny, monkeypatch):
    settings = tiny(then="reset", accel="auto")
    guest = image.load(settings)
    first = await kvm.choose(settings, guest)
    assert first.fresh
    assert Path(kvm.answer_path()).stat().st_mode & 0o777 == 0o600
    again = await kvm.choose(settings, guest)
    assert again == msgspec.structs.replace(first, fresh=False)
    assert bool(first.warning) is (first.accel == "tcg")
    # Another boot, kernel or processor model: another question.
    other = msgspec.structs.replace(settings, cpu="qemu64")
    assert kvm.remembered(other, guest) is None
    answer = kvm.remembered(settings, guest)
    Path(kvm.answer_path()).write_bytes(msgspec.json.encode(msgspec.structs.replace(answer, boot_id="another")))
    assert kvm.remembered(settings, guest) is None
    Path(kvm.answer_path()).write_text("{")
    assert kvm.remembered(settings, guest) is None


async def test_no_device_means_no_at_once(place, tiny, monkeypatch):
    monkeypatch.setattr(kvm, "DEVICE", "/no/kvm")
    settings = tiny(accel="auto")
    choice = await kvm.choose(settings, image.load(settings))
    assert choice.accel == "tcg"
    assert choice.warning == (
        "no guest runs on KVM here (`/no/kvm` cannot be opened): using emulation (TCG), which is slower"
    )


async def test_a_qemu_that_dies_says_why(place, tiny, monkeypatch):
    monkeypatch.setattr(kvm, "DEVICE", "/dev/null")
    script = place.work / "qemu"
    script.write_text("#!/bin/sh\necho 'first words' >&2\necho 'more' >&2\nkill -ABRT $$\n")
    script.chmod(0o755)
    settings = tiny(qemu=str(script), accel="auto")
    answer = await kvm.ask(settings, image.load(settings))
    assert answer.reason.startswith("QEMU was killed by SIGABRT")
    assert answer.reason.endswith(": first words")


@pytest.mark.parametrize("accel", ["kvm", "tcg"])
async def test_a_demand_is_not_questioned(place, tiny, accel):
    settings = tiny(accel=accel)
    assert await kvm.choose(settings, image.load(settings)) == kvm.Choice(accel)
