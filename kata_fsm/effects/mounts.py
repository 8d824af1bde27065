# SPDX-License-Identifier: Apache-2.0
"""The mount syscalls, the namespace ones that go with them, and the mount table. Everything here blocks.

Bind mounts are made with `open_tree(2)`, `mount_setattr(2)` and `move_mount(2)` (Linux 5.12) and not with `mount(2)`:
a copy of a mount that lies in a shared peer group (every mount of a systemd host does) would join that group, so
mounts made below it would leak back to the host until a second call changed its propagation; and a read-only bind would
be writable until a remount. Here the copy is detached, private and read-only before anybody can see it.

Paths that are mounted on are never followed through a symbolic link.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from kata_fsm import errors

MOUNTINFO = "/proc/self/mountinfo"

MS_RDONLY = 1
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 1 << 14
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

CLONE_NEWNS = 0x0002_0000
CLONE_NEWNET = 0x4000_0000

# Since Linux 4.20 new syscalls have one number on all the platforms we know.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY = 1


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class Mount(NamedTuple):
    """One row of the mount table. `root` is the directory of the file system that is seen at `point`."""

    id: int
    parent: int
    device: str
    root: str
    point: str
    options: tuple[str, ...]
    optional: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]

    @property
    def readonly(self) -> bool:
        """Whether this mount (not the file system below it) refuses writes."""
        return "ro" in self.options


def _plain(field: str) -> str:
    """The kernel writes space, tab, newline and backslash as octal escapes (proc(5))."""
    if "\\" not in field:
        return field
    for escape, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(escape, char)
    return field


def parse_mountinfo(text: str) -> Iterator[Mount]:
    """The rows of a mountinfo file (proc(5)), in the order of mounting: a later one may hide an earlier one."""
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        yield Mount(
            id=int(fields[0]),
            parent=int(fields[1]),
            device=fields[2],
            root=_plain(fields[3]),
            point=_plain(fields[4]),
            options=tuple(fields[5].split(",")),
            optional=tuple(fields[6:]),
            fstype=tail[0],
            source=_plain(tail[1]),
            super_options=tuple(tail[2].split(",")),
        )


def table(pid: int | None = None) -> list[Mount]:
    """The mount table of this process, or of `pid`."""
    path = MOUNTINFO if pid is None else f"/proc/{pid}/mountinfo"
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return list(parse_mountinfo(file.read()))


def _as_listed(path: str) -> str:
    """`path` as the mount table writes it: no symbolic link on the way to it (its last component is never followed)."""
    parent, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(parent), name)


def at(path: str) -> list[Mount]:
    """The mounts that sit exactly on `path`, the topmost last."""
    point = _as_listed(path)
    return [mount for mount in table() if mount.point == point]


def below(path: str) -> list[Mount]:
    """The mounts on `path` or anywhere below it, in the order of mounting."""
    point = _as_listed(path)
    return [mount for mount in table() if mount.point == point or mount.point.startswith(point + "/")]


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p)
    libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
    libc.unshare.argtypes = (ctypes.c_int,)
    libc.pivot_root.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
    libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
    libc.syscall.restype = ctypes.c_long
    return libc


def _check(result: int, path: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result


def mount(source: str | None, target: str, flags: int, fstype: str | None = None) -> None:
    """mount(2): binds, remounts and changes of propagation, or a new file system of type `fstype`. Raises OSError."""
    encoded, kind = (None if word is None else os.fsencode(word) for word in (source, fstype))
    _check(_libc().mount(encoded, os.fsencode(target), kind, flags, None), target)


def mount_new(fstype: str, target: str) -> None:
    """mount(2) of a new file system that needs no device. Raises OSError."""
    _check(_libc().mount(b"none", os.fsencode(target), fstype.encode(), 0, None), target)


def unmount(target: str, flags: int = 0) -> None:
    """umount2(2), never through a symbolic link. Raises OSError."""
    _check(_libc().umount2(os.fsencode(target), flags | UMOUNT_NOFOLLOW), target)


def unshare(flags: int) -> None:
    """unshare(2): gives the calling thread namespaces of its own. Raises OSError."""
    _check(_libc().unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """setns(2): moves the calling thread into the namespace that `fd` names. Raises OSError."""
    _check(_libc().setns(fd, kind), f"fd {fd}")


def _syscall(number: int, path: str, *args: object) -> int:
    return _check(_libc().syscall(ctypes.c_long(number), *args), path)


def _set_attributes(fd: int, path: str, *, recursive: bool, readonly: bool = False, propagation: int = 0) -> None:
    attr = _MountAttr(_MOUNT_ATTR_RDONLY if readonly else 0, 0, propagation, 0)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    size = ctypes.c_size_t(ctypes.sizeof(attr))
    _syscall(_SYS_MOUNT_SETATTR, path, ctypes.c_int(fd), b"", ctypes.c_uint(flags), ctypes.byref(attr), size)


def bind(
    source: str,
    target: str,
    *,
    recursive: bool = True,
    readonly: bool = False,
    readonly_recursive: bool = False,
    follow_source: bool = False,
) -> None:
    """Show `source` (a directory or a file) at `target`, which must exist and be of the same sort.

    `recursive` takes along what is mounted below the source. `readonly` refuses writes at the top mount (OCI `ro`),
    `readonly_recursive` below it as well (`rro`). `follow_source` lets mounts made later below the source appear (OCI
    `rslave`); nothing ever goes the other way. Raises EffectError with one clear line.
    """
    try:
        _bind(source, target, recursive, readonly, readonly_recursive, follow_source)
    except OSError as error:
        hint = "kata-fsm needs Linux 5.12 or later" if error.errno == errno.ENOSYS else None
        raise errors.EffectError(
            "bind",
            f"cannot bind `{source}` on `{target}`: {error.strerror}",
            evidence={"source": source, "target": target, "errno": errno.errorcode.get(error.errno or 0, "")},
            hint=hint,
        ) from error


def _bind(
    source: str, target: str, recursive: bool, readonly: bool, readonly_recursive: bool, follow_source: bool
) -> None:
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    path = os.fsencode(source)
    copy = _syscall(_SYS_OPEN_TREE, source, ctypes.c_int(_AT_FDCWD), path, ctypes.c_uint(flags))
    try:
        _set_attributes(copy, source, recursive=recursive, propagation=MS_SLAVE if follow_source else MS_PRIVATE)
        if readonly or readonly_recursive:
            _set_attributes(copy, source, recursive=readonly_recursive, readonly=True)
        move_tree(copy, target)
    finally:
        os.close(copy)


def copy_tree(source: str) -> int:
    """A descriptor of a private copy of what is mounted at and below `source`, mounted nowhere yet. Raises OSError."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_RECURSIVE
    return _syscall(_SYS_OPEN_TREE, source, ctypes.c_int(_AT_FDCWD), os.fsencode(source), ctypes.c_uint(flags))


def move_tree(copy: int, target: str) -> None:
    """Mount what `copy_tree` answered at `target`. Raises OSError."""
    # Without MOVE_MOUNT_T_SYMLINKS the last component of the target is not followed.
    _syscall(
        _SYS_MOVE_MOUNT,
        target,
        ctypes.c_int(copy),
        b"",
        ctypes.c_int(_AT_FDCWD),
        os.fsencode(target),
        ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
    )


def put(copy: int, destination: str) -> None:
    """Mount what `copy_tree` answered at `destination`, which is made if it is missing, and so is the way to it.

    The caller's root must be the container's: links on the way are followed. What has no place there, in a root file system
    that cannot be written to, is left out: the guest will refuse it in its own words.
    """
    try:
        if not os.path.lexists(destination):
            directory = stat.S_ISDIR(os.fstat(copy).st_mode)
            os.makedirs(destination if directory else os.path.dirname(destination), 0o755, exist_ok=True)
            if not directory:
                os.close(os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        move_tree(copy, destination)
    except OSError:
        pass


def change_root(path: str) -> None:
    """Make the mount point `path` the root of this mount namespace, and let the old one go (pivot_root(2), NOTES)."""
    os.chdir(path)
    _check(_libc().pivot_root(b".", b"."), path)
    unmount(".", MNT_DETACH)
    os.chdir("/")


def unmount_below(path: str, enter: Callable[[str], None] = lambda place: None) -> list[str]:
    """Unmount everything on and below `path`, the last mounted first. Answers the mount points, in that order. `enter` is
    told of each before it is unmounted.

    A busy mount is detached: it leaves the tree at once and the file system goes when its last user does (virtiofsd
    holds what the guest has looked up). Raises EffectError when something stays.
    """
    gone: list[str] = []
    for entry in reversed(below(path)):
        enter(entry.point)
        try:
            unmount(entry.point)
        except OSError as error:
            if error.errno == errno.EINVAL:  # went with another one, or by somebody else's hand
                continue
            try:
                unmount(entry.point, MNT_DETACH)
            except OSError as again:
                if again.errno not in (errno.EINVAL, errno.ENOENT):
                    raise errors.EffectError("unmount", f"cannot unmount `{entry.point}`: {again.strerror}") from again
        gone.append(entry.point)
    left = below(path)
    if left:
        points = ", ".join(f"`{entry.point}`" for entry in left[:5])
        raise errors.EffectError("unmount", f"still mounted below `{path}`: {points}")
    return gone
