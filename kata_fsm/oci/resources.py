# SPDX-License-Identifier: Apache-2.0
"""What `update` can change: OCI resources from a file, or from runc's options."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from kata_fsm.errors import UsageError
from kata_fsm.limits import SPEC_BYTES_MAX
from kata_fsm.oci import fields, spec
from kata_fsm.oci.check import check_resources
from kata_fsm.oci.guest import clean_resources
from kata_fsm.oci.reading import read_file

Document = dict[str, Any]

OPTIONS: dict[str, str] = {
    "cpu-period": "microseconds",
    "cpu-quota": "microseconds of processor time in each period; -1: no limit",
    "cpu-share": "relative weight",
    "cpu-rt-period": "refused: the guest has no realtime groups",
    "cpu-rt-runtime": "refused: the guest has no realtime groups",
    "cpuset-cpus": "processors of the host that the pod may use",
    "cpuset-mems": "memory nodes of the host that the pod may use",
    "memory": "bytes, or with a suffix of b k m g t p; -1: no limit",
    "memory-reservation": "as --memory, for the soft limit",
    "memory-swap": "as --memory, for memory and swap together",
    "kernel-memory": "accepted and without effect, as in Linux 5.16 and runc",
    "kernel-memory-tcp": "accepted and without effect, as in runc",
    "pids-limit": "processes; -1: no limit",
    "blkio-weight": "relative weight of the pod's input and output on the host",
    "l3-cache-schema": "refused: resctrl belongs to the host",
    "mem-bw-schema": "refused: resctrl belongs to the host",
}

_REFUSED = {name: text.removeprefix("refused: ") for name, text in OPTIONS.items() if text.startswith("refused")}
_IGNORED = ("kernel-memory", "kernel-memory-tcp")
_PLACES = {
    "cpu-period": ("cpu", "period"),
    "cpu-quota": ("cpu", "quota"),
    "cpu-share": ("cpu", "shares"),
    "memory": ("memory", "limit"),
    "memory-reservation": ("memory", "reservation"),
    "memory-swap": ("memory", "swap"),
    "pids-limit": ("pids", "limit"),
    "cpuset-cpus": ("cpu", "cpus"),
    "cpuset-mems": ("cpu", "mems"),
    "blkio-weight": ("blockIO", "weight"),
}
_TEXTS = ("cpuset-cpus", "cpuset-mems")
_SIZED = ("memory", "memory-reservation", "memory-swap")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?\Z", re.IGNORECASE | re.ASCII)


def bytes_of(text: str) -> int:
    """`512m` in bytes (1024-based); `-1` stays. Raises `UsageError`."""
    if text == "-1":
        return -1
    match = _SIZE.match(text.strip())
    if match is None:
        raise UsageError(f"`{text}` is no size", hint="legal are bytes, or a suffix of b, k, m, g, t, p, or -1")
    return int(float(match[1]) * 1024 ** "bkmgtp".index((match[2] or "b").lower()))


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"update: `--{name}`: `{text}` is not a number") from None


def from_options(given: Mapping[str, str]) -> tuple[Document, list[str]]:
    """(resources, warnings) of the options that were given, by name. Raises `UsageError`."""
    if not given:
        raise UsageError("update: nothing to change", hint="see `kata-fsm update --help`")
    document: Document = {}
    for name, text in given.items():
        if name in _REFUSED:
            raise UsageError(f"update: `--{name}` cannot be honoured: {_REFUSED[name]}")
        if name in _IGNORED:
            continue
        section, field = _PLACES[name]
        read = bytes_of(text) if name in _SIZED else text if name in _TEXTS else _number(name, text)
        document.setdefault(section, {})[field] = read
    ignored = [f"update: `--{name}` has no effect" for name in _IGNORED if name in given]
    return _checked(document, "update"), ignored


def from_file(path: str) -> tuple[Document, list[str]]:
    """(resources, warnings) of a JSON file, `-` being stdin. Raises `SpecError` or `UsageError`."""
    try:
        data = _read_stdin() if path == "-" else read_file(path)
    except OSError as error:
        raise UsageError(f"resources file `{path}` cannot be read: {error.strerror}") from error
    where = f"resources `{path}`"
    _, document = spec.parse(data, spec.Resources, where=where)
    document = clean_resources(document)
    fields.refuse(document, at="linux.resources", where=where)
    warnings = fields.take_out(document, at="linux.resources", where="update")
    if document.pop("devices", None):
        warnings.append("update: `devices` is not applied: device rules cannot be changed")
    return _checked(clean_resources(document), where), warnings


def _read_stdin() -> bytes:
    with os.fdopen(os.dup(0), "rb") as file:
        return file.read(SPEC_BYTES_MAX + 1)


def _checked(document: Document, where: str) -> Document:
    check_resources(spec.convert(document, spec.Resources, where=where), where=where, prefix="")
    return document
