# SPDX-License-Identifier: Apache-2.0
"""Finding and reading the configuration file.

The first of these that exists is read, and nothing else: `--config`, `KATA_CONF_FILE`, the file in /etc, the file in
/usr/share/defaults. One that was named must exist. Without any, the built-in defaults hold.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from kata_fsm.config.settings import SECTIONS, Settings, check
from kata_fsm.errors import UsageError

DEFAULT_PATHS = ("/etc/kata-containers/configuration.toml", "/usr/share/defaults/kata-containers/configuration.toml")
FILE_BYTES_MAX = 1 << 20


def find(named: str | None) -> str | None:
    """The file to read, symbolic links resolved; None for the built-in defaults. Raises `UsageError`."""
    chosen = named or os.environ.get("KATA_CONF_FILE")
    if chosen:
        if not os.path.isfile(chosen):
            raise UsageError(f"configuration file `{chosen}` does not exist")
        return os.path.realpath(chosen)
    for path in DEFAULT_PATHS:
        if os.path.isfile(path):
            return os.path.realpath(path)
    return None


def load(named: str | None = None) -> Settings:
    """The settings in force. Raises `UsageError` naming the file, the key and what is wrong with it."""
    path = find(named)
    if path is None:
        return Settings()
    return parse(_read(path), path)


def _read(path: str) -> dict[str, Any]:
    import tomli

    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"configuration file `{path}` cannot be read: {error.strerror}") from error
    if len(data) > FILE_BYTES_MAX:
        raise UsageError(f"configuration file `{path}` is larger than {FILE_BYTES_MAX} bytes")
    try:
        document: dict[str, Any] = tomli.loads(data.decode("utf-8"))
    except (tomli.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"configuration file `{path}` is not TOML: {error}") from error
    return document


def parse(document: dict[str, Any], origin: str) -> Settings:
    """The settings in a decoded file called `origin`."""
    sections: dict[str, Any] = {}
    for path, type_ in SECTIONS.items():
        sections[path[-1] if path[0] == "hypervisor" else path[0]] = _section(document, path, type_, origin)
    return check(Settings(**sections, origin=origin, warnings=tuple(_warnings(document, origin))), origin)


def _at(document: dict[str, Any], path: tuple[str, ...], origin: str) -> dict[str, Any]:
    found = document
    for at, name in enumerate(path):
        inner = found.get(name, {})
        if not isinstance(inner, dict):
            raise UsageError(f"`{origin}`: `{'.'.join(path[: at + 1])}` is not a table")
        found = inner
    return found


def _section(
    document: dict[str, Any], path: tuple[str, ...], type_: type[msgspec.Struct], origin: str
) -> msgspec.Struct:
    table = _at(document, path, origin)
    known = {name: value for name, value in table.items() if name in type_.__struct_fields__}
    try:
        converted: msgspec.Struct = msgspec.convert(known, type_)
    except msgspec.ValidationError as error:
        problem, _, at = str(error).partition(" - at `$")
        key = ".".join(path) + at.rstrip("`")
        raise UsageError(f"`{origin}`: `{key}`: {problem[:1].lower()}{problem[1:]}") from error
    return converted


def _warnings(document: dict[str, Any], origin: str) -> list[str]:
    """One line that names every key that has no effect."""
    unknown = [".".join(path) for path in _leaves(document) if not _is_known(path)]
    return [f"`{origin}`: without effect in this version: {', '.join(unknown)}"] if unknown else []


def _leaves(table: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, value in table.items():
        path = (*prefix, name)
        found += _leaves(value, path) if isinstance(value, dict) else [path]
    return found


def _is_known(path: tuple[str, ...]) -> bool:
    type_ = SECTIONS.get(path[:-1])
    return type_ is not None and path[-1] in type_.__struct_fields__
