# SPDX-License-Identifier: Apache-2.0
"""The configuration in force, as text, JSON and JSON Schema. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from kata_fsm.config import kata
from kata_fsm.config.document import defaults, toml_value
from kata_fsm.config.settings import SECTIONS, Ignored, Settings, effective

FORMAT = 1
"""Version of the JSON form: raised when a field changes its meaning or goes; new fields do not raise it."""


def _files(settings: Settings) -> list[str]:
    if settings.origin is None:
        return ["# no configuration file: built-in defaults"]
    return [f"# {settings.origin}", *(f"# {path}" for path in settings.drop_ins)]


def _annotated(text: str, origin: str) -> str:
    return f"{text}  # {origin}"


def as_text(settings: Settings, *, origins: bool) -> list[str]:
    """Lines of TOML: every effective value; with `origins` where each came from, and the keys without effect."""
    lines = _files(settings)
    values = effective(settings)
    for path, type_ in SECTIONS.items():
        lines += ["", f"[{'.'.join(path)}]"]
        for name in type_.__struct_fields__:
            key = ".".join((*path, name))
            text = f"{name} = {toml_value(values[key])}"
            lines.append(_annotated(text, str(settings.origin_of(key))) if origins else text)
    if origins and settings.ignored:
        lines += ["", "# without effect:"]
        lines += [f"# {one.key} = {_quoted(one)}  # {one.origin}: {one.why}" for one in settings.ignored]
    return lines


def _quoted(one: Ignored) -> str:
    try:
        return toml_value(one.value)
    except (TypeError, ValueError):
        return repr(one.value)


def as_data(settings: Settings) -> dict[str, Any]:
    """The same for programs: {"format", "file", "drop_ins", "settings": {key: {value, origin, where, line}}, ...}."""
    found = {}
    for key, value in effective(settings).items():
        origin = settings.origin_of(key)
        found[key] = {"value": value, "origin": origin.kind, "where": origin.where, "line": origin.line}
    ignored = [
        {"key": one.key, "value": _plain(one.value), "where": one.origin.where, "line": one.origin.line, "why": one.why}
        for one in settings.ignored
    ]
    return {
        "format": FORMAT,
        "file": settings.origin,
        "drop_ins": list(settings.drop_ins),
        "settings": found,
        "ignored": ignored,
        "annotations": settings.annotations,
        "warnings": list(settings.warnings),
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, list)) else str(value)


def differences(settings: Settings) -> list[str]:
    """One line for each value that is not the default: key, default, value, where it was set."""
    values, usual = effective(settings), {**defaults(), **effective(Settings())}
    return [
        f"{key}: {toml_value(usual[key])} -> {toml_value(value)}  # {settings.origin_of(key)}"
        for key, value in values.items()
        if value != usual[key]
    ]


def schema() -> dict[str, Any]:
    """The JSON Schema of a configuration file: honoured keys as they are typed, Kata's others marked deprecated."""
    _, components = msgspec.json.schema_components(list(SECTIONS.values()), ref_template="#/$defs/{name}")
    usual = defaults()
    for path, type_ in SECTIONS.items():
        section = ".".join(path)
        known = components[type_.__name__]
        known["additionalProperties"] = True  # an unknown key is a warning
        for name, field in known["properties"].items():
            field["default"] = usual[f"{section}.{name}"]
        known["properties"] |= {name: _other(one) for name, one in kata.keys_of(section).items()}
    properties: dict[str, Any] = {}
    for section in kata.SECTIONS:
        path = tuple(section.split("."))
        type_or_none = SECTIONS.get(path)
        table: dict[str, Any] = (
            {"$ref": f"#/$defs/{type_or_none.__name__}"}
            if type_or_none is not None
            else {"type": "object", "properties": {name: _other(one) for name, one in kata.keys_of(section).items()}}
        )
        inside = properties
        for name in path[:-1]:
            outer = inside.setdefault(name, {"type": "object", "properties": {}})
            if "$ref" in outer:  # a section within one that has a type
                outer = components[outer["$ref"].rpartition("/")[2]]
            inside = outer["properties"]
        inside[path[-1]] = table
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of kata-fsm",
        "type": "object",
        "properties": properties,
        "$defs": components,
    }


_TYPES: dict[str, dict[str, Any]] = {
    "bool": {"type": "boolean"},
    "int": {"type": "number"},
    "str": {"type": "string"},
    "array of table": {"type": "array", "items": {"type": "object"}},
}


def _other(known: kata.Known) -> dict[str, Any]:
    type_ = _TYPES.get(known.type_name, {"type": "array", "items": {"type": "string"}})
    verdict = "Refused" if known.unsafe else "No effect"
    return {**type_, "deprecated": True, "description": f"{verdict}: {known.why}"}
