# SPDX-License-Identifier: Apache-2.0
"""QEMU for real, with kernels of a few bytes: starting, stopping, dying, and what is said about it."""

import os
import signal
import subprocess
from pathlib import Path

import msgspec
import pytest
import trio

from guest.build import init
from kata_fsm import errors, limits
from kata_fsm.argv import argv_of
from kata_fsm.effects import mounts, oom, process
from kata_fsm.effects.hypervisor import watch
from kata_fsm.effects.hypervisor.handler import HypervisorLaunch, HypervisorStop
from kata_fsm.effects.hypervisor.qmp import Monitor, QmpRefused
from kata_fsm.effects.hypervisor.watch import judge, unwatched
from kata_fsm.effects.process import Exit, Identity
from kata_fsm.effects.protocols import Intent

LAUNCH = Intent("hypervisor.launch", "", {"sandbox": "box"})
STOP = Intent("hypervisor.stop", "", {})


@pytest.fixture
async def monitor(place):
    """The sandbox's QMP connection."""
    monitor = Monitor(place.paths.qmp_sock)
    yield monitor
    await monitor.aclose()


async def test_launch_probe_stop(place, tiny, monitor, until, monkeypatch):
    monkeypatch.setattr(limits, "VM_STOP_GRACE_S", 60.0)  # nobody forces it because the host is busy
    launch, stop = HypervisorLaunch(place.paths, tiny(), monitor), HypervisorStop(place.paths, tiny(), monitor)
    assert (await launch.probe(LAUNCH)).done is False
    result = await launch.perform(LAUNCH)
    identity = Identity.from_dict(result)
    assert process.alive(identity)
    assert result["accel"] == "tcg"
    assert result["argv"] == argv_of(identity.pid)
    assert int(Path(place.paths.qemu_pid).read_text()) == identity.pid
    assert (await monitor.command("query-status"))["status"] == "running"
    await until(lambda: Path(place.paths.console_log).read_text().endswith("up\n"))
    # Again, as after a crash before the outcome was written: the same VM, and no second one.
    again = await launch.perform(LAUNCH)
    assert (again["pid"], again["argv_sha256"]) == (identity.pid, result["argv_sha256"])
    seen = await launch.probe(LAUNCH)
    assert (seen.done, seen.result["start_ticks"]) == (True, identity.start_ticks)
    assert (await stop.probe(STOP)).done is False
    assert await stop.perform(STOP) == {
        "exit": {"code": 0, "signal": None, "core": False},
        "forced": False,
        "found": True,
    }
    assert (await stop.perform(STOP))["found"] is False
    assert (await stop.probe(STOP)).done is True


async def watched(place, settings, monitor, act, until):
    """Launch, watch, let `act(identity)` happen, and answer the evidence."""
    launch = HypervisorLaunch(place.paths, settings, monitor)
    identity = Identity.from_dict(await launch.perform(LAUNCH))
    evidence = {}

    async def watch() -> None:
        evidence.update(await launch.watch(identity))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await until(lambda: monitor.connected)
            await act(identity)
    assert not process.alive(identity)
    await HypervisorStop(place.paths, settings, monitor).perform(STOP)
    return evidence


async def test_a_killed_qemu_is_seen_as_killed(place, tiny, monitor, until):
    async def kill(identity: Identity) -> None:
        process.kill(identity, signal.SIGKILL)

    evidence = await watched(place, tiny(), monitor, kill, until)
    assert evidence["cause"] == "vm_killed"
    assert evidence["message"] == "QEMU was killed by SIGKILL"
    assert evidence["exit"] == {"code": None, "signal": 9, "core": False}
    assert evidence["shutdown"] is None


async def test_a_terminated_qemu_is_seen_as_killed(place, tiny, monitor, until):
    async def terminate(identity: Identity) -> None:
        process.kill(identity, signal.SIGTERM)

    evidence = await watched(place, tiny(), monitor, terminate, until)
    assert (evidence["cause"], evidence["exit"]["code"]) == ("vm_killed", 0)
    assert evidence["shutdown"] == {"guest": False, "reason": "host-signal"}


async def test_a_guest_that_is_reset_ends(place, tiny, monitor, until):
    async def reset(identity: Identity) -> None:
        await monitor.command("system_reset")

    evidence = await watched(place, tiny(), monitor, reset, until)
    assert (evidence["cause"], evidence["exit"]["code"]) == ("vm_exited", 0)
    assert evidence["shutdown"] == {"guest": False, "reason": "host-qmp-system-reset"}


async def test_a_guest_that_panics_is_told_by_its_console(place, tiny, monitor, until):
    says = b"[    0.1] Kernel panic - not syncing: no root\r\n[    0.2] Rebooting\r\n"

    async def reset(identity: Identity) -> None:
        await until(lambda: "Rebooting" in Path(place.paths.console_log).read_text())
        await monitor.command("system_reset")

    evidence = await watched(place, tiny(says), monitor, reset, until)
    assert evidence["cause"] == "guest_panic"
    assert evidence["message"] == "the guest's kernel panicked: Kernel panic - not syncing: no root"
    assert evidence["console"].endswith("Rebooting\n")


@pytest.mark.parametrize(
    ("ended", "shutdown", "heard", "cause"),
    [
        (Exit(code=0), {"guest": True, "reason": "guest-reset"}, True, "guest_shutdown"),
        (Exit(code=0), {"guest": False, "reason": "host-signal"}, True, "vm_killed"),
        (Exit(signal=11), None, True, "vm_crashed"),
        (Exit(signal=6, core=True), None, False, "vm_crashed"),
        (Exit(signal=9), None, True, "vm_killed"),
        (Exit(signal=15), None, False, "vm_killed"),
        (Exit(code=1), None, True, "vm_exited"),
        (process.UNKNOWN, None, True, "vm_killed"),
        (process.UNKNOWN, None, False, "unknown"),
        (process.UNKNOWN, {"guest": False, "reason": "host-qmp-quit"}, True, "vm_exited"),
    ],
)
def test_what_evidence_means(ended, shutdown, heard, cause):
    assert judge(ended, shutdown, panicked="", heard=heard)[0] == cause


SWITCHED_OFF = {"guest": True, "reason": "guest-shutdown"}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("0009\n[ 1.0] reboot: Power down\n", "was killed by SIGKILL"),
        ("008b\n", "was killed by SIGSEGV"),
        ("0100\n", "exited with code 1"),
        ("00", "exited with code 0"),  # cut off
        ("\n", "ended in an unknown way"),
        ("wxyz", "ended in an unknown way"),
        ("ffff\n", "ended in an unknown way"),
    ],
)
def test_a_guest_whose_agent_ended_says_how(status, words):
    told = watch.agent_end(f"[ 0.9] kata-agent: said\n{watch.EPITAPH}{status}")
    assert told == words
    assert judge(Exit(code=0), SWITCHED_OFF, panicked="", heard=True, agent=told) == (
        "agent_lost",
        f"the agent in the guest {words}, and its machine was switched off",
    )
    # nobody saw QEMU end; its console tells
    assert judge(process.UNKNOWN, None, panicked="", heard=False, agent=told)[0] == "agent_lost"
    # what came after it, or made it, is the cause
    assert judge(Exit(signal=9), None, panicked="", heard=True, agent=told)[0] == "vm_killed"
    assert judge(Exit(code=0), SWITCHED_OFF, panicked="a bug", heard=True, agent=told)[0] == "guest_panic"


def test_the_init_says_what_is_looked_for():
    assert watch.EPITAPH == init.EPITAPH
    assert watch.agent_end("[ 0.9] kata-agent: said\n") == ""


OOM_LINE = "Memory cgroup out of memory: Killed process 77 (qemu-system-x86) total-vm:1kB"
FAULT_LINE = "qemu-system-x86[77]: segfault at 0 ip 0 sp 0 error 4"


@pytest.mark.parametrize(
    ("ended", "log", "rose", "cause"),
    [
        (Exit(signal=9), [OOM_LINE], 0, "host_oom"),
        (Exit(signal=9), [], 1, "host_oom"),
        (process.UNKNOWN, [OOM_LINE], 0, "host_oom"),
        (process.UNKNOWN, [], 1, "host_oom"),
        (Exit(signal=11), [FAULT_LINE], 1, "vm_crashed"),
        (process.UNKNOWN, [FAULT_LINE], 0, "vm_crashed"),
        (Exit(code=0), [], 1, "vm_exited"),
        (Exit(signal=9), [], 0, "vm_killed"),
        (process.UNKNOWN, [], 0, "vm_killed"),
    ],
)
def test_what_the_kernel_tells(ended, log, rose, cause):
    """The OOM killer only ever sends SIGKILL, so whoever ended otherwise was not its victim."""
    before, now = oom.Counters(3, {"/cg": 5}), oom.Counters(3 + rose, {"/cg": 5 + rose})
    told = oom.judge(ended, before, now, log)
    found, message = judge(ended, None, panicked="", heard=True, told=told)
    assert found == cause
    assert told.evidence.get("cgroup_oom_kills") == ({"/cg": 1} if rose else None)
    assert told.evidence.get("host_oom_kills") == (1 if rose else None)
    assert message
    # A guest that panicked did so whatever happened to QEMU afterwards.
    assert judge(ended, None, panicked="a bug", heard=True, told=told)[0] == "guest_panic"


def test_an_oom_kill_of_somebody_else_is_put_on_record_and_blamed_for_nothing():
    told = oom.judge(Exit(signal=9), oom.Counters(3, {}), oom.Counters(4, {}), [])
    assert (told.by_oom, told.evidence) == ("", {"host_oom_kills": 1})
    assert oom.judge(Exit(signal=9), oom.Counters(), oom.Counters(), []).evidence == {}


def test_counters_of_a_process_can_be_read_twice():
    before = oom.counters(os.getpid())
    now = oom.again(before)
    assert now.cgroups.keys() == before.cgroups.keys()
    assert oom.judge(Exit(signal=9), before, now, oom.kernel_log(process.identify(os.getpid()))).by_oom == ""
    assert oom.counters(1 << 22).cgroups == {}


async def test_an_end_that_nobody_watched_is_read_from_what_is_written(place):
    gone = Identity(1 << 22, 1, "boot")
    assert unwatched(place.paths, gone)["cause"] == "unknown"
    Path(place.paths.logs).mkdir(parents=True)
    Path(place.paths.console_log).write_text("[ 1.0] Kernel panic - not syncing: Fatal exception\n")
    found = unwatched(place.paths, gone)
    assert (found["cause"], found["exit"]["signal"]) == ("guest_panic", None)
    Path(place.paths.console_log).write_text("[ 9.0] reboot: Power down\n")
    assert unwatched(place.paths, gone)["cause"] == "guest_shutdown"
    Path(place.paths.console_log).write_text("[ 9.0] reboot: Power down\n[ 9.1] somebody wrote that and went on\n")
    assert unwatched(place.paths, gone)["cause"] == "unknown"


async def test_a_stuck_qemu_is_stopped_by_force(place, tiny, monitor, monkeypatch):
    monkeypatch.setattr(limits, "VM_STOP_GRACE_S", 0.3)
    settings = tiny()
    identity = Identity.from_dict(await HypervisorLaunch(place.paths, settings, monitor).perform(LAUNCH))
    process.kill(identity, signal.SIGSTOP)
    result = await HypervisorStop(place.paths, settings, monitor).perform(STOP)
    assert result == {"exit": {"code": None, "signal": 9, "core": False}, "forced": True, "found": True}


async def test_another_supervisor_finds_watches_and_stops_it(place, tiny, monitor, until):
    settings = tiny()
    first = HypervisorLaunch(place.paths, settings, monitor)
    identity = Identity.from_dict(await first.perform(LAUNCH))
    await monitor.aclose()
    assert process.alive(identity)
    second = Monitor(place.paths.qmp_sock)
    seen = await HypervisorLaunch(place.paths, settings, second).probe(LAUNCH)
    assert Identity.from_dict(seen.result) == identity
    await HypervisorStop(place.paths, settings, second).perform(STOP)
    assert not process.alive(identity)
    await second.aclose()


@pytest.mark.parametrize(
    ("changes", "phase", "message"),
    [
        ({"cpu": "no-such-cpu"}, "start", "QEMU exited with code 1 at its start: .*no-such-cpu"),
        ({"qemu": "/usr/bin/false"}, "start", "QEMU exited with code 1 at its start$"),
        ({"qemu": "/no/qemu"}, "spawn", "cannot start `/no/qemu`"),
        ({"kernel": "/no/kernel"}, "image", "the guest's kernel `/no/kernel` cannot be read"),
        ({"memory_mib": 1 << 24}, "memory", "are more than the host's"),
    ],
)
async def test_a_start_that_fails_says_why_and_leaves_nothing(place, tiny, monitor, changes, phase, message):
    launch = HypervisorLaunch(place.paths, msgspec.structs.replace(tiny(), **changes), monitor)
    with pytest.raises(errors.EffectError, match=message) as raised:
        await launch.perform(LAUNCH)
    assert raised.value.phase == phase
    assert (await HypervisorStop(place.paths, tiny(), monitor).probe(STOP)).done is True


async def test_settings_of_the_intent_win(place, tiny, monitor):
    settings = tiny()
    recorded = msgspec.to_builtins(msgspec.structs.replace(settings, vcpus=2))
    result = await HypervisorLaunch(place.paths, settings, monitor).perform(
        Intent("hypervisor.launch", "", {"sandbox": "box", "settings": recorded})
    )
    assert result["argv"][result["argv"].index("-smp") + 1] == "2"
    await HypervisorStop(place.paths, settings, monitor).perform(STOP)


async def test_a_qemu_without_the_accelerator_is_named(place, tiny, monitor):
    script = place.work / "qemu"
    script.write_text("#!/bin/sh\necho 'qemu: -accel tcg: invalid accelerator tcg' >&2\nexit 1\n")
    script.chmod(0o755)
    launch = HypervisorLaunch(place.paths, tiny(qemu=str(script)), monitor)
    with pytest.raises(errors.EffectError, match="neither KVM nor emulation runs a guest here: this QEMU has no `tcg`"):
        await launch.perform(LAUNCH)


async def test_a_full_disk_is_refused_before_anything_starts(place, tiny, monitor):
    state = Path(place.top, "state")
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(state)], check=True)
    with pytest.raises(errors.EffectError, match=r"no disk space: `.*/state/logs/.*` has `0` MiB free") as raised:
        await HypervisorLaunch(place.paths, tiny(), monitor).perform(LAUNCH)
    assert raised.value.phase == "disk"
    mounts.unmount(str(state))


async def test_a_flooded_console_stays_bounded(place, tiny, monitor, until, monkeypatch):
    monkeypatch.setattr(limits, "LOG_CHECK_S", 0.05)
    settings = tiny(b"x" * 200 + b"\n", "flood")
    console = Path(place.paths.console_log)

    async def wait(identity: Identity) -> None:
        # The file is cut at 4 MiB. The guest is too slow for a test, so most of it is put there for it.
        with console.open("ab") as file:
            file.write(b"y" * limits.CONSOLE_LOG_BYTES_MAX)
        await until(lambda: console.stat().st_size < limits.CONSOLE_LOG_BYTES_MAX // 2)
        cut = console.stat().st_size
        # More than a line: of the one that was begun before `y` nobody can say where it began.
        await until(lambda: console.stat().st_size > cut + 1000)
        process.kill(identity, signal.SIGKILL)

    evidence = await watched(place, settings, monitor, wait, until)
    assert len(evidence["console"]) <= limits.CONSOLE_TAIL_BYTES
    assert evidence["console"].rstrip("x\n") == ""


async def test_monitor_replies_refusals_events_and_loss(place, tiny, monitor, until):
    settings = tiny()
    identity = Identity.from_dict(await HypervisorLaunch(place.paths, settings, monitor).perform(LAUNCH))
    with pytest.raises(QmpRefused, match="QEMU refused `device_del`: Device 'none' not found"):
        await monitor.command("device_del", {"id": "none"})
    await monitor.command("stop")
    await monitor.command("cont")
    with trio.fail_after(60):
        assert (await monitor.events.receive())["event"] == "STOP"
        assert (await monitor.events.receive())["event"] == "RESUME"
    lost = monitor.lost
    await process.kill_and_wait(identity)
    with trio.fail_after(60):
        await lost.wait()
    assert not monitor.connected
    with pytest.raises(
        errors.TimeoutExceeded, match=r"did not answer `query-status` within 0.2 s|did not answer within"
    ):
        await monitor.command("query-status", limit_s=0.2)
    await HypervisorStop(place.paths, settings, monitor).perform(STOP)


async def test_a_silent_monitor_is_given_up(place, monitor):
    with trio.socket.socket(trio.socket.AF_UNIX) as silent:
        await silent.bind(place.paths.qmp_sock)
        silent.listen(1)
        with pytest.raises(errors.TimeoutExceeded, match="did not answer"):
            await monitor.command("query-status", limit_s=0.2)
    os.unlink(place.paths.qmp_sock)


async def test_what_was_counted_long_before_is_nobodys_end(monkeypatch):
    """A process of the same cgroup was killed for memory; QEMU only later, by a person."""
    counted = [oom.Counters(1, {"/cg": 1}), oom.Counters(2, {"/cg": 2})]
    fresh = trio.Event()

    def counters(pid):
        if len(counted) == 1:
            fresh.set()
            return counted[0]
        return counted.pop(0)

    monkeypatch.setattr(oom, "counters", counters)
    monkeypatch.setattr(oom, "again", lambda before: oom.Counters(2, {"/cg": 2}))
    monkeypatch.setattr(oom, "LOG_CHECK_S", 0.01)
    witnesses = oom.Watch(process.identify(os.getpid()))
    assert witnesses.testify(Exit(signal=9)).by_oom
    async with trio.open_nursery() as nursery:
        nursery.start_soon(witnesses.keep_fresh)
        with trio.fail_after(60):
            await fresh.wait()
        nursery.cancel_scope.cancel()
    assert witnesses.testify(Exit(signal=9)).by_oom == ""
