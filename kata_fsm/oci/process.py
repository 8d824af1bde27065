# SPDX-License-Identifier: Apache-2.0
"""The process of an `exec`: from a file as it is, or from options over the container's own process.

The verb makes the document, and refuses what is wrong with its options; the supervisor, which has everything for that in
memory already, checks its types (`check`). Hot path: C modules and `os` only, until something is wrong.
"""

from __future__ import annotations

from kata_fsm import cjson
from kata_fsm.errors import SpecError, UsageError
from kata_fsm.oci import reading
from kata_fsm.oci.looking import answered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Document = dict[str, Any]

CAPABILITY_SETS = ("bounding", "effective", "permitted")
"""The sets that `--cap` adds to. Inheritable and ambient stay: adding there lets files raise what was not asked for."""


def pattern_of(bundle: str) -> Document | None:
    """The container's own process in its bundle; None when the bundle is gone or unreadable."""
    try:
        process = cjson.loads_object(reading.read_config(bundle)).get("process")
    except (SpecError, ValueError):
        return None
    return process if isinstance(process, dict) and _is_sound(process) else None


def _is_sound(process: Document) -> bool:
    """Whether what options add to is of a type that takes it."""
    user, sets = process.get("user") or {}, process.get("capabilities") or {}
    if not isinstance(user, dict) or not isinstance(sets, dict | list):
        return False
    lists = [process.get("env"), user.get("additionalGids"), *(sets.values() if isinstance(sets, dict) else ())]
    return all(names is None or isinstance(names, list) for names in lists)


def from_options(options: Any, pattern: Document | None) -> Document:
    """The process, whose types are not checked yet. Raises `SpecError` or `UsageError` naming what is wrong."""
    document = _from_file(options.process) if options.process else _from_pattern(options, pattern)
    if options.tty:
        document["terminal"] = True
    reading.check_values(document, where=where(options))
    return document


def where(options: Any) -> str:
    """What errors call the place that a process was read from."""
    return f"process file `{options.process}`" if options.process else "exec"


def check(document: Document, *, where: str) -> list[str]:
    """Refuse a process that could not be run, take out what the guest could not apply, and answer warnings about it.

    Raises `SpecError` naming the field.
    """
    from kata_fsm.oci import fields, spec
    from kata_fsm.oci.check import check_process, unknown_capabilities

    typed = spec.convert(document, spec.Process, where=where)
    fields.refuse(document, at="process", where=where)
    check_process(typed, where=where, prefix="")
    unknown = [f"{where}: `capabilities`: {line}" for line in unknown_capabilities(typed)]
    return [*unknown, *fields.take_out(document, at="process", where=where)]


def _from_file(path: str) -> Document:
    try:
        data = answered(path, lambda: reading.read_file(path))
    except OSError as error:
        raise UsageError(f"process file `{path}` cannot be read: {error.strerror}") from error
    name = f"process file `{path}`"
    reading.require_size(data, where=name)
    try:
        return cjson.loads_object(data)
    except ValueError:
        from kata_fsm.oci import spec

        return spec.parse(data, spec.Process, where=name)[1]  # which says what is wrong in better words


def _from_pattern(options: Any, pattern: Document | None) -> Document:
    if not options.command:
        raise UsageError("exec: process args cannot be empty", hint="name a command, or use --process")
    if pattern is None:
        raise UsageError(
            "exec: the container's bundle is gone, and with it the pattern for a process",
            hint="describe it with --process",
        )
    document = pattern
    for name in ("consoleSize", "selinuxLabel", "apparmorProfile"):
        document.pop(name, None)
    document["args"] = list(options.command)
    document["terminal"] = False
    document["env"] = [*(document.get("env") or []), *options.env]
    if options.cwd:
        document["cwd"] = options.cwd
    if options.no_new_privs:
        document["noNewPrivileges"] = True
    _set_user(document, options.user, options.additional_gids)
    _add_capabilities(document, options.cap)
    return document


def _number(word: str, what: str) -> int:
    if not (word.isascii() and word.isdigit()) or int(word) > 0xFFFFFFFF:
        raise UsageError(
            f"exec: {what} `{word}` is not a number", hint="names cannot be looked up in the guest; use numbers"
        )
    return int(word)


def _set_user(document: Document, user: str | None, gids: list[str]) -> None:
    if user is not None:
        uid, colon, gid = user.partition(":")
        document["user"] = {**(document.get("user") or {}), "uid": _number(uid, "user")}
        if colon:
            document["user"]["gid"] = _number(gid, "group")
    if gids:
        numbers = [_number(gid, "additional group") for gid in gids]
        existing = (document.get("user") or {}).get("additionalGids") or []
        document["user"] = {**(document.get("user") or {}), "additionalGids": [*existing, *numbers]}


def _add_capabilities(document: Document, names: list[str]) -> None:
    if not names:
        return
    names = [_capability(name) for name in names]
    found = document.get("capabilities") or {}
    if isinstance(found, list):  # the form of specifications before 1.0
        found = {name: list(found) for name in (*CAPABILITY_SETS, "inheritable")}
    for which in CAPABILITY_SETS:
        present = list(found.get(which) or [])
        found[which] = present + [name for name in names if name not in present]
    document["capabilities"] = found


def _capability(word: str) -> str:
    """`CAP_KILL`, from that, `cap_kill` or `KILL`. One that nobody knows would be ignored in the guest, without a word."""
    from kata_fsm.oci.spec import CAPABILITIES

    name = "CAP_" + word.upper().removeprefix("CAP_")
    if name not in CAPABILITIES:
        raise UsageError(f"exec: there is no capability `{word}`", hint="`kata-fsm features` lists them")
    return name
