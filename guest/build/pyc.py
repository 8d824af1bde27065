# SPDX-License-Identifier: Apache-2.0
"""Compiles Python for the guest, with the guest's own interpreter run from the unpacked packages.

So neither the host's Python version nor its libraries show in the image. The files are "unchecked hash" .pyc (PEP 552):
the interpreter loads them without looking for a source, and they hold no time.
"""

import marshal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from guest.build.run import run

# Runs inside the guest's interpreter; marshal in, marshal out. Sets and interned strings come out in hash order, hence
# the fixed seed; one process and one order for all files, hence the same bytes.
COMPILER = """
import marshal, sys
from importlib._bootstrap_external import _code_to_hash_pyc
out = []
for name, source, optimize in marshal.load(sys.stdin.buffer):
    code = compile(source, name, "exec", dont_inherit=True, optimize=optimize)
    out.append(bytes(_code_to_hash_pyc(code, bytes(8), False)))
sys.stdout.buffer.write(marshal.dumps(out, 2))
"""

HEADER_BYTES = 16  # before the code: magic, flags, hash of a source that nobody checks
KEEP_ASSERTS = 0
NO_DOCSTRINGS = 2  # nor asserts: for the standard library, which loads faster without


@dataclass(frozen=True)
class Source:
    """A file to compile: its path in the guest (shown in tracebacks), its text, and how far to optimise it."""

    path: str
    text: bytes
    optimize: int


@dataclass(frozen=True)
class Interpreter:
    """The guest's `program`, run under its own dynamic `loader` and `libraries`; its standard library is below `home`."""

    program: Path
    loader: Path
    libraries: tuple[Path, ...]
    home: Path

    def compile(self, files: Sequence[Source]) -> list[bytes]:
        """The .pyc bytes of `files`, in their order. Raises BuildError with the interpreter's words."""
        request = marshal.dumps([(f.path, f.text, f.optimize) for f in files], 2)
        answer: list[bytes] = marshal.loads(self._run(COMPILER, request))
        return answer

    def builtin_modules(self) -> frozenset[str]:
        """The C modules inside the program itself, those of the import system among them."""
        return frozenset(
            self._run("import sys; print(*sys.builtin_module_names, '_frozen_importlib')").decode().split()
        )

    def _run(self, code: str, input: bytes = b"") -> bytes:
        libraries = ":".join(str(path) for path in self.libraries)
        argv = (self.loader, "--library-path", libraries, self.program, "-S", "-s", "-B", "-c", code)
        environment = {"PYTHONHASHSEED": "0", "PYTHONHOME": str(self.home), "LC_ALL": "C.UTF-8"}
        return run(argv, package="libc6", input=input, env=environment)
