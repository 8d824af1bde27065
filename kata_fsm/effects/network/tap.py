# SPDX-License-Identifier: Apache-2.0
"""Taps: the kernel's end of a guest's NIC, made in the sandbox's namespace, and the descriptors that QEMU gets.

A tap is persistent, so that it outlives us and is found again by its name, which holds the sandbox's uid. Its alias names
the interface that it belongs to, and is set before the tap becomes persistent: so there is never one of which nobody
knows what it was made for. QEMU gets a descriptor of it and may run in any namespace. linux/if_tun.h, tun.c.
"""

from __future__ import annotations

import fcntl
import glob
import os
import stat
import struct

from kata_fsm import errors
from kata_fsm.effects import mounts
from kata_fsm.effects.network.scan import PREFIX

_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
_IFREQ = struct.Struct("16sH22x")
_IFNAME_CHARS_MAX = 15
_TUN = "/dev/net/tun"
VHOST = "/dev/vhost-net"


def own(uid: str) -> str:
    """What the names of all of a sandbox's taps begin with."""
    return PREFIX + uid


def name(uid: str, slot: int) -> str:
    """The tap of one slot."""
    made = f"{own(uid)}{slot:x}"
    assert len(made) <= _IFNAME_CHARS_MAX, f"`{made}` is too long for an interface's name"
    return made


def slot_of(uid: str, tap: str) -> int | None:
    """The slot in a tap's name; None when it is not one of the sandbox's."""
    if not tap.startswith(own(uid)):
        return None
    try:
        return int(tap.removeprefix(own(uid)), 16)
    except ValueError:
        return None


def open_queue(tap: str, *, multi: bool) -> int:
    """A descriptor of one queue pair of `tap`, which is made if it is not there (and then goes with the descriptor).

    With IFF_VNET_HDR, by which checksums and segmentation are left to whoever is last: without it every segment of a
    guest's TCP stream passes by itself, and a frame whose checksum the host left out could not be told.
    Raises EffectError. The calling thread must be in the tap's namespace.
    """
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if multi else 0)
    try:
        fd = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise errors.EffectError("tap", f"cannot open `{_TUN}`: {error.strerror}") from error
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(tap.encode(), flags))
    except OSError as error:
        os.close(fd)
        raise errors.EffectError("tap", f"cannot open the tap `{tap}`: {error.strerror}") from error
    return fd


def keep(fd: int) -> None:
    """Make the tap of `fd` outlive its descriptors."""
    fcntl.ioctl(fd, _TUNSETPERSIST, 1)


def open_macvtap(tap: str) -> int:
    """A descriptor of one queue pair of the macvtap `tap`. Raises EffectError.

    The calling thread must be in its namespace, and must end soon: it gets a mount namespace of its own. The device file in
    /dev is named by the interface's number, which two namespaces may both have given out; so its number is read from a
    sysfs of this namespace, and the file made where nobody sees it.
    """
    try:
        mounts.unshare(mounts.CLONE_NEWNS)
        mounts.mount(None, "/", mounts.MS_REC | mounts.MS_PRIVATE)
        mounts.mount_new("sysfs", "/sys")
        (path,) = glob.glob(f"/sys/class/net/{tap}/macvtap/tap*/dev")
        with open(path, encoding="ascii") as file:
            major, minor = (int(number) for number in file.read().split(":"))
        mounts.mount_new("tmpfs", "/sys")
        os.mknod("/sys/tap", stat.S_IFCHR | 0o600, os.makedev(major, minor))
        return os.open("/sys/tap", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it has no device number"
        raise errors.EffectError("tap", f"cannot open the macvtap `{tap}`: {why}") from error


def open_vhost() -> int | None:
    """A descriptor of vhost-net, by which the kernel moves frames without QEMU; None where the host has none."""
    try:
        return os.open(VHOST, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
