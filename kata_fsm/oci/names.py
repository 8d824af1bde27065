# SPDX-License-Identifier: Apache-2.0
"""How containers and sandboxes are named in the journal's projections. Hot path: C modules and `os` only."""

import os

from kata_fsm.errors import UsageError
from kata_fsm.limits import CONTAINER_ID_BYTES_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_ID_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+.-")
_ROOT_DIGEST_CHARACTERS = 16  # 8 bytes


def _sha256() -> "Callable[..., object]":
    # The C module behind hashlib, which costs 4 ms to import for its OpenSSL bindings.
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]
    except ImportError:  # its name from Python 3.12 on
        from _sha2 import sha256  # type: ignore[import-not-found]
    return sha256  # type: ignore[no-any-return]


def sha256_hex(data: bytes) -> str:
    """The SHA-256 digest of `data`, in 64 hex characters."""
    text: str = _sha256()(data).hexdigest()  # type: ignore[attr-defined]
    return text


def root_digest(root: str) -> str:
    """16 hex characters that stand for a `--root` directory: the namespace of its container ids.

    Symbolic links are resolved, so that `/var/run/x` and `/run/x` are one namespace.
    """
    return sha256_hex(os.fsencode(os.path.realpath(root)))[:_ROOT_DIGEST_CHARACTERS]


def root_prefix(root: str) -> bytes:
    """What the projection keys of all containers under `root` begin with."""
    return f"c/{root_digest(root)}/".encode()


def container_key(root: str, container_id: str) -> bytes:
    """The projection key of one container."""
    return root_prefix(root) + container_id.encode()


def sandbox_key(stream: str) -> bytes:
    """The projection key of one sandbox life."""
    return b"s/" + stream.encode()


def check_id(container_id: str) -> str:
    """`container_id`, if it is a legal one. It becomes part of paths, keys and process titles.

    Raises `UsageError`, which names the id (shortened) and what is legal.
    """
    shown = container_id if len(container_id) <= 64 else container_id[:48] + "..."
    if not container_id:
        raise UsageError("Missing container ID", hint="name the container")
    size = len(container_id.encode("utf-8", "surrogateescape"))
    if size > CONTAINER_ID_BYTES_MAX:
        raise UsageError(
            f"container id `{shown}` has {size} bytes, at most {CONTAINER_ID_BYTES_MAX} are legal",
            hint="use a shorter id",
        )
    bad = [character for character in container_id if character not in _ID_CHARACTERS]
    if bad:
        raise UsageError(
            f"container id `{shown}` contains `{_printable(bad[0])}`, legal are letters, digits and `_+.-`",
            hint="use another id",
        )
    if container_id in (".", "..") or container_id[0] == "-":
        raise UsageError(
            f"container id `{shown}` is not legal: it must not begin with `-`, nor be `.` or `..`",
            hint="use another id",
        )
    return container_id


def _printable(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]
