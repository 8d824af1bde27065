# SPDX-License-Identifier: Apache-2.0
"""From files and annotations to settings: each key is honoured, noted, refused, or unknown, and said to be so once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec

from kata_fsm.config import annotations as annotated
from kata_fsm.config.judge import check, contradictions, said
from kata_fsm.config.kata import HYPERVISORS, Known, keys_of
from kata_fsm.config.kata import SECTIONS as KATA_SECTIONS
from kata_fsm.config.layers import Merged, Path, Value, lay_all
from kata_fsm.config.settings import SECTIONS, Ignored, Origin, Qemu, Settings
from kata_fsm.errors import UsageError
from kata_fsm.limits import CREATE_TIMEOUT_S_MAX


def load(named: str | None = None, annotations: Mapping[str, str] | None = None, *, debug: bool = False) -> Settings:
    """The settings in force. `debug`: the flag `--debug` was given.

    Raises `UsageError` naming file, line, key and what is wrong, or the annotation's gate.
    """
    merged, path, over = lay_all(named)
    if debug:
        merged["runtime", "enable_debug"] = Value(True, Origin("flag", "--debug"))
    settings = _settings(merged, path, over)
    notes = settings.warnings
    if annotations:
        accepted = annotated.accept(annotations, settings)
        if accepted.values:
            merged = {**merged, **accepted.values}
            settings = _settings(merged, path, over)
        settings = msgspec.structs.replace(
            settings, annotations=accepted.names, warnings=(*settings.warnings, *accepted.warnings)
        )
    return msgspec.structs.replace(settings, file_notes=notes)


def _settings(merged: Merged, path: str | None, over: tuple[str, ...]) -> Settings:
    sections: dict[str, Any] = {}
    for section, type_ in SECTIONS.items():
        sections[section[-1] if section[0] == "hypervisor" else section[0]] = _section(merged, section, type_)
    ignored, unknown = _others(merged)
    contradictions(merged)
    found = Settings(
        **sections,
        origin=path,
        warnings=(*(_note(one) for one in ignored if not one.silent), *unknown, *_further_notes(merged)),
        drop_ins=over,
        origins={".".join(key): value.origin for key, value in merged.items() if _is_honoured(key)},
        ignored=tuple(ignored),
    )
    return check(_without_disk(found))


def _section(merged: Merged, section: Path, type_: type[msgspec.Struct]) -> msgspec.Struct:
    known = {name: merged[*section, name].value for name in type_.__struct_fields__ if (*section, name) in merged}
    try:
        converted: msgspec.Struct = msgspec.convert(known, type_)
    except msgspec.ValidationError as error:
        problem, _, at = str(error).partition(" - at `$")
        name = at.rstrip("`").lstrip(".")
        key, plain = ".".join((*section, name)), name.partition("[")[0]
        problem = _in_words(problem, type_, plain)
        raise UsageError(f"`{merged[*section, plain].origin}`: `{key}`: {problem}") from error
    return converted


def _in_words(problem: str, type_: type[msgspec.Struct], name: str) -> str:
    """msgspec's words, in TOML's: there is no null, and what is legal is listed."""
    problem = (problem[:1].lower() + problem[1:]).replace(" | null`", "`").replace("`object`", "`table`")
    if problem.startswith("invalid enum value"):
        field = next(one for one in msgspec.inspect.type_info(type_).fields if one.name == name)  # type: ignore[attr-defined]
        legal = getattr(getattr(field.type, "type", field.type), "values", ())
        problem += ", legal are " + ", ".join(f"`{one}`" for one in sorted(legal) if one)
    return problem


def _is_honoured(key: Path) -> bool:
    type_ = SECTIONS.get(key[:-1])
    return type_ is not None and key[-1] in type_.__struct_fields__


def _others(merged: Merged) -> tuple[list[Ignored], list[str]]:
    """The keys that have no effect, and a warning for each that nobody knows."""
    ignored, unknown = [], []
    other = _other_hypervisor(merged)
    for key, (value, origin) in merged.items():
        if _is_honoured(key):
            continue
        _require_no_table(key, origin)
        section, name = _section_of(key)
        known = keys_of(section).get(name)
        dotted = ".".join(key)
        if known is None and not (section in KATA_SECTIONS and _is_honoured(("hypervisor", "qemu", name))):
            unknown.append(f"`{origin}`: `{dotted}` is not known{_meant(section, name)}")
            ignored.append(Ignored(dotted, value, origin, "it is not known", True))
            continue
        foreign = key[0] == "hypervisor" and key[1] != "qemu"
        if known is not None:
            _require_type(known, dotted, value, origin)
            if known.unsafe and value not in known.silent and (not foreign or section == other):
                raise UsageError(
                    f"`{origin}`: `{dotted}`: `{said(value)}` cannot be had: {known.why}",
                    hint="remove the key if the sandbox may do without",
                )
        if foreign:
            ignored.append(Ignored(dotted, value, origin, "no VMM but QEMU is used", True))
        else:
            assert known is not None
            ignored.append(Ignored(dotted, value, origin, known.why, value in known.silent))
    if other is not None:
        unknown.append(f"`{_first(merged, other)}`: `[{other}]` has no effect here because no VMM but QEMU is used")
    return ignored, unknown


def _require_no_table(key: Path, origin: Origin) -> None:
    """A key that has a value is no table, whatever stands in that."""
    for depth in range(2, len(key)):
        outer, section = key[:depth], key[: depth - 1]
        known = keys_of(".".join(section)).get(outer[-1])
        if _is_honoured(outer):
            _section({outer: Value({}, origin)}, section, SECTIONS[section])
        elif known is not None:
            _require_type(known, ".".join(outer), {}, origin)


def _section_of(key: Path) -> tuple[str, str]:
    """(section, name): the longest section of Kata's, else the tables around it."""
    for depth in range(len(key) - 1, 0, -1):
        section = ".".join(key[:depth])
        if section in KATA_SECTIONS:
            return section, ".".join(key[depth:])
    return ".".join(key[:-1]), key[-1]


def _other_hypervisor(merged: Merged) -> str | None:
    """The section of another VMM that the file is written for: the first one, when there is none for QEMU."""
    named = [key[1] for key in merged if key[0] == "hypervisor" and len(key) > 2 and key[1] in HYPERVISORS]
    return f"hypervisor.{named[0]}" if named and "qemu" not in named else None


def _first(merged: Merged, section: str) -> Origin:
    return next(value.origin for key, value in merged.items() if ".".join(key[:2]) == section)


def _require_type(known: Known, dotted: str, value: Any, origin: Origin) -> None:
    if not known.fits(value):
        given = {"dict": "table", "list": "array"}.get(type(value).__name__, type(value).__name__)
        raise UsageError(f"`{origin}`: `{dotted}`: expected `{known.type_name}`, got `{given}`")


def _meant(section: str, name: str) -> str:
    """`, did you mean ...` for a key, or a section, that resembles a known one."""
    from difflib import get_close_matches

    if section not in KATA_SECTIONS:
        close = get_close_matches(section, KATA_SECTIONS, 1)
        return f", did you mean `[{close[0]}]`" if close else ""
    honoured = SECTIONS.get(tuple(section.split(".")))
    candidates = [*keys_of(section), *(honoured.__struct_fields__ if honoured else ())]
    if section.startswith("hypervisor."):
        candidates += Qemu.__struct_fields__
    close = get_close_matches(name, candidates, 1)
    return f", did you mean `{close[0]}`" if close else ""


def _note(one: Ignored) -> str:
    return f"`{one.origin}`: `{one.key}` has no effect here because {one.why}"


def _further_notes(merged: Merged) -> list[str]:
    """What is said of values of honoured keys that do not come to what they say."""
    found = []
    machine = merged.get(("hypervisor", "qemu", "machine_type"))
    if machine is not None and machine.value == "pc":
        found.append(f"`{machine.origin}`: `hypervisor.qemu.machine_type`: `pc` is taken for `q35`")
    cache = merged.get(("hypervisor", "qemu", "virtio_fs_cache"))
    if cache is not None and cache.value == "metadata":
        found.append(f"`{cache.origin}`: `hypervisor.qemu.virtio_fs_cache`: `metadata` is taken for `auto`")
    for key in (("agent", "kata", "create_container_timeout"), ("runtime", "create_container_timeout")):
        limit = merged.get(key)
        if limit is not None and isinstance(limit.value, int) and limit.value > CREATE_TIMEOUT_S_MAX:
            taken = f"`{limit.value}` is taken for `{CREATE_TIMEOUT_S_MAX}`"
            found.append(f"`{limit.origin}`: `{'.'.join(key)}`: {taken}")
    return found


def _without_disk(settings: Settings) -> Settings:
    """A file that names a guest image on a disk, which exists: it and its kernel, which belong together, are passed over."""
    qemu = settings.qemu
    if not qemu.image or qemu.initrd or not os.path.isfile(qemu.image):
        return settings
    why = "guest images on a disk are not supported: the guest of `guest_directory` runs"
    ignored, origins = list(settings.ignored), dict(settings.origins)
    for name in ("image", "kernel"):
        key = f"hypervisor.qemu.{name}"
        if getattr(qemu, name):
            ignored.append(Ignored(key, getattr(qemu, name), origins.pop(key), why))
    names = " and ".join(f"`{one.key}`" for one in ignored[len(settings.ignored) :])
    verb = "have" if "and" in names else "has"
    note = f"`{settings.origin_of('hypervisor.qemu.image')}`: {names} {verb} no effect here because {why}"
    return msgspec.structs.replace(
        settings,
        qemu=msgspec.structs.replace(qemu, image="", kernel=""),
        ignored=tuple(ignored),
        origins=origins,
        warnings=(*settings.warnings, note),
    )
