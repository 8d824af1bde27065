# SPDX-License-Identifier: Apache-2.0
"""The files in `configs/` and `docs/configuration.md`, made from the settings' own descriptions.

python -m kata_fsm.config.document       writes them; a test compares
"""

from __future__ import annotations

import json
import os
import textwrap
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec

from kata_fsm.config import kata
from kata_fsm.config.settings import BUILT_IN, SECTIONS
from kata_fsm.world import repository_root

_WIDTH = 118
_HEAD = (
    "Configuration of kata-fsm with QEMU{what}. Let /etc/kata-containers/configuration.toml be a copy of it or a symbolic "
    "link to it, or name it with `--config FILE` or KATA_CONF_FILE. Files in a directory `config.d` beside it go over it, "
    "key by key, in the order of their names. Section and key names are Kata's; docs/configuration.md says of each key of "
    "Kata's that is not below why it has no effect. `kata-fsm config show --origin` tells what is in force, and where it "
    "came from."
)

VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "configuration-qemu.toml": ("", "Every key shows its default, commented out.", {}),
    "configuration-qemu-tcg.toml": (
        " and software emulation",
        "Every key shows its default, commented out, but for those that differ here: they are set.",
        {"hypervisor.qemu.accel": "tcg"},
    ),
    "configuration-qemu-microvm.toml": (
        " and its machine `microvm`",
        "Every key shows its default, commented out, but for those that differ here: they are set.",
        {"hypervisor.qemu.machine_type": "microvm"},
    ),
}
"""File in `configs/`: what it is for, what it says of its keys, and what it sets."""

_UNNAMED = ("hypervisor.qemu.image",)


def descriptions() -> dict[str, str]:
    """Key (`hypervisor.qemu.path`) to its description, for every key that is honoured."""
    found: dict[str, str] = {}
    for path, type_ in SECTIONS.items():
        hints = get_type_hints(type_, include_extras=True)
        for name in type_.__struct_fields__:
            metas = get_args(hints[name])[1:] if get_origin(hints[name]) is Annotated else ()
            texts = [meta.description for meta in metas if isinstance(meta, msgspec.Meta) and meta.description]
            found[".".join((*path, name))] = " ".join(texts)
    return found


def defaults() -> dict[str, Any]:
    """Key to the value that it has when it is not set; what an image or checkout decides is empty."""
    found: dict[str, Any] = {}
    for path, type_ in SECTIONS.items():
        section = type_()
        for name in type_.__struct_fields__:
            key = ".".join((*path, name))
            value = BUILT_IN.get(key, getattr(section, name))
            found[key] = list(value) if isinstance(value, tuple) else value
    return found


def toml_value(value: Any) -> str:
    """A string, number, boolean or array as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(one) for one in value) + "]"
    return str(value)


def _comment(text: str) -> str:
    return textwrap.fill(
        text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False, break_long_words=False
    )


def configuration(variant: str) -> str:
    """The text of a file in `configs/`."""
    what, tail, sets = VARIANTS[variant]
    licence = "# SPDX-License-Identifier: Apache-2.0\n#\n"
    parts = [licence, _comment(_HEAD.format(what=what)), "\n#\n", _comment(tail), "\n\n"]
    texts, values = descriptions(), defaults()
    for path, type_ in SECTIONS.items():
        parts.append(f"[{'.'.join(path)}]\n\n")
        for name in type_.__struct_fields__:
            key = ".".join((*path, name))
            if key in _UNNAMED:
                continue
            mark = "" if key in sets else "#"
            parts.append(f"{_comment(texts[key])}\n{mark}{name} = {toml_value(sets.get(key, values[key]))}\n\n")
    return "".join(parts).rstrip("\n") + "\n"


def _paragraph(text: str) -> list[str]:
    return [*textwrap.wrap(text, _WIDTH, break_on_hyphens=False, break_long_words=False), ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _honoured() -> str:
    texts, values = descriptions(), defaults()
    rows = [f"| `{key}` | `{_cell(toml_value(values[key]))}` | {_cell(text)} |" for key, text in texts.items()]
    return "\n".join(["| key | default | what it does |", "|---|---|---|", *rows])


def _not_honoured(section: str) -> str:
    reasons: dict[tuple[str, bool], list[str]] = {}
    names = "hypervisor.qemu" if section == "hypervisor.*" else section
    for name, known in kata.keys_of(names).items():
        reasons.setdefault((known.why, known.unsafe), []).append(f"`{name}`")
    rows = [
        f"| {', '.join(keys)} | {'refused' if unsafe else 'noted'}: {_cell(why)} |"
        for (why, unsafe), keys in reasons.items()
    ]
    title = f"`[{section}]`" + (", `[hypervisor.*.factory]`" if section == "factory" else "")
    return "\n".join([title, "", "| keys | |", "|---|---|", *rows])


def page() -> str:
    """`docs/configuration.md`."""
    sections = ("hypervisor.*", "agent.kata", "runtime", "factory", *kata.OTHER)
    return "\n".join(
        [
            "# Configuration",
            "",
            "Generated by `python -m kata_fsm.config.document`. The files in `configs/` are, too.",
            "",
            *_paragraph(
                "The main file is the first of these that exists: `--config FILE` (or Kata's `--kata-config`), "
                "`KATA_CONF_FILE`, `/etc/kata-containers/configuration.toml`, "
                "`/usr/share/defaults/kata-containers/configuration.toml`. Without any, built-in defaults hold. Files in "
                "`config.d/` beside it go over it, key by key, in the order of their names; where it is a symbolic link, "
                "the directory beside its target comes first, then the one beside the link."
            ),
            *_paragraph(
                "`kata-fsm config show --origin` prints what is in force and where each value came from, `config diff` what "
                "differs from the defaults, `config schema` the JSON Schema."
            ),
            "## What is honoured",
            "",
            _honoured(),
            "",
            "## Kata's other keys",
            "",
            *_paragraph(
                "A value that is a default of Kata's is passed over in silence. Any other is noted once, with the reason; "
                "it is refused where a protection would be missing. A wrong type is an error, an unknown key a warning. The "
                "sections of other VMMs (`clh`, `firecracker`, `acrn`, `stratovirt`, `dragonball`, `openvmm`, `remote`) "
                "have no effect; a file that has one of them and none for QEMU is told so."
            ),
            *(part for section in sections for part in (_not_honoured(section), "")),
        ]
    )


def files() -> dict[str, str]:
    """Path in the repository to text, for everything that is generated here."""
    return {
        **{f"configs/{name}": configuration(name) for name in VARIANTS},
        "docs/configuration.md": page().rstrip("\n") + "\n",
    }


def main() -> None:
    """Write the files."""
    for path, text in files().items():
        with open(os.path.join(repository_root(), path), "w", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    main()
