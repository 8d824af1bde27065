# SPDX-License-Identifier: Apache-2.0
"""Goal: no field of config.json is dropped silently: applied in the guest, used on the host, refused or warned about."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kata_fsm.cli.context import Context
from kata_fsm.cli.creation import Request, container_message, sandbox_message
from kata_fsm.config.settings import Settings
from kata_fsm.errors import SpecError
from kata_fsm.oci import fields
from kata_fsm.oci.check import check
from kata_fsm.oci.guest import Adapted, Source, adapt
from kata_fsm.oci.sandbox import SINGLE, Place
from kata_fsm.oci.spec import Loaded, Spec
from tests.unit.oci.spec_fields import BASES, CARRIED, FIELDS

LEAST: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {"args": ["true"], "cwd": "/"},
    "root": {"path": "rootfs"},
    "linux": {"namespaces": [{"type": "network"}]},
}


def put(document: Any, path: str, value: Any) -> None:
    """Set the field at `path`, making objects and lists on the way."""
    *parents, last = path.split("/")
    for part, after in zip(parents, path.split("/")[1:], strict=True):
        fresh: Any = [] if after.isdigit() else {}
        if isinstance(document, list):
            document += [fresh] * (int(part) + 1 - len(document))
            document = document[int(part)]
        else:
            if not isinstance(document.get(part), (dict, list)):
                document[part] = fresh
            document = document[part]
    if isinstance(document, list) and len(document) <= int(last):
        document += [None] * (int(last) + 1 - len(document))
    document[int(last) if isinstance(document, list) else last] = value


def at(document: Any, path: str) -> Any:
    """What stands at `path`; None if there is nothing."""
    for part in path.split("/"):
        try:
            document = document[int(part) if isinstance(document, list) else part]
        except (KeyError, IndexError, TypeError):
            return None
    return document


def document_with(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(LEAST)
    for base in sorted(BASES, key=len):
        if path.startswith(base + "/"):
            put(document, base, copy.deepcopy(BASES[base]))
    if path == "mounts/1" or path.startswith("mounts/1/"):
        document["mounts"][0] = BASES["mounts/0"]
    put(document, path, copy.deepcopy(value))
    return document


def shown(path: str) -> str:
    """`mounts/0/options` as messages have it."""
    return re.sub(r"/(\d+)", r"[\1]", path).replace("/", ".")


def generic(path: str) -> str:
    return re.sub(r"\[\d+\]", "[]", shown(path))


class Outcome(msgspec.Struct):
    """What a creation would do with a document."""

    adapted: Adapted
    container: dict[str, Any]
    sandbox: dict[str, Any]


def play(document: dict[str, Any], bundle: Path) -> Outcome:
    """As `create` does. Raises `SpecError`."""
    (bundle / str(document["root"]["path"])).mkdir(exist_ok=True)
    rootfs = str(bundle / document["root"]["path"])
    loaded = Loaded(msgspec.convert(document, Spec), document, str(bundle), rootfs)
    check(loaded)
    found = adapt(loaded, key="key", kind=SINGLE, look=lambda path: Source("dir"))
    context = Context()
    request = Request(id="key", bundle=str(bundle), console_socket=None, console=None, preserve_fds=0, attached=False)
    place = Place(SINGLE, "key")
    return Outcome(
        found,
        container_message(context, request, loaded, found),
        sandbox_message(context, "u", place, Settings(), loaded, found),
    )


EVIDENCE: dict[str, Callable[[Outcome, Any, str], bool]] = {
    "hooks": lambda outcome, value, _: outcome.container["hooks"]["poststop"] == value["poststop"],
    "root": lambda outcome, value, _: outcome.container["rootfs"].endswith("/other"),
    "root.path": lambda outcome, value, _: outcome.container["rootfs"].endswith("/other"),
    "linux.cgroupsPath": lambda outcome, value, _: outcome.container["cgroups_path"] == value,
    "linux.namespaces[].path": lambda outcome, value, _: outcome.sandbox["netns"] == value,
    "linux.resources.cpu.cpus": lambda outcome, value, _: outcome.container["limits"]["cpus"] == value,
    "linux.resources.cpu.mems": lambda outcome, value, _: outcome.container["limits"]["mems"] == value,
    "linux.resources.blockIO": lambda outcome, value, _: outcome.container["limits"]["io_weight"] == value["weight"],
    "linux.resources.blockIO.weight": lambda outcome, value, _: outcome.container["limits"]["io_weight"] == value,
}
"""That the host uses a field; of hooks the container's message has to hold them."""


def fate_of(path: str, value: Any, bundle: Path) -> str:
    """What really becomes of a field: a word of `spec_fields`, or `dropped`."""
    document = document_with(path, value)
    try:
        outcome = play(document, bundle)
    except SpecError as error:
        return "refused" if f"`{shown(path)}`" in str(error) else f"refused without its name: {error}"
    if any(f"`{shown(path)}` is not applied" in warning for warning in outcome.adapted.warnings):
        gone = at(outcome.adapted.guest_spec, path) is None
        assert gone or "does not know it" in "".join(outcome.adapted.warnings)
        return "warned"
    assert outcome.adapted.warnings == []
    where, wanted = CARRIED.get(path, (path, value))
    in_guest = outcome.adapted.guest_spec
    if at(in_guest, where) == wanted or (isinstance(wanted, dict) and wanted == _subset(at(in_guest, where), wanted)):
        return "guest"
    evidence = EVIDENCE.get(generic(path))
    used = evidence(outcome, value, path) if evidence else at(outcome.container, path) == value
    return "host" if used else "dropped"


def _subset(found: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in wanted if isinstance(found, dict) and name in found}


@pytest.mark.parametrize(("path", "value", "fate"), FIELDS, ids=[path for path, _, _ in FIELDS])
def test_no_field_is_dropped_silently(path: str, value: Any, fate: str, tmp_path: Path) -> None:
    if path == "ociVersion":  # which says how to read the rest, and is checked
        play(document_with(path, value), tmp_path)
        with pytest.raises(SpecError, match="ociVersion"):
            play(document_with(path, "2.0.0"), tmp_path)
        return
    assert fate_of(path, value, tmp_path) == fate


def test_the_list_and_the_tables_are_the_same_fields() -> None:
    listed = {generic(path): fate for path, _, fate in FIELDS if "tomorrow" not in path}
    starred = ("annotations", "linux.sysctl", "linux.resources.unified")
    for name in starred:
        for path in [path for path in listed if path.startswith(name + ".")]:
            listed[name + ".*"] = listed.pop(path)
    tables = {
        **dict.fromkeys(fields.GUEST, "guest"),
        **dict.fromkeys(fields.HOST, "host"),
        **dict.fromkeys(fields.REFUSED, "refused"),
        **dict.fromkeys(fields.IGNORED, "warned"),
    }
    del listed["linux.namespaces[]"]  # an item as a whole
    assert listed == tables


def test_what_asks_for_nothing_is_passed_over_in_silence(tmp_path: Path) -> None:
    document = copy.deepcopy(LEAST)
    for path, value in (
        ("hooks/createContainer", []),
        ("linux/intelRdt", {}),
        ("linux/resources/memory", {"useHierarchy": True, "disableOOMKiller": False, "swappiness": 0, "kernel": None}),
        ("linux/resources/cpu", {"realtimeRuntime": 0, "cpus": "", "burst": 0}),
        ("linux/resources/blockIO", {"weight": 0, "weightDevice": []}),
        ("process/apparmorProfile", ""),
        ("process/scheduler", None),
    ):
        put(document, path, value)
    found = play(document, tmp_path).adapted
    assert found.warnings == []
    assert found.guest_spec["linux"]["resources"] == {"memory": {}}
    assert set(found.guest_spec["process"]) == {"args", "cwd"}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("linux/personality", {"domain": "BSD"}, "`BSD` is none of `LINUX`, `LINUX32`"),
        (
            "linux/seccomp",
            {"defaultAction": "SCMP_ACT_NOTIFY"},
            "`linux.seccomp.defaultAction`: a listener on the host",
        ),
        ("mounts", [{"destination": "/x", "type": "bind", "source": "/", "options": ["idmap"]}], "id-mapped mounts"),
    ],
)
def test_values_that_cannot_be_had_are_refused(path: str, value: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        play(document_with(path, value), tmp_path)
    assert words in str(caught.value)


def test_an_option_that_no_bind_mount_has_is_warned_about(tmp_path: Path) -> None:
    options = ["rbind", "ro", "rnosuid", "copy-symlink"]
    document = document_with("mounts", [{"destination": "/x", "type": "bind", "source": "/data", "options": options}])
    assert play(document, tmp_path).adapted.warnings == [
        "config.json: `mounts[0].options`: `copy-symlink` is not applied: a bind mount has no such option"
    ]
