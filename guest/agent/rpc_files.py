# SPDX-License-Identifier: Apache-2.0
"""CopyFile: files, directories and symbolic links from the host, where no directory is shared.

Paths lie below the shared root. Parts of that tree can be written by containers, so every directory on the way is opened
without following links. A file grows under a temporary name, piece by piece, and gets its name when it is whole.
"""

from __future__ import annotations

import os

from .errors import RpcError, from_os_error, invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .agent import Agent

    Message = dict[str, Any]

_S_IFMT, _S_IFDIR, _S_IFLNK, _S_IFREG = 0o170000, 0o040000, 0o120000, 0o100000
_PERMISSIONS = 0o7777
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_file(agent: Agent, request: Message) -> Message:
    """One piece of a file at its offset; a directory or link in one call. Repeating a piece is fine."""
    root, path = agent.settings.shared_root, request.get("path", "")
    if not path.startswith(f"{root}/"):
        raise invalid(f"`path` is `{path}`; it must lie below `{root}`")
    parts = path[len(root) + 1 :].split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise invalid(f"`path` is `{path}`; it must be without empty parts, `.` and `..`")
    try:
        os.makedirs(root, 0o755, exist_ok=True)
        parent = _open_parent(root, parts[:-1], (request.get("dir_mode", 0) & _PERMISSIONS) or 0o750)
        try:
            _put(parent, parts[-1], request)
        finally:
            os.close(parent)
    except OSError as error:
        raise from_os_error(error, f"cannot copy to `{path}`") from None
    return {}


def _open_parent(root: str, parts: list[str], mode: int) -> int:
    """A descriptor of the directory, made where missing."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in parts:
        try:
            try:
                below = os.open(part, _DIRECTORY, dir_fd=fd)
            except FileNotFoundError:
                os.mkdir(part, mode, dir_fd=fd)
                below = os.open(part, _DIRECTORY, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def _put(parent: int, name: str, request: Message) -> None:
    mode = request.get("file_mode", 0)
    kind = mode & _S_IFMT
    uid, gid = request.get("uid", 0), request.get("gid", 0)
    if kind == _S_IFDIR:
        try:
            os.mkdir(name, dir_fd=parent)
        except FileExistsError:
            pass
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            os.fchmod(fd, mode & _PERMISSIONS)
            os.fchown(fd, uid, gid)
        finally:
            os.close(fd)
    elif kind == _S_IFLNK:
        _forget(parent, name)
        os.symlink(request.get("data", b""), name, dir_fd=parent)
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
    elif kind in (0, _S_IFREG):
        _put_piece(parent, name, request, mode & _PERMISSIONS, uid, gid)
    else:
        raise invalid(f"`file_mode` is `{mode:#o}`; legal are a file, a directory and a symbolic link")


def _put_piece(parent: int, name: str, request: Message, mode: int, uid: int, gid: int) -> None:
    data, offset, size = request.get("data", b""), request.get("offset", 0), request.get("file_size", 0)
    if offset < 0 or offset + len(data) > size:
        raise invalid(f"`{len(data)}` bytes at `{offset}` do not fit into a file of `{size}`")
    temporary = f".{name}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (0 if offset else os.O_TRUNC)
    fd = os.open(temporary, flags, 0o600, dir_fd=parent)
    try:
        left = memoryview(data)
        while left:
            written = os.pwrite(fd, left, offset)
            left, offset = left[written:], offset + written
        if os.fstat(fd).st_size < size:
            return
        os.fchown(fd, uid, gid)  # before the mode: it clears the set-id bits
        os.fchmod(fd, mode)
    except OSError as error:
        _forget(parent, temporary)
        raise RpcError(from_os_error(error, "").code, f"cannot write `{name}`: {error.strerror}") from None
    finally:
        os.close(fd)
    os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)


def _forget(parent: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
