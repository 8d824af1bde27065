# SPDX-License-Identifier: Apache-2.0
"""The machine itself: what it is, its clock, its randomness, its processors and memory."""

from __future__ import annotations

import os
from time import CLOCK_REALTIME, clock_settime_ns

from . import VERSION, files
from .errors import from_os_error, internal, invalid
from .loop import pause
from .mounts import DRIVERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from .agent import Agent
    from .loop import Wait

    Message = dict[str, Any]
    Steps = Generator[Wait, bool, Message]

_FEATURES = ("katafsm.state", "katafsm.streams", "katafsm.ps", "katafsm.raw-spec")
_SEED_BYTES_MAX = 64 << 10
_RNDADDENTROPY = 0x40085203  # linux/random.h: _IOW('R', 3, int[2])
_RNDRESEEDCRNG = 0x5207
_ONLINE_TIMEOUT_S = 10.0
_POLL_S = 0.01


def get_guest_details(agent: Agent, request: Message) -> Message:
    """`mem_block_size` and `mem_hotplug_probe` ask for what costs a look."""
    memory = f"{agent.settings.sysfs}/devices/system/memory"
    answer: Message = {
        "agent_details": {
            "version": VERSION,
            "init_daemon": os.getpid() == 1,
            "device_handlers": ["blk"],
            "storage_handlers": list(DRIVERS),
            "supports_seccomp": True,
            "extra_features": list(_FEATURES),
        }
    }
    if request.get("mem_block_size"):
        answer["mem_block_size_bytes"] = int(files.read_or(f"{memory}/block_size_bytes", "0").strip() or "0", 16)
    if request.get("mem_hotplug_probe"):
        answer["support_mem_hotplug_probe"] = os.path.exists(f"{memory}/probe")
    return answer


def set_guest_date_time(agent: Agent, request: Message) -> Message:
    """Seconds and microseconds since 1970."""
    microseconds = request.get("Usec", 0)
    if not 0 <= microseconds < 1_000_000:
        raise invalid(f"`Usec` is `{microseconds}`, legal is below `1000000`")
    try:
        clock_settime_ns(CLOCK_REALTIME, request.get("Sec", 0) * 1_000_000_000 + microseconds * 1000)
    except OSError as error:
        raise from_os_error(error, "cannot set the clock") from None
    return {}


def reseed_random_dev(agent: Agent, request: Message) -> Message:
    """Mix in the host's bytes, count them as entropy, and start the generator anew: clones must not share its state."""
    data = request.get("data", b"")
    if not 0 < len(data) <= _SEED_BYTES_MAX:
        raise invalid(f"`data` has `{len(data)}` bytes, legal are 1 to `{_SEED_BYTES_MAX}`")
    from fcntl import ioctl
    from struct import pack

    fd = os.open("/dev/urandom", os.O_RDWR | os.O_CLOEXEC)
    try:
        ioctl(fd, _RNDADDENTROPY, bytearray(pack("ii", len(data) * 8, len(data)) + data))
        ioctl(fd, _RNDRESEEDCRNG)
    except OSError as error:
        raise from_os_error(error, "cannot reseed the random generator") from None
    finally:
        os.close(fd)
    return {}


def online_cpu_mem(agent: Agent, request: Message) -> Steps:
    """Bring plugged processors (up to `nb_cpus`, 0 is all) and memory into use; with `wait`, wait for the processors."""
    system = f"{agent.settings.sysfs}/devices/system"
    wanted = request.get("nb_cpus", 0)
    online = _online(f"{system}/cpu", "cpu", "online", wanted)
    waited_s = 0.0
    while request.get("wait") and wanted and online < wanted:
        if waited_s >= _ONLINE_TIMEOUT_S:
            raise internal(f"`{online}` of `{wanted}` processors came online in `{_ONLINE_TIMEOUT_S:.0f}` s")
        waited_s += _POLL_S
        yield pause(_POLL_S)
        online += _online(f"{system}/cpu", "cpu", "online", wanted - online)
    if not request.get("cpu_only"):
        _online(f"{system}/memory", "memory", "state", 0)
    return {}


def _online(directory: str, prefix: str, name: str, limit: int) -> int:
    """Write to every `<prefix>N/<name>` that is offline, at most `limit` of them (0 is all); how many came online."""
    done = 0
    try:
        entries = os.listdir(directory)
    except OSError:
        return 0
    for entry in sorted(entries):
        path = f"{directory}/{entry}/{name}"
        if not entry.startswith(prefix) or not entry[len(prefix) :].isdigit() or (limit and done >= limit):
            continue
        if files.read_or(path, "").strip() in ("0", "offline"):
            try:
                files.write(path, "1" if name == "online" else "online")
                done += 1
            except OSError:
                pass  # busy, or it went away: the next call tries again
    return done
