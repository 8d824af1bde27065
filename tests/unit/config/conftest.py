# SPDX-License-Identifier: Apache-2.0
"""Configuration files, written where a test says, and the files that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kata_fsm.config.load import load
from kata_fsm.config.settings import Settings


class Etc:
    """A directory with a configuration in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "configuration.toml"

    def write(self, text: str, name: str = "configuration.toml") -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, errors="surrogateescape")
        return path

    def there(self, name: str, content: bytes = b"x", mode: int = 0o755) -> str:
        """A file that exists; answers its path."""
        path = self.directory / name
        path.write_bytes(content)
        path.chmod(mode)
        return str(path)

    def load(self, text: str | None = None, **annotations: str) -> Settings:
        if text is not None:
            self.write(text)
        prefix = "io.katacontainers."
        given: dict[str, Any] = {prefix + name.replace("__", "."): value for name, value in annotations.items()}
        return load(str(self.file), given)


@pytest.fixture
def etc(tmp_path: Path) -> Etc:
    return Etc(tmp_path)
