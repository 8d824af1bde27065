# SPDX-License-Identifier: Apache-2.0
"""A fixture: a network namespace of the test's own, held as the product holds a pod's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_fsm.effects import netns


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[str]:
    """A network namespace with `lo`, bound to a path."""
    path = str(tmp_path / "netns")
    netns.make(path)
    yield path
    netns.remove(path)
