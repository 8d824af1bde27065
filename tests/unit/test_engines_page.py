# SPDX-License-Identifier: Apache-2.0
"""Goal: docs/engines.md says what the client tests show, feature by feature, and nothing else."""

from __future__ import annotations

import ast

from tests.support.matrix import PAGE, ROOT, TITLES, page


def marked() -> set[tuple[str, str, bool]]:
    """(engine, feature, refused) of every `@feature(...)` in tests/clients, read without running anything."""
    found = set()
    for path in sorted((ROOT / "tests" / "clients").glob("test_*.py")):
        engine = next(name for name in TITLES if path.name.startswith(f"test_{name}"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "feature":
                refused = any(word.arg == "refused" for word in node.keywords)
                found |= {(engine, word.value, refused) for word in node.args if isinstance(word, ast.Constant)}
    return found


def test_the_page_is_of_these_tests() -> None:
    outcomes = [
        {"engine": engine, "feature": name, "outcome": "passed", "refused": refused}
        for engine, name, refused in marked()
    ]
    assert page(outcomes) == PAGE.read_text(encoding="utf-8"), (
        "run tests/clients with --features, and tests.support.matrix"
    )


def test_one_failure_is_enough() -> None:
    engine = next(iter(TITLES))
    outcomes = [
        {"engine": engine, "feature": "this", "outcome": outcome, "refused": False} for outcome in ("passed", "failed")
    ]
    assert "| this | does not work |" in page(outcomes)
