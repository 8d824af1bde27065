# SPDX-License-Identifier: Apache-2.0
"""The guest's file tree in memory: no root rights are needed to make it, and nothing of the host leaks into it."""

import stat
from collections.abc import Iterator
from dataclasses import dataclass

from guest.build.errors import BuildError


@dataclass(frozen=True)
class Entry:
    """One file: `path` without a leading slash, `mode` with its type bits, `data` (a symlink's is its target)."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


class Tree:
    """Paths and what is there. Parents come into being by themselves; a path can be given only once."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def directory(self, path: str, mode: int = 0o755) -> None:
        """A directory; may be repeated with the same mode."""
        present = self._entries.get(path)
        if present is None:
            self._add(Entry(path, stat.S_IFDIR | mode))
        elif present.mode != stat.S_IFDIR | mode:
            raise BuildError(f"`/{path}` is in the image twice, with different modes")

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """A regular file."""
        self._add(Entry(path, stat.S_IFREG | mode, data))

    def symlink(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._add(Entry(path, stat.S_IFLNK | 0o777, target.encode()))

    def device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device."""
        self._add(Entry(path, stat.S_IFCHR | mode, device=(major, minor)))

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def __iter__(self) -> Iterator[Entry]:
        """Entries sorted by path, so that a directory comes before what is in it."""
        for path in sorted(self._entries):
            yield self._entries[path]

    def read(self, path: str) -> bytes:
        """The bytes of a file."""
        return self._entries[path].data

    def _add(self, entry: Entry) -> None:
        if not entry.path or entry.path.startswith("/") or ".." in entry.path.split("/"):
            raise BuildError(f"`{entry.path}` is no path inside the image")
        if entry.path in self._entries:
            raise BuildError(f"`/{entry.path}` is in the image twice")
        parent = entry.path.rpartition("/")[0]
        if parent and parent not in self._entries:
            self.directory(parent)
        if parent and not stat.S_ISDIR(self._entries[parent].mode):
            raise BuildError(f"`/{entry.path}` lies below `/{parent}`, which is no directory")
        self._entries[entry.path] = entry
