# SPDX-License-Identifier: Apache-2.0
"""What goes into the guest's tree: a merged /usr as in Debian, busybox, crun, a lean Python, modules, and the agent."""

import marshal
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from guest.build import elf, init, modules, player
from guest.build.errors import BuildError
from guest.build.pyc import HEADER_BYTES, KEEP_ASSERTS, NO_DOCSTRINGS, Interpreter, Source
from guest.build.stdlib import Library
from guest.build.tree import Tree

LIBRARY_DIRS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64")
LOADER = "ld-linux-x86-64.so.2"
PYTHON_LIB = "usr/lib/python3.11"
AGENT_LIB = "usr/lib/kata"
START = "start.py"
BUNDLED_STANDARD = ("__future__",)  # the standard modules that every module of ours imports, and nothing before them
OWN_ROOTS = ("start", "kata_agent")  # taken in full; of other packages only what these import
# crun must be a sealed memory file or it copies itself into one on every run; see guest/rootfs/start.py, which makes it
CRUN_LINK = ("usr/bin/crun", "/proc/self/fd/100")  # whoever starts it has it: a child of the agent, before its exec
PROGRAMS = {
    "usr/bin/busybox": "bin/busybox",
    "usr/libexec/crun": "usr/bin/crun",
    "usr/bin/python3": "usr/bin/python3.11",
}
# what someone starts by its path: the shell, the kernel's helper. Busybox's shell finds its other applets by itself, and
# the agent names them to busybox.
APPLETS = ("usr/bin/sh", "usr/sbin/modprobe", "usr/sbin/poweroff", "usr/sbin/reboot")
EMPTY_DIRS = ("dev", "mnt", "newroot", "proc", "run", "sys", "var", "var/log")


class Sources:
    """Unpacked packages by name, looked through in order."""

    def __init__(self, trees: Mapping[str, Path]) -> None:
        self.trees = trees

    def find(self, path: str) -> Path:
        """The file at `path` in whichever package has it."""
        for tree in self.trees.values():
            if (tree / path).exists():
                return tree / path
        raise BuildError(f"none of the packages holds `/{path}`")

    def library(self, name: str) -> Path:
        """A shared library by its soname."""
        for directory in LIBRARY_DIRS:
            for tree in self.trees.values():
                if (tree / directory / name).exists():
                    return tree / directory / name
        raise BuildError(f"none of the packages holds the library `{name}`", "add its package to `PACKAGES`")


def base(tree: Tree, static: Mapping[str, bytes]) -> None:
    """Directories, links of the merged /usr, and our own static files (path in the guest -> bytes)."""
    for name in ("bin", "sbin", "lib", "lib64"):
        tree.directory("usr/" + name)
        tree.symlink(name, "usr/" + name)
    for path in EMPTY_DIRS:
        tree.directory(path)
    tree.directory("root", 0o700)
    tree.directory("tmp", 0o1777)
    tree.device("dev/console", 5, 1)
    tree.symlink("var/run", "/run")
    tree.symlink("etc/mtab", "/proc/self/mounts")
    for path, data in static.items():
        tree.file(path, data, 0o755 if data.startswith(b"#!") else 0o644)


def programs(tree: Tree, sources: Sources) -> None:
    """The programs, and the shared libraries they need, all of them."""
    waiting = []
    for target, origin in PROGRAMS.items():
        data = sources.find(origin).read_bytes()
        tree.file(target, data, 0o755)
        waiting += elf.needed(data)
    add_libraries(tree, sources, waiting)
    tree.symlink(*CRUN_LINK)
    for path in APPLETS:
        tree.symlink(path, "/usr/bin/busybox")


def add_libraries(tree: Tree, sources: Sources, names: Iterable[str]) -> None:
    """Adds the libraries `names` and what they are linked against."""
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        path = f"usr/lib64/{name}" if name == LOADER else f"usr/lib/x86_64-linux-gnu/{name}"
        if path not in tree:
            data = sources.library(name).read_bytes()
            tree.file(path, data, 0o755)
            waiting += elf.needed(data)


def kernel_modules(tree: Tree, kernel: Path) -> None:
    """Modules in their usual place, modprobe's tables, the list to load later, and the init that loads the others."""
    place = f"usr/lib/modules/{modules.kernel_version(kernel)}"
    early = modules.load(kernel, modules.EARLY)
    every = modules.load(kernel, [*modules.EARLY, *modules.LATE])
    for module in every:
        tree.file(f"{place}/{module.path}", module.data)
    tree.file(f"{place}/modules.dep", modules.dependency_table(every))
    tree.file(f"{place}/modules.alias", modules.alias_table(every))
    names = {m.name for m in early}
    late = [f"/{place}/{m.path}\n" for m in every if m.name not in names]
    tree.file(f"{AGENT_LIB}/modules-late", "".join(late).encode())
    tree.file("init", player.program(init.calls(f"/{place}/{m.path}" for m in early)), 0o755)


def python(tree: Tree, sources: Sources, own: Mapping[str, bytes]) -> list[str]:
    """The agent and the standard modules it needs, compiled. `own`: path below AGENT_LIB -> source.

    Returns the names of the standard modules taken.
    """
    interpreter = guest_interpreter(sources)
    roots = [sources.trees[package] / PYTHON_LIB for package in ("libpython3.11-minimal", "libpython3.11-stdlib")]
    library = Library(roots, interpreter.builtin_modules())
    names = library.closure({dotted(path): source for path, source in own.items()}, OWN_ROOTS)
    standard: list[Source] = []
    for name in names:
        path = library.path(name)
        if path.suffix == ".so":
            data = path.read_bytes()
            tree.file(f"{PYTHON_LIB}/lib-dynload/{path.name}", data)
            add_libraries(tree, sources, elf.needed(data))
        else:
            target = name.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")
            standard.append(Source(target, path.read_bytes(), NO_DOCSTRINGS))
    ours = [Source(path, source, KEEP_ASSERTS) for path, source in sorted(own.items())]
    placed = [replace(f, path=f"/{PYTHON_LIB}/{f.path}") for f in standard]
    placed += [replace(f, path=f"/{AGENT_LIB}/{f.path}") for f in ours]
    compiled = interpreter.compile(placed)
    tree.directory(f"{PYTHON_LIB}/lib-dynload")  # the interpreter looks for it to find its own prefix
    bundled = {}
    for file, data in zip([*standard, *ours], compiled, strict=True):
        if file.path == START:
            tree.file(f"{AGENT_LIB}/{file.path}c", data)
        elif file.optimize == KEEP_ASSERTS:
            bundled[file.path] = data
        else:
            tree.file(f"{PYTHON_LIB}/{file.path}c", data)
    bundled |= {f"{name}.py": tree.read(f"{PYTHON_LIB}/{name}.pyc") for name in BUNDLED_STANDARD if name in names}
    tree.file(f"{AGENT_LIB}/bundle", bundle(bundled))
    return names


def bundle(files: Mapping[str, bytes]) -> bytes:
    """Compiled modules in one file, for the importer in start.py: marshal of {dotted name: (is a package, code)}.

    `files`: path -> .pyc. Python's own search through directories costs about a millisecond a module under emulation.
    """
    table = {dotted(path): (path.endswith("/__init__.py"), data[HEADER_BYTES:]) for path, data in sorted(files.items())}
    return marshal.dumps(table, 2)  # version 2 has no references, whose presence depends on how an object is shared


def guest_interpreter(sources: Sources) -> Interpreter:
    """The interpreter in the packages, with its loader and libraries."""
    program = sources.find(PROGRAMS["usr/bin/python3"])
    libraries = dict.fromkeys(sources.library(n).parent for n in elf.needed(program.read_bytes()))
    home = sources.trees["libpython3.11-minimal"] / "usr"
    return Interpreter(program, sources.library(LOADER), tuple(libraries), home)


def dotted(path: str) -> str:
    """`kata_wire/table.py` -> `kata_wire.table`, `kata_wire/__init__.py` -> `kata_wire`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
