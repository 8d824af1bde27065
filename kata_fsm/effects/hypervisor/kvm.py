# SPDX-License-Identifier: Apache-2.0
"""Which accelerator: KVM only where a guest has been seen to run on it.

That /dev/kvm opens and makes a VM proves nothing: on some nested hosts QEMU then aborts, or a few instructions run and
a kernel never starts (both were met on one host, the second with a processor model that avoids the first; a boot
sector of ours ran there and would have said yes). So the question is put to the very kernel, processor model and
machine that sandboxes use: without a root file system it boots, panics, and by `panic=-1` and `-no-reboot` ends QEMU
with code 0 after having printed to its console. Anything else, and the time limit above all, means no. The answer is
kept per boot, QEMU and kernel in the state directory.

Whoever asks may be killed meanwhile, and a guest that hangs would then hang for ever. So `timeout` is above QEMU, in the
same process group, and what both write goes to memory that goes with them: nothing is left that somebody had to find.
"""

from __future__ import annotations

import contextlib
import os
from typing import Literal

import msgspec
import trio

from kata_fsm import errors, limits
from kata_fsm.effects import logs, process, tree
from kata_fsm.effects.hypervisor.argv import quote
from kata_fsm.effects.hypervisor.image import Image
from kata_fsm.effects.hypervisor.settings import HypervisorSettings
from kata_fsm.world import WORLD, state_dir

DEVICE = "/dev/kvm"
CPU = "host,pmu=off"
_COMMAND_LINE = "console=ttyS0 earlyprintk=ttyS0 panic=-1"
_PROBE_MIB = 128
_TIMEOUT = "/usr/bin/timeout"
_TIMEOUT_AFTER_S = 2.0  # after our own limit


class Answer(msgspec.Struct, frozen=True):
    """What a probe said, and of what: for another boot, QEMU or kernel it does not count."""

    boot_id: str
    asked: str
    works: bool
    reason: str
    seconds: float = 0.0


class Choice(msgspec.Struct, frozen=True):
    """The accelerator to use. `warning` is set when it is not the one that was hoped for; `fresh` when just probed."""

    accel: Literal["kvm", "tcg"]
    warning: str = ""
    fresh: bool = False


def answer_path() -> str:
    """Where the answer is kept."""
    return state_dir() + "/kvm.json"


def _asked(settings: HypervisorSettings, image: Image) -> str:
    parts = []
    for path in (settings.qemu, image.kernel):
        try:
            status = os.stat(path)
            parts.append(f"{path}:{status.st_size}:{status.st_mtime_ns}")
        except OSError:
            parts.append(path)
    return " ".join([*parts, settings.cpu or CPU])


def remembered(settings: HypervisorSettings, image: Image) -> Answer | None:
    """The answer of this boot for this QEMU, kernel and processor model, if it was asked."""
    try:
        with open(answer_path(), "rb") as file:
            answer = msgspec.json.decode(file.read(), type=Answer)
    except (OSError, msgspec.DecodeError):
        return None
    fits = answer.boot_id == WORLD.boot_id() and answer.asked == _asked(settings, image)
    return answer if fits else None


def _remember(answer: Answer) -> None:
    try:
        tree.make_directory(state_dir())
        tree.write_file(answer_path(), msgspec.json.encode(answer).decode())
    except errors.EffectError:
        pass  # asked again next time; whoever needs the disk will say that it is full


def probe_argv(settings: HypervisorSettings, image: Image, console: str, cpu: str, limit_s: float) -> list[str]:
    """The command line of the probe. Pure."""
    return [
        *(_TIMEOUT, "--signal=KILL", f"{limit_s + _TIMEOUT_AFTER_S:g}"),
        settings.qemu,
        *("-name", "kata-fsm-kvm-probe"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", settings.machine, "-accel", "kvm", "-cpu", cpu, "-m", str(_PROBE_MIB)),
        *("-kernel", image.kernel, "-append", _COMMAND_LINE),
        *("-chardev", f"file,id=console,path={quote(console)}", "-serial", "chardev:console"),
    ]


async def ask(
    settings: HypervisorSettings, image: Image, *, cpu: str = "", limit_s: float = limits.KVM_PROBE_S
) -> Answer:
    """Boot the kernel on KVM and see. Takes at most `limit_s` seconds and leaves nothing. Never raises for a no."""
    started = WORLD.mono_ns()
    console, log = os.memfd_create("console"), os.memfd_create("stderr")
    try:
        reason = await _boot(settings, image, console, log, cpu or settings.cpu or CPU, limit_s)
    finally:
        os.close(console)
        os.close(log)
    seconds = (WORLD.mono_ns() - started) / 1e9
    return Answer(WORLD.boot_id(), _asked(settings, image), not reason, reason, round(seconds, 3))


async def _boot(settings: HypervisorSettings, image: Image, console: int, log: int, cpu: str, limit_s: float) -> str:
    """Why a guest does not run on KVM; empty if it does."""
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return f"`{DEVICE}` cannot be opened"
    printed, said = f"/proc/self/fd/{console}", f"/proc/self/fd/{log}"
    try:
        argv = probe_argv(settings, image, printed, cpu, limit_s)
        identity = process.spawn(argv, log_path=said, pass_fds=(console,))
    except errors.EffectError as error:
        return error.message
    ended = None
    try:
        with trio.move_on_after(limit_s):
            ended = await process.wait_exit(identity)
    finally:
        if ended is None:
            with trio.CancelScope(shield=True):
                for member in (*process.members(identity.pid), identity):
                    with contextlib.suppress(errors.EffectError):  # it hangs in the kernel: a no all the same
                        await process.kill_and_wait(member)
    if ended is None:
        return f"the guest did not come up within {limit_s:g} s"
    if ended.code != 0:
        first = logs.tail(said, limits.STDERR_TAIL_BYTES).strip().partition("\n")[0]
        return f"QEMU {ended.describe()}" + (f": {first}" if first else "")
    return "" if logs.tail(printed, 1) else "the guest printed nothing"


async def choose(settings: HypervisorSettings, image: Image) -> Choice:
    """The accelerator for a new VM. What the settings demand is not questioned."""
    if settings.accel != "auto":
        return Choice(settings.accel)
    answer, fresh = remembered(settings, image), False
    if answer is None:
        answer, fresh = await ask(settings, image), True
        _remember(answer)
    if answer.works:
        return Choice("kvm", fresh=fresh)
    return Choice("tcg", f"no guest runs on KVM here ({answer.reason}): using emulation (TCG), which is slower", fresh)
