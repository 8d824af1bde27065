# SPDX-License-Identifier: Apache-2.0
"""A journal and a scripted world for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from journal import Journal
from tests.support.stage import Stage, opened


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with opened(tmp_path / "journal") as journal:
        yield journal


@pytest.fixture
def stage() -> Stage:
    return Stage()
