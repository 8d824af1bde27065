# SPDX-License-Identifier: Apache-2.0
"""Reading documents of the caller's, before anything is known of their types. Hot path: C modules and `os` only."""

import os
import stat

from kata_fsm.errors import SpecError
from kata_fsm.limits import SPEC_BYTES_MAX, SPEC_DEPTH_MAX
from kata_fsm.oci.looking import answered

_SHOWN_PATH_CHARACTERS = 64


def fault(field: str, problem: str, *, where: str = "config.json", hint: str | None = None) -> SpecError:
    """The error for one field."""
    return SpecError(f"{where}: `{field}`: {problem}", hint=hint)


def read_file(path: str) -> bytes:
    """The bytes of a file of at most `SPEC_BYTES_MAX` (one more is read, so that `require_size` notices)."""
    with open(path, "rb") as file:
        return file.read(SPEC_BYTES_MAX + 1)


def require_size(data: bytes, *, where: str) -> None:
    """Raises `SpecError` for what is larger than a specification may be."""
    if len(data) > SPEC_BYTES_MAX:
        raise SpecError(f"{where}: larger than {SPEC_BYTES_MAX} bytes")


def read_config(bundle: str) -> bytes:
    """The bytes of the `config.json` in the bundle directory `bundle`. Raises `SpecError`, and `WorldError` if nothing
    answers."""
    path = os.path.join(bundle, "config.json")

    def read() -> bytes:
        if stat.S_ISFIFO(os.stat(path).st_mode):
            raise SpecError(f"`{path}` is a pipe, not a file")  # to open it would wait for a writer, perhaps for ever
        return read_file(path)

    try:
        return answered(path, read)
    except OSError as error:
        raise SpecError(
            f"`{path}` cannot be read: {error.strerror}", hint="`kata-fsm spec` writes one to start from"
        ) from error


def check_values(document: dict[str, object], *, where: str) -> None:
    """Refuse what no field can hold, whether we know it or not, because what we do not know reaches the guest as it is:
    strings with a NUL byte, integers of more than 64 bits, and nesting that a recursive reader could not follow.

    Raises `SpecError` naming the field.
    """
    level: list[tuple[str, object]] = [("", document)]
    for _ in range(SPEC_DEPTH_MAX):
        inner: list[tuple[str, object]] = []
        for path, value in level:
            if isinstance(value, dict):
                for name in value:
                    _check_scalar(path, name, where)
                inner += [(f"{path}.{name}" if path else name, item) for name, item in value.items()]
            elif isinstance(value, list):
                inner += [(f"{path}[{index}]", item) for index, item in enumerate(value)]
            else:
                _check_scalar(path, value, where)
        if not inner:
            return
        level = inner
    raise fault(level[0][0][:_SHOWN_PATH_CHARACTERS], f"nested more than {SPEC_DEPTH_MAX} levels deep", where=where)


def _check_scalar(path: str, value: object, where: str) -> None:
    if isinstance(value, str) and "\0" in value:
        raise fault(path, "contains a NUL byte", where=where)
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        raise fault(path, "does not fit into 64 bits", where=where)
