# SPDX-License-Identifier: Apache-2.0
"""Which part of the standard library goes into the image: what the agent imports, and what that imports.

Every megabyte of the initrd costs the guest about 10 ms, and the agent uses little. An import that cannot be satisfied
fails the build, with its file and line, rather than the guest.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from guest.build.errors import BuildError

# what the interpreter itself loads, or can be made to load by a locale, a warning or a traceback
ALWAYS = (
    "_collections_abc",
    "abc",
    "codecs",
    "encodings",
    "encodings.aliases",
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "encodings.utf_8",
    "genericpath",
    "io",
    "os",
    "posixpath",
    "site",
    "stat",
    "traceback",
    "warnings",
)


class Library:
    """The modules below unpacked `usr/lib/python3.11` directories, and the names of those inside the interpreter."""

    def __init__(self, roots: Sequence[Path], builtin: frozenset[str]) -> None:
        self._builtin = builtin
        self._files: dict[str, Path] = {}
        for root in roots:
            for path in sorted(root.rglob("*")):
                name = module_name(path.relative_to(root))
                if name is not None:
                    self._files.setdefault(name, path)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def path(self, name: str) -> Path:
        """The file of a module."""
        return self._files[name]

    def closure(self, own: Mapping[str, bytes], roots: Sequence[str]) -> list[str]:
        """Standard modules needed by `own` (module name in the guest -> source), sorted.

        What a function imports counts in `roots` only: elsewhere it is what only the host calls.
        """
        found: dict[str, None] = {}
        waiting = list(ALWAYS)
        for name, source in own.items():
            tree = ast.parse(source, name)
            for line, target, required in imports(tree, package_of(name, own), nested=belongs(name, roots)):
                if self._is_own(target, own):
                    continue
                waiting += self._resolve(target, f"{name} line {line}" if required else None)
        while waiting:
            name = waiting.pop()
            if name in found:
                continue
            found[name] = None
            path = self._files[name]
            if path.suffix == ".py":
                package = name if path.name == "__init__.py" else name.rpartition(".")[0]
                for _, target, _ in imports(ast.parse(path.read_bytes(), name), package, nested=False):
                    waiting += self._resolve(target, None)
        return sorted(found)

    @staticmethod
    def _is_own(target: str, own: Mapping[str, bytes]) -> bool:
        return target in own or target.rpartition(".")[0] in own

    def _resolve(self, target: str, wanted_by: str | None) -> list[str]:
        """The library modules behind a dotted name; its last part may be a name inside a module."""
        for name in (target, target.rpartition(".")[0]):
            if name in self._files:
                parts = name.split(".")
                return [".".join(parts[: i + 1]) for i in range(len(parts))]
            if name in self._builtin:
                return []
        if wanted_by is not None:
            raise BuildError(f"{wanted_by} imports `{target}`, which the guest does not have")
        return []


def reachable(own: Mapping[str, bytes], roots: Sequence[str]) -> set[str]:
    """Of the modules `own`, the packages and modules `roots` in full and what these import from the others."""
    found = {name for name in own if belongs(name, roots)}
    waiting = sorted(found)
    while waiting:
        name = waiting.pop()
        for _, target, _ in imports(ast.parse(own[name], name), package_of(name, own), nested=belongs(name, roots)):
            parts = target.split(".")
            prefixes = {".".join(parts[: i + 1]) for i in range(len(parts))}
            waiting += sorted(prefixes & set(own) - found)
            found |= prefixes & set(own)
    return found


def belongs(name: str, roots: Sequence[str]) -> bool:
    """Is it one of the `roots`, or inside one?"""
    return any(name == root or name.startswith(root + ".") for root in roots)


def package_of(name: str, own: Mapping[str, bytes]) -> str:
    """The package that relative imports inside module `name` start from: itself if it is one."""
    is_package = any(other.startswith(name + ".") for other in own)
    return name if is_package else name.rpartition(".")[0]


def module_name(relative: Path) -> str | None:
    """The dotted name of a file below the library's root; None when it is no module, or part of a test."""
    parts = list(relative.parts)
    if parts[0] == "lib-dynload":
        return parts[1].partition(".")[0] if len(parts) == 2 and relative.suffix == ".so" else None
    if relative.suffix != ".py" or parts[0] in ("test", "idlelib", "lib2to3", "ensurepip"):
        return None
    parts[-1] = relative.stem
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts) or None


def imports(tree: ast.Module, package: str, *, nested: bool) -> Iterator[tuple[int, str, bool]]:
    """(line, dotted name, required) of every import; those inside functions only if `nested`.

    An import below `try` is not required, and what only a type checker sees is not an import.
    """
    stack: list[tuple[ast.AST, bool]] = [(tree, True)]
    while stack:
        node, required = stack.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, required
        elif isinstance(node, ast.ImportFrom):
            base = absolute(package, node.module, node.level)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}" if base else alias.name, required
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            stack += [(child, required) for child in node.orelse]
        elif nested or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            below = required and not isinstance(node, ast.Try)
            stack += [(child, below) for child in ast.iter_child_nodes(node)]


def absolute(package: str, module: str | None, level: int) -> str:
    """The absolute name of `from ..module import` inside `package`."""
    if level == 0:
        return module or ""
    parts = package.split(".")
    base = parts[: len(parts) - (level - 1)]
    return ".".join([*base, module] if module else base)
