# SPDX-License-Identifier: Apache-2.0
"""Texts kept in files beside the tests, compared whole."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def agrees(name: str, text: str) -> None:
    """Compare `text` with the file `tests/golden/NAME`.

    `KATA_FSM_REWRITE=1` writes the file instead. Only commit the rewrite if you understand it: look at the difference
    first, line by line, and say in the change why each of them is right.
    """
    path = GOLDEN / name
    if os.environ.get("KATA_FSM_REWRITE") == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    kept = path.read_text(encoding="utf-8") if path.exists() else ""
    if text != kept:
        diff = difflib.unified_diff(kept.splitlines(), text.splitlines(), f"kept {name}", "now", lineterm="", n=2)
        raise AssertionError(
            "\n".join([*diff, "", "KATA_FSM_REWRITE=1 rewrites it: only commit that if you understand it"])
        )
