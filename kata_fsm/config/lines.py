# SPDX-License-Identifier: Apache-2.0
"""On which line of a TOML text each key stands. For messages: what the text means is tomli's to say, and comes first."""

from __future__ import annotations

import re

Path = tuple[str, ...]

_NAME = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_KEY = re.compile(rf"[ \t]*({_NAME}(?:[ \t]*\.[ \t]*{_NAME})*)[ \t]*=")
_HEADER = re.compile(r"[ \t]*\[\[?([^\]\n]+)\]")
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")
# What matters in a value: strings of all four sorts, comments, brackets.
_TOKEN = re.compile(
    r'"""(?:[^\\]|\\.)*?"""|' + r"'''.*?'''|" + r'"(?:[^"\\\n]|\\.)*"|' + r"'[^'\n]*'|" + r"\#[^\n]*|[\[\]{}]|\n",
    re.DOTALL,
)


def _split(text: str) -> Path:
    return tuple(part.strip("\"'") for part in _PART.findall(text))


def _value_end(text: str, at: int) -> int:
    """Where the line ends on which the value that begins at `at` ends."""
    depth = 0
    for token in _TOKEN.finditer(text, at):
        word = token.group()
        if word in "[{":
            depth += 1
        elif word in "]}":
            depth -= 1
        elif word == "\n" and depth <= 0:
            return token.start()
    return len(text)


def lines_of(text: str) -> dict[Path, int]:
    """Key path (`("hypervisor", "qemu", "path")`) to line, from 1; tables too. `text` must be valid TOML. The keys inside an
    inline table are not listed: their line is that of the table's key."""
    found: dict[Path, int] = {}
    table: Path = ()
    at, line = 0, 1
    while at < len(text):
        header, key = _HEADER.match(text, at), _KEY.match(text, at)
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        if key:
            found.setdefault(table + _split(key.group(1)), line)
            end = _value_end(text, key.end())
        elif header:
            table = _split(header.group(1))
            found.setdefault(table, line)
        line += text.count("\n", at, end) + 1
        at = end + 1
    return found


def line_at(lines: dict[Path, int], path: Path) -> int:
    """The line of a key, or of the nearest table around it; 0 when none is known."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 0
