# SPDX-License-Identifier: Apache-2.0
"""Finding the configuration's files, and laying them over each other.

The main file is the first of these that exists, and nothing else: `--config`, `KATA_CONF_FILE`, the file in /etc, the file
in /usr/share/defaults. One that was named must exist. Over it go the files in `config.d/` beside it, in the order of their
names, key by key. Where the main file is a symbolic link, both directories count: that of the file, then that of the link.
"""

from __future__ import annotations

import os
import re
from typing import Any, Literal, NamedTuple

from kata_fsm.config.lines import line_at, lines_of
from kata_fsm.config.settings import Origin
from kata_fsm.errors import UsageError

DEFAULT_PATHS = ("/etc/kata-containers/configuration.toml", "/usr/share/defaults/kata-containers/configuration.toml")
DROP_INS = "config.d"
FILE_BYTES_MAX = 1 << 20
DROP_INS_MAX = 100

Path = tuple[str, ...]


def find(named: str | None) -> str | None:
    """The file to read, as it was named; None for the built-in defaults. Raises `UsageError`."""
    chosen = named or os.environ.get("KATA_CONF_FILE")
    if chosen:
        if not os.path.isfile(chosen):
            problem = "is not a file" if os.path.exists(chosen) else "does not exist"
            raise UsageError(f"configuration file `{chosen}` {problem}")
        return os.path.abspath(chosen)
    return next((path for path in DEFAULT_PATHS if os.path.isfile(path)), None)


def drop_ins(path: str) -> list[str]:
    """The files that go over the main file at `path`, in order. Hidden files and editors' copies (`x~`) are none."""
    found: list[str] = []
    for beside in dict.fromkeys((os.path.dirname(os.path.realpath(path)), os.path.dirname(os.path.abspath(path)))):
        directory = os.path.join(beside, DROP_INS)
        try:
            names = sorted(os.listdir(directory))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise UsageError(f"`{directory}` cannot be read: {error.strerror}") from error
        for name in names:
            if not name.startswith(".") and not name.endswith("~"):
                found.append(os.path.join(directory, name))
    if len(found) > DROP_INS_MAX:
        raise UsageError(f"`{os.path.dirname(found[0])}` holds {len(found)} files, at most {DROP_INS_MAX} are read")
    return found


def read(path: str) -> tuple[dict[str, Any], str]:
    """A file's decoded document and its text. Raises `UsageError` naming the file and, if it is not TOML, the line."""
    import tomli

    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"configuration file `{path}` cannot be read: {error.strerror}") from error
    if len(data) > FILE_BYTES_MAX:
        raise UsageError(f"configuration file `{path}` is larger than {FILE_BYTES_MAX} bytes")
    try:
        text = data.decode("utf-8").replace("\r\n", "\n")
        document: dict[str, Any] = tomli.loads(text)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"configuration file `{path}:{line}` is not TOML: it is not UTF-8") from error
    except (tomli.TOMLDecodeError, RecursionError) as error:
        given = re.search(r"\(at line (\d+), ", str(error))  # not of what it noticed at the end of the document
        line = int(given[1]) if given else len(text.rstrip().split("\n"))
        raise UsageError(f"configuration file `{path}:{line}` is not TOML: {error}") from error
    return document, text


class Value(NamedTuple):
    """A leaf of the merged document, and where it came from."""

    value: Any
    origin: Origin


Merged = dict[Path, Value]


def leaves(table: dict[str, Any], prefix: Path = ()) -> list[tuple[Path, Any]]:
    """Every value in a document that is not a table, and every empty table."""
    found: list[tuple[Path, Any]] = []
    for name, value in table.items():
        path = (*prefix, name)
        found += leaves(value, path) if isinstance(value, dict) and value else [(path, value)]
    return found


def lay_file(merged: Merged, path: str, kind: Literal["file", "drop-in"]) -> None:
    """Lay the file at `path` over what there is. Raises `UsageError`."""
    document, text = read(path)
    lines = lines_of(text)
    for key, value in leaves(document):
        origin = Origin(kind, path, line_at(lines, key))
        _require_tables(key, value, origin)
        if value != {}:
            merged[key] = Value(value, origin)


_TABLES = {("hypervisor",), ("agent",), ("proxy",), ("shim",), ("runtime",), ("factory",), ("netmon",)}


def _require_tables(key: Path, value: Any, origin: Origin) -> None:
    """Where Kata has tables there must be tables."""
    two = key[0] in ("hypervisor", "agent", "proxy", "shim")
    if not isinstance(value, dict) and (key in _TABLES or (two and len(key) == 2)):
        raise UsageError(f"`{origin}`: `{'.'.join(key)}` is not a table")


def lay_all(named: str | None) -> tuple[Merged, str | None, tuple[str, ...]]:
    """The merged document, the main file (symbolic links resolved) and the drop-ins. Raises `UsageError`."""
    merged: Merged = {}
    path = find(named)
    if path is None:
        return merged, None, ()
    lay_file(merged, os.path.realpath(path), "file")
    over = drop_ins(path)
    for each in over:
        lay_file(merged, each, "drop-in")
    return merged, os.path.realpath(path), tuple(over)
