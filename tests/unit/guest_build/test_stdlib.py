# SPDX-License-Identifier: Apache-2.0
"""Which modules go into the image, and the error when one cannot."""

from pathlib import Path

import pytest

from guest.build.errors import BuildError
from guest.build.stdlib import ALWAYS, Library, reachable

ROOTS = ("start", "kata_agent")
BUILTIN = frozenset(("sys", "time", "_socket"))


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """A little standard library: `deep` needs `deeper`, and `lazy` only inside a function."""
    for name in ALWAYS:
        path = tmp_path / (name.replace(".", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("import sys\n")
    (tmp_path / "encodings.py").unlink()
    (tmp_path / "encodings/__init__.py").write_text("from . import aliases\n")
    (tmp_path / "deep.py").write_text("import deeper.leaf\ndef f():\n    import lazy\n")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper/__init__.py").write_text("")
    (tmp_path / "deeper/leaf.py").write_text("try:\n    import _gone\nexcept ImportError:\n    pass\n")
    (tmp_path / "lazy.py").write_text("")
    (tmp_path / "lib-dynload").mkdir()
    (tmp_path / "lib-dynload/_json.cpython-311-x86_64-linux-gnu.so").write_bytes(b"")
    return Library([tmp_path], BUILTIN)


def extra(library: Library, **own: bytes) -> list[str]:
    """What `own` modules of the agent bring in beyond what is always there."""
    named = {f"kata_agent.{name}": source for name, source in own.items()} | {"kata_agent": b""}
    return [name for name in library.closure(named, ROOTS) if name not in ALWAYS]


def test_imports_are_followed(library: Library) -> None:
    """To the end; those inside functions count in the agent, and not in the library."""
    assert extra(library, a=b"import deep") == ["deep", "deeper", "deeper.leaf"]
    assert extra(library, a=b"def f():\n    from deeper import leaf") == ["deeper", "deeper.leaf"]
    assert extra(library, a=b"from lazy import anything") == ["lazy"]


def test_modules_of_the_interpreter_and_our_own_need_nothing(library: Library) -> None:
    """Relative imports, C modules inside the program and beside it."""
    assert (
        extra(library, a=b"import sys, time\nfrom _socket import socket\nfrom .b import x\nfrom . import b", b=b"")
        == []
    )
    assert extra(library, a=b"import _json") == ["_json"]


def test_a_missing_module_is_named_with_its_importer(library: Library) -> None:
    """At build time, rather than in the guest; unless the agent itself can do without."""
    with pytest.raises(BuildError, match=r"kata_agent\.a line 2 imports `asyncio`, which the guest does not have"):
        extra(library, a=b"\nimport asyncio")
    assert extra(library, a=b"try:\n    import asyncio\nexcept ImportError:\n    asyncio = None") == []


def test_what_only_a_type_checker_sees_is_no_import(library: Library) -> None:
    """The agent keeps `typing` out of the guest this way."""
    source = b"TYPE_CHECKING = False\nif TYPE_CHECKING:\n    from typing import Any\nelse:\n    import lazy"
    assert extra(library, a=source) == ["lazy"]


def test_only_what_the_agent_uses_of_another_package() -> None:
    """The wire package holds the host's oracle too, and functions that only the host calls."""
    own = {
        "start": b"",
        "kata_agent": b"",
        "kata_agent.main": b"from kata_wire import table",
        "kata_agent.unused": b"def f():\n    from kata_wire.session import hello",
        "kata_wire": b"",
        "kata_wire.table": b"from kata_wire.errors import WireError\ndef g():\n    from kata_wire import host",
        "kata_wire.errors": b"",
        "kata_wire.session": b"",
        "kata_wire.host": b"import google.protobuf",
    }
    assert reachable(own, ROOTS) == set(own) - {"kata_wire.host"}
