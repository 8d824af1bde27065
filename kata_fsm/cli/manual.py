# SPDX-License-Identifier: Apache-2.0
"""The manual pages, from the verbs' own command lines: kata-fsm(8), and kata-fsm-VERB(8) for each verb.

python -m kata_fsm.cli.manual DIRECTORY       writes them
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from kata_fsm import __version__
from kata_fsm.cli import grammar
from kata_fsm.cli.grammar import Option, Verb


def _text(text: str) -> str:
    """Plain text for roff: no request at the start of a line, no escape, hyphens that can be searched for."""
    safe = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + safe if safe.startswith((".", "'")) else safe


def _options(options: Iterable[Option]) -> list[str]:
    lines = []
    for option in options:
        names = ", ".join(f"\\fB{_text(name)}\\fR" for name in option.names)
        lines += [
            ".TP",
            names + (f" \\fI{_text(option.metavar)}\\fR" if option.metavar else ""),
            _text(option.help) or "\\&",
        ]
    return lines


def _head(name: str, about: str) -> list[str]:
    return [
        f'.TH "{name.upper()}" "8" "" "kata\\-fsm {_text(__version__)}" ""',
        ".SH NAME",
        f"{_text(name)} \\- {_text(about)}",
    ]


def whole(verbs: tuple[Verb, ...], options: tuple[Option, ...]) -> str:
    """kata-fsm(8)."""
    about = "OCI runtime whose sandboxes are virtual machines and whose state is an event log"
    lines = [*_head("kata-fsm", about), ".SH SYNOPSIS"]
    lines += ["\\fBkata\\-fsm\\fR [\\fIGLOBAL OPTIONS\\fR] \\fICOMMAND\\fR [\\fIOPTIONS\\fR] [\\fIARGUMENTS\\fR]"]
    lines += [".SH COMMANDS"]
    for verb in verbs:
        lines += [
            ".TP",
            f"\\fB{_text(verb.name)}\\fR",
            f"{_text(verb.help)}. See \\fBkata\\-fsm\\-{_text(verb.name)}\\fR(8).",
        ]
    lines += [".SH GLOBAL OPTIONS", *_options(options), ".SH FILES"]
    for path in ("/etc/kata-containers/configuration.toml", "/usr/share/defaults/kata-containers/configuration.toml"):
        lines += [
            ".TP",
            _text(path),
            "configuration, the first that exists; files in \\fIconfig.d\\fR beside it go over it",
        ]
    lines += [".TP", _text("/var/lib/kata-fsm"), "the journal, and the logs of sandboxes"]
    lines += [".TP", _text("/run/kata-fsm"), "what does not outlive a boot", ".SH ENVIRONMENT"]
    lines += [".TP", "\\fBKATA_CONF_FILE\\fR", "the configuration file, where no option names one"]
    lines += [".TP", "\\fBKATA_FSM_RUN\\fR, \\fBKATA_FSM_STATE\\fR, \\fBKATA_FSM_JOURNAL\\fR"]
    lines += ["other places for what is under FILES"]
    return "\n".join(lines) + "\n"


def one(verb: Verb) -> str:
    """kata-fsm-VERB(8)."""
    name = f"kata-fsm-{verb.name}"
    lines = [*_head(name, verb.help), ".SH SYNOPSIS"]
    if not verb.parts:
        lines += [_synopsis(verb.name, verb)]
        if verb.choices:
            lines += [".SH ARGUMENTS", f"{_text(verb.takes[0])} is one of {_text(', '.join(verb.choices))}."]
        lines += [".SH OPTIONS", *_options(verb.options)]
    else:
        for part in verb.parts:
            lines += [_synopsis(f"{verb.name} {part.name}", part), ".br"]
        for part in verb.parts:
            lines += [f".SH {part.name.upper()}", _text(part.help) or "\\&", *_options(part.options)]
    lines += [".SH SEE ALSO", "\\fBkata\\-fsm\\fR(8)"]
    return "\n".join(lines) + "\n"


def _synopsis(name: str, verb: Verb) -> str:
    takes = "".join(f" [\\fI{_text(one)}\\fR]" for one in verb.takes)
    return f"\\fBkata\\-fsm {_text(name)}\\fR [\\fIOPTIONS\\fR]{takes}"


def pages() -> dict[str, str]:
    """File name to page."""
    verbs = grammar.verbs()
    return {
        "kata-fsm.8": whole(verbs, grammar.global_options()),
        **{f"kata-fsm-{verb.name}.8": one(verb) for verb in verbs},
    }


def main(directory: str) -> None:
    """Write every page into `directory`."""
    os.makedirs(directory, exist_ok=True)
    for name, text in pages().items():
        with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
