# SPDX-License-Identifier: Apache-2.0
"""Runs a host tool and turns its failure into one clear line."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from guest.build.errors import BuildError

TOOL_TIMEOUT_S = 600  # a download on a slow line is the longest of them
STDERR_TAIL = 400  # characters of a tool's complaint worth repeating


def run(
    argv: Sequence[str | Path],
    *,
    package: str,
    input: bytes | None = None,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> bytes:
    """The standard output of `argv`. `package` is the Debian package to name when the tool is missing.

    Raises BuildError when the tool is missing, fails, or takes longer than `TOOL_TIMEOUT_S`.
    """
    args = [os.fspath(a) for a in argv]
    clean = environment() if env is None else env
    try:
        done = subprocess.run(args, input=input, capture_output=True, cwd=cwd, env=clean, timeout=TOOL_TIMEOUT_S)
    except FileNotFoundError:
        raise BuildError(f"`{args[0]}` is not installed", f"apt-get install {package}") from None
    except subprocess.TimeoutExpired:
        raise BuildError(f"`{' '.join(args[:3])}` took longer than {TOOL_TIMEOUT_S} s") from None
    if done.returncode != 0:
        tail = done.stderr.decode(errors="replace").strip()[-STDERR_TAIL:]
        raise BuildError(f"`{' '.join(args[:4])}` failed with status {done.returncode}: {tail}")
    return done.stdout


def environment() -> dict[str, str]:
    """A fixed environment, with what apt needs of the caller's to reach its servers."""
    fixed = {"LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent"}
    return fixed | {k: v for k, v in os.environ.items() if k.lower().endswith("_proxy") or k == "APT_CONFIG"}
