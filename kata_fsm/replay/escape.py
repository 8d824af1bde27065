# SPDX-License-Identifier: Apache-2.0
"""Text from guests and callers, made harmless to a terminal.

Names, arguments and console lines are chosen by others, and may hold control sequences that repaint the screen, or
direction marks that reorder a line. Everything printed as text goes through `harmless`, once, just before it is printed.
"""

from __future__ import annotations

import unicodedata

_ALWAYS = {"\\": "\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\x1b": "\\e"}
_BAD_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def _escaped(char: str) -> str:
    if char in _ALWAYS:
        return _ALWAYS[char]
    if unicodedata.category(char) not in _BAD_CATEGORIES:
        return char
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def harmless(line: str) -> str:
    """`line` as one printable line: control, format, private and unassigned characters become escapes."""
    if line.isascii() and line.isprintable():
        return line
    return "".join(map(_escaped, line))


def plain_lines(text: str) -> list[str]:
    """The lines of a multi-line text (a log tail), each harmless."""
    return [harmless(line.rstrip("\r")) for line in text.split("\n")]
