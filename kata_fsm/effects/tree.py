# SPDX-License-Identifier: Apache-2.0
"""Making and removing the directories that mounts sit on.

Removal is built so that it cannot touch user data even if everything else is wrong: it refuses while anything is
mounted at or below the path, and then only ever uses `rmdir` (which refuses a directory with content) and `unlink` of
empty regular files (the places where files were bound). There is no recursive delete.
"""

from __future__ import annotations

import errno
import os
import stat

from kata_fsm import errors
from kata_fsm.effects import mounts


def checked_name(name: str, what: str) -> str:
    """`name` if it can be one component of a path. Raises EffectError otherwise."""
    if not name or name in {".", ".."} or "/" in name or "\0" in name:
        raise errors.EffectError("name", f"{what} `{name}` cannot name a directory")
    return name


PASSABLE = 0o711
"""For what the guest sees: the root of a user namespace there, who is nobody, has to come through to its root file system.
On the host nobody comes that far: the sandbox's own directory is root's."""


def make_directory(path: str, mode: int = 0o700) -> None:
    """Make `path` with `mode` and its missing parents. Raises EffectError (no space, a file in the way)."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        try:
            os.mkdir(path, 0o700)
            if mode != 0o700:
                os.chmod(path, mode)  # whatever the umask is
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise
    except OSError as error:
        raise errors.EffectError("mkdir", f"cannot make the directory `{path}`: {error.strerror}") from error


def make_place(path: str, *, directory: bool) -> None:
    """Make the empty directory or the empty file that something will be bound on. Raises EffectError."""
    if directory:
        make_directory(path)
        return
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise errors.EffectError("mkdir", f"cannot make the file `{path}`: {error.strerror}") from error


def remove_tree(path: str) -> None:
    """Remove `path`, a tree of empty directories and empty files. Absent is fine. Raises EffectError, see above."""
    mounted = mounts.below(path)
    if mounted:
        raise errors.EffectError("remove", f"`{path}` is not removed: `{mounted[-1].point}` is still mounted")
    try:
        _remove(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise errors.EffectError("remove", f"cannot remove `{error.filename or path}`: {error.strerror}") from error


def _remove(path: str) -> None:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        for entry in sorted(os.listdir(path)):
            _remove(f"{path}/{entry}")
        os.rmdir(path)
        return
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode) or status.st_size:
        raise OSError(errno.ENOTEMPTY, "it is not an empty file of ours", path)
    os.unlink(path)


def write_file(path: str, text: str) -> None:
    """Write a small file of ours (0600), whole or not at all. Raises EffectError (no space)."""
    temporary = path + ".new"
    try:
        fd = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        raise errors.EffectError("write", f"cannot write `{path}`: {error.strerror}") from error


def unlink(path: str) -> None:
    """Remove one file or socket of ours; absent is fine. Raises EffectError."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise errors.EffectError("remove", f"cannot remove `{path}`: {error.strerror}") from error


def remove_directory_if_empty(path: str) -> bool:
    """Remove `path` if it is an empty directory; whether it is gone."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
