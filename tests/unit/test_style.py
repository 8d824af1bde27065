# SPDX-License-Identifier: Apache-2.0
"""The linter, the types, the licence header, and nothing of any one machine in what is committed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SKIPPED = {".git", ".venv", "dist", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}
HEADER = "# SPDX-License-Identifier: Apache-2.0"

# Written apart, so that this file does not contain them itself.
FORBIDDEN = [re.compile(r"(?<![\w.}>*-])/" + name + "/") for name in ("work", "root", "home", "Users")]
"""Paths that exist on one machine only."""


def _files() -> Iterator[Path]:
    """Every file that would be committed."""
    todo = [ROOT]
    while todo:
        for path in sorted(todo.pop().iterdir()):
            if path.name in SKIPPED or path == ROOT / "build" or path.name.endswith(".egg-info") or path.is_symlink():
                continue
            if path.is_dir():
                todo.append(path)
            else:
                yield path


def _run(*command: str) -> str:
    """What a tool has to complain about; empty when it is content."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=600)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_ruff_is_content() -> None:
    """Including the ban on clocks and randomness outside `kata_fsm.world`."""
    complaints = _run("ruff", "check", "--no-fix", "--output-format", "concise", ".")
    assert not complaints, complaints


def test_mypy_is_content() -> None:
    """Strictly, by the settings in `pyproject.toml`."""
    complaints = _run("mypy")
    assert not complaints, complaints


def test_every_python_file_names_its_licence() -> None:
    """In its first two lines: a script may have an interpreter line before it. Generated code says who made it."""
    bare = []
    for path in _files():
        if path.suffix == ".py" and not path.name.endswith(("_pb2.py", "_pb2_grpc.py")):
            head = path.read_text(encoding="utf-8").splitlines()[:2]
            if HEADER not in head:
                bare.append(str(path.relative_to(ROOT)))
    assert not bare, f"without `{HEADER}`: {bare}"


def test_no_file_names_a_path_of_one_machine() -> None:
    """What is committed works in any checkout."""
    found = []
    for path in _files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if any(pattern.search(line) for pattern in FORBIDDEN):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("line", ["cd /wo" + "rk/main", 'open("/ro' + 'ot/x")', "/ho" + "me/me/.venv"])
def test_the_search_for_paths_finds_them(line: str) -> None:
    """A pattern that never matches would prove nothing."""
    assert any(pattern.search(line) for pattern in FORBIDDEN)


@pytest.mark.parametrize("line", ["guest-work/x", "overlay/upper/../work/", "https://example.org/a/root/", "~/x"])
def test_the_search_for_paths_lets_others_be(line: str) -> None:
    """Relative paths and parts of longer ones are nobody's machine."""
    assert not any(pattern.search(line) for pattern in FORBIDDEN)
