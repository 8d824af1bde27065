# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: lower floors never import higher ones, not even inside a function.

Imports are read from the syntax trees, so lazy ones count; those under `if TYPE_CHECKING:` do not, since they never run.
A new module has to be given its floor here.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("journal", "kata_wire", "kata_fsm", "guest")

FLOORS: dict[str, int] = {
    "journal": 0,
    "kata_wire": 0,
    "kata_fsm": 0,  # the package's own `__init__`: its version
    "kata_fsm.errors": 0,
    "kata_fsm.limits": 0,
    "kata_fsm.world": 0,
    "kata_fsm.argv": 0,  # command lines of processes
    "kata_fsm.cjson": 0,  # JSON without the cost of importing `json`
    "kata_fsm.control": 0,  # frames between verbs, shims and supervisors
    "kata_fsm.spawn": 0,  # starting a supervisor
    "kata_fsm.system_log": 0,
    "kata_fsm.systemd": 0,  # asking it for a scope
    "kata_fsm.machines": 1,
    "kata_fsm.projections": 2,
    "kata_fsm.snapshots": 2,
    "kata_fsm.oci": 2,
    "kata_fsm.config": 2,
    "kata_fsm.effects": 3,
    "kata_fsm.runtime": 4,
    "kata_fsm.recovery": 4,
    "kata_fsm.survey": 4,  # what recovery would do, and what is left over on the host
    "kata_fsm.supervisor": 5,
    "kata_fsm.shim": 5,
    "kata_fsm.relay": 5,  # the part of the shim that moves bytes
    "kata_fsm.replay": 5,
    "kata_fsm.audit": 5,
    "kata_fsm.check": 5,
    "kata_fsm.cli": 6,
    "kata_fsm.__main__": 6,
    "kata_fsm.testing": 6,  # shipped for tests, on top of everything
}
"""The floor of each module, by its longest named prefix. The guest stands beside the house: see its own test."""


@cache
def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _walk(node: ast.AST) -> list[ast.AST]:
    """Every node that can run."""
    found = [node]
    for child in node.orelse if _is_type_checking(node) else ast.iter_child_nodes(node):  # type: ignore[attr-defined]
        found += _walk(child)
    return found


@cache
def imports(name: str) -> frozenset[str]:
    """The dotted names that module `name` imports, and their packages: importing `a.b.c` runs `a` and `a.b` too."""
    path = modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in _walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            found.add(base)
            found |= {f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in modules()}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            found |= {str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return frozenset(found)


def is_ours(name: str) -> bool:
    """Whether a dotted name belongs to this repository."""
    return name.split(".")[0] in PACKAGES


@cache
def reach(name: str) -> frozenset[str]:
    """Everything that running module `name` can import, at once or later, directly or not."""
    found: set[str] = set()
    todo = [name]
    while todo:
        for imported in imports(todo.pop()):
            for prefix in _prefixes(imported):
                if prefix not in found:
                    found.add(prefix)
                    if prefix in modules():
                        todo.append(prefix)
    return frozenset(found)


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def floor(name: str) -> int:
    """The floor of a module of ours. Fails for one that has none."""
    for prefix in reversed(_prefixes(name)):
        if prefix in FLOORS and (prefix != "kata_fsm" or name == "kata_fsm"):
            return FLOORS[prefix]
    raise AssertionError(f"`{name}` has no floor: give it one in `FLOORS`")


HOUSE = sorted(name for name in modules() if not name.startswith("guest"))


@pytest.mark.parametrize("name", HOUSE)
def test_no_module_imports_from_a_higher_floor(name: str) -> None:
    """Lower floors know nothing of higher ones."""
    own = floor(name)
    for imported in imports(name):
        if is_ours(imported) and imported in modules():
            assert not imported.startswith("guest"), f"`{name}` (host) imports `{imported}` (guest)"
            assert floor(imported) <= own, f"`{name}` (floor {own}) imports `{imported}` (floor {floor(imported)})"


def test_the_machines_are_pure() -> None:
    """They reach neither the journal nor an effect, nor anything that could touch the world."""
    allowed = {"kata_fsm", "kata_fsm.errors", "kata_fsm.limits", "msgspec", "transitions"}
    pure = {"__future__", "collections", "collections.abc", "functools", "typing", "sys"}  # `sys`: to print the page
    for name in modules():
        if name.startswith("kata_fsm.machines"):
            for imported in reach(name):
                assert imported.startswith("kata_fsm.machines") or imported in allowed | pure, f"`{name}`: `{imported}`"


@pytest.mark.parametrize("name", [n for n in HOUSE if n.startswith(("kata_fsm.replay", "kata_fsm.audit"))])
def test_replay_and_audit_have_no_path_to_an_effect(name: str) -> None:
    """Whoever replays a journal cannot, by whatever bug, do anything to the world."""
    for imported in reach(name):
        assert not imported.startswith(("kata_fsm.effects", "kata_fsm.runtime", "kata_fsm.supervisor")), imported


@pytest.mark.parametrize("name", sorted(name for name in modules() if name.startswith("guest")))
def test_the_guest_needs_only_the_wire_and_the_standard_library(name: str) -> None:
    """What runs in the guest brings no packages along; the builder of its image runs before any is installed.

    Of the wire package only what importing it runs is counted: it has functions for the host that import more.
    """
    todo, seen = [name], {name}
    while todo:
        module = todo.pop()
        for imported in imports(module) if module.startswith("guest") else _at_import(module):
            top = imported.split(".")[0]
            if imported == IN_GUEST_NAME + ".main":
                continue
            assert top in ("guest", "kata_wire") or top in sys.stdlib_module_names, f"`{module}` imports `{imported}`"
            if imported in modules() and imported not in seen:
                seen.add(imported)
                todo.append(imported)


IN_GUEST_NAME = "kata_agent"
"""What `guest.agent` is called inside the image."""


@pytest.mark.parametrize("name", [name for name in HOUSE if name.split(".")[0] in ("journal", "kata_wire")])
def test_the_ground_floor_stands_alone(name: str) -> None:
    """The journal knows nothing about containers, nor the wire about hosts: each can be used by itself."""
    top = name.split(".")[0]
    for imported in imports(name):
        assert not is_ours(imported) or imported.split(".")[0] == top, f"`{name}` imports `{imported}`"


def test_no_module_is_imported_in_a_circle() -> None:
    """At import time; what a function imports when it is called may lead back."""
    for name in HOUSE:
        assert name not in _reach_at_import(name), f"`{name}` imports itself"


@cache
def _at_import(name: str) -> frozenset[str]:
    """What importing module `name` imports at once, except by relative imports."""
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(modules())
            found |= inner or {node.module}
    return frozenset(found)


def _reach_at_import(name: str) -> set[str]:
    found: set[str] = set()
    todo = [name]
    while todo:
        for imported in (_at_import(todo.pop()) & set(modules())) - found:
            found.add(imported)
            todo.append(imported)
    return found
